"""The C++ extension's entry points with arguments that ``tests/frames/fuzz.py`` makes.

Where ``MEDISSEG_FUZZ_EXTENSION`` names an extension that clang built with ``fuzzer-no-link``, the
fuzzer is led by the C++ code's own branches and comparisons; undefined behaviour ends the process.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

from tests.frames.fuzz import Fuzzer, load
from tests.fuzz.edits import Choices


@functools.cache
def fuzzer() -> Fuzzer:
    """Return the maker of arguments; the extension is loaded with the first input."""
    built = os.environ.get("MEDISSEG_FUZZ_EXTENSION")
    if built:
        # Its counters are atheris' own libFuzzer's, which must be running by now: it would take
        # what stands in the global scope earlier for a libFuzzer of somebody else.
        import atheris

        (core,) = Path(atheris.__file__).parent.glob("core_with_libfuzzer*.so")
        ctypes.CDLL(str(core), ctypes.RTLD_GLOBAL)
    return Fuzzer(load(built), 0)


def seeds() -> list[bytes]:
    return [bytes([name]) + bytes(40) for name in range(8)] + [
        bytes(range(k, 90)) for k in range(8)
    ]


def one(data: bytes) -> None:
    fuzzer().rng = Choices(data)  # type: ignore[assignment]
    fuzzer().step()


def done() -> None:
    pass
