"""What training asks of the C library."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

COUNT = """
import resource, sys
if "keep" in sys.argv:
    from medisseg.training.memory import keep_freed_memory
    keep_freed_memory()
import torch
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    torch.ones(10_000_000)
before = faults()
for _ in range(20):
    torch.ones(10_000_000)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory")
def test_freed_memory_is_used_again_without_new_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("THP_MEM_ALLOC_ENABLE", "GLIBC_TUNABLES", "LD_PRELOAD"):
        monkeypatch.delenv(name, raising=False)

    def faults(*arguments: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", COUNT, *arguments], capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    assert faults("keep") < 100  # in huge pages alone, given back each time, some 400
    assert faults() > 300
