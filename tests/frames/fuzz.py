"""Throw random arguments at every entry point of the extension for a while.

Run: ``python tests/frames/fuzz.py [--seconds S] [--seed N] [--extension FILE]``. Arrays end at a
page that no one may touch, so one byte read too far ends the process; with a sanitized extension
(sanitize.sh) the rest of undefined behaviour does too. Allowed are TypeError, ValueError, and
RuntimeError for memory of a GPU that is not there.
"""

from __future__ import annotations

import argparse
import collections
import ctypes
import importlib.util
import mmap
import time
from typing import Any

import numpy as np

PAGE = mmap.PAGESIZE
SIDES = [0, 1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 33, 48, 64, 70, 97, 130, 420, 1300]
DTYPES = ["u1"] * 8 + ["f4"] * 4 + ["f2", "?", "i1", "f8", "i4", ">f4", "O", "U3"]
SCALARS: list[Any] = [None, -1, 0, 1, 2, 64, 65, 255, 256, 16384, 16385, 2**31, 2**63, 10**40]
SCALARS += [0.5, -0.0, float("nan"), float("inf"), 1e300, "RGB", b"x", (), [1, 2], True, object()]


class Fuzzer:
    """Random arguments, mostly valid so that the work behind the checks runs too."""

    def __init__(self, extension: Any, seed: int) -> None:
        self.extension = extension
        self.rng = np.random.default_rng(seed)
        self.buffers = [guarded(512 * PAGE) for _ in range(6)]

    def pick(self, choices: Any) -> Any:
        return choices[self.rng.integers(len(choices))]

    def often(self, value: Any, share: float = 0.93) -> Any:
        """The value, or now and then something that does not belong there."""
        if self.rng.random() < share:
            return value
        return self.pick(SCALARS) if self.rng.random() < 0.5 else self.array(any_shape=True)

    def array(self, shape: Any = None, dtype: str = "u1", any_shape: bool = False) -> Any:
        """An array that ends where its buffer does; its strides are sometimes odd."""
        rng = self.rng
        if any_shape or rng.random() < 0.04:
            shape = [self.pick(SIDES[:13]) for _ in range(rng.integers(0, 5))]
        if any_shape or rng.random() < 0.03:
            dtype = self.pick(DTYPES)
        kind = np.dtype(dtype)
        if kind.hasobject:
            return np.empty(shape, kind)
        padded = rng.random() < (0.3 if len(shape) == 3 else 0.08)
        padding = int(rng.integers(1, 9)) if padded and len(shape) > 1 else 0
        inner = int(np.prod(shape[1:])) * kind.itemsize + padding * kind.itemsize
        total = inner * int(shape[0]) if len(shape) else kind.itemsize
        buffer = self.pick(self.buffers)
        if total > len(buffer) or total == 0:
            return np.zeros(shape, kind)
        flat = buffer[len(buffer) - total :]
        if padding:
            rows = flat.reshape(shape[0], inner)[:, : inner - padding * kind.itemsize]
            array = rows.view(kind).reshape(shape) if rows.size else np.zeros(shape, kind)
        else:
            array = flat.view(kind).reshape(shape)
        return self.twist(array) if array.ndim and rng.random() < 0.06 else array

    def twist(self, array: np.ndarray) -> Any:
        """The same memory in an order that few functions take."""
        how = self.rng.integers(6)
        if how == 0:
            return array[::-1]
        if how == 1:
            return array[..., ::2]
        if how == 2:
            return array.T
        if how == 3:
            frozen = array.view()
            frozen.flags.writeable = False
            return frozen
        if how == 4:
            return np.broadcast_to(array[:1], array.shape)
        pointer = self.pick([0, 1, 4096, array.ctypes.data])
        shape, strides = list(array.shape), list(array.strides)
        return self.extension.DeviceArray(pointer, str(array.dtype), shape, strides, array)

    def shape(self, *rest: int) -> list[int]:
        return [self.pick(SIDES[1:]), self.pick(SIDES[1:]), *rest]  # some are worth two threads

    def preprocess(self) -> tuple[Any, ...]:
        layout = self.pick(["RGB", "BGR", "NV12"])
        height, width = self.shape()
        chroma = None
        frame = self.array([height, width, 3])
        if layout == "NV12":
            height, width = 2 * ((height + 1) // 2), 2 * ((width + 1) // 2)
            planes = self.rng.random() < 0.5
            chroma = self.array([height // 2, width]) if planes else None
            frame = self.array([height if planes else height // 2 * 3, width])
        h, w = self.shape()
        out = self.array([3, h, w], self.pick(["f4", "f2"]))
        top, left = int(self.rng.integers(h)), int(self.rng.integers(w))
        content = (top, left, h - top, w - left)
        triple = tuple(self.pick([1.0, -2.0, 0.0, 1e9]) for _ in range(3))
        return (
            self.often(frame),
            self.often(chroma, 0.97),
            self.often(layout, 0.98),
            self.often(self.pick(["BT.601", "BT.709"]), 0.98),
            self.often(self.pick(["limited", "full"]), 0.98),
            self.often(content),
            self.often(triple, 0.97),
            self.often(triple, 0.97),
            self.often(out),
            0,
        )

    def logits(self) -> Any:
        return self.array([self.pick([1, 1, 2, 5]), *self.shape()], "f4")

    def resize(self) -> tuple[Any, ...]:
        logits = self.logits()
        out = self.array([np.shape(logits)[0] if np.ndim(logits) else 1, *self.shape()], "f4")
        return self.often(logits), self.often(out), 0

    def postprocess(self) -> tuple[Any, ...]:
        return (
            self.often(self.logits()),
            self.often(float(self.rng.normal())),
            self.often(self.array(self.shape())),
            self.often(None),
            0,
        )

    def outline(self) -> tuple[Any, ...]:
        shape = self.shape()
        thickness = int(self.rng.integers(0, 20))
        mask, out = self.array(shape), self.array(shape)
        return self.often(mask), self.often(thickness), self.often(out), 0

    def overlay(self) -> tuple[Any, ...]:
        shape = self.shape()
        color = tuple(int(v) for v in self.rng.integers(0, 256, 3))
        return (
            self.often(self.array([*shape, 3])),
            self.often(self.array(shape)),
            self.often(color),
            self.often(float(self.rng.random())),
            self.often(int(self.rng.integers(0, 20))),
            0,
        )

    def regions(self) -> tuple[Any, ...]:
        return (self.often(self.array(self.shape())),)

    encode_rle = regions

    def decode_rle(self) -> tuple[Any, ...]:
        shape = self.shape()
        left, counts = shape[0] * shape[1], []
        while left > 0:
            counts.append(int(self.rng.integers(0, left + 1)))
            left -= counts[-1]
        counts += [self.pick(SCALARS)] if self.rng.random() < 0.1 else []
        return self.often(counts), self.often(self.array(shape))

    def refill(self) -> None:
        """New contents for one buffer; sparse ones make long runs."""
        buffer = self.pick(self.buffers)
        buffer[:] = self.rng.integers(0, 256, len(buffer), np.uint8) >> self.rng.integers(0, 9)

    def step(self) -> str:
        """One call; returns its name and how it ended."""
        names = ["preprocess", "resize", "postprocess", "outline", "overlay", "regions"]
        name = self.pick([*names, "encode_rle", "decode_rle"])
        arguments = getattr(self, name)()
        try:
            getattr(self.extension, name)(*arguments)
        except (TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "CUDA" not in str(error):
                raise
            return f"{name} refused"
        return f"{name} done"


def guarded(size: int) -> np.ndarray:
    """A writable buffer of whole pages with forbidden pages before and after it."""
    libc = ctypes.CDLL(None, use_errno=True)
    memory = mmap.mmap(-1, size + 2 * PAGE)
    whole = np.frombuffer(memory, np.uint8)
    for offset in (0, size + PAGE):
        address = ctypes.c_void_p(whole.ctypes.data + offset)
        if libc.mprotect(address, ctypes.c_size_t(PAGE), 0) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")
    return whole[PAGE : PAGE + size]


def load(path: str | None) -> Any:
    """The installed extension, or the one in a file."""
    if path is None:
        return importlib.import_module("kernels._frames")
    spec = importlib.util.spec_from_file_location("_frames", path)
    if spec is None or spec.loader is None:
        raise ImportError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--extension", help="a _frames*.so; by default the installed one")
    arguments = parser.parse_args()
    extension = load(arguments.extension)
    fuzzer = Fuzzer(extension, arguments.seed)
    ends: collections.Counter[str] = collections.Counter()
    stop = time.monotonic() + arguments.seconds
    sets = extension.instruction_sets()
    while time.monotonic() < stop:
        extension.use_instruction_set(fuzzer.pick(sets))
        extension.set_threads(int(fuzzer.rng.integers(1, 3)))
        fuzzer.refill()
        for _ in range(50):
            ends[fuzzer.step()] += 1
    print(", ".join(f"{name} {count}" for name, count in sorted(ends.items())))


if __name__ == "__main__":
    main()
