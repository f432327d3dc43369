"""Memory that training keeps, instead of asking the kernel for it again at every step."""

from __future__ import annotations

import ctypes
import os
import platform

# glibc's malloc.h
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
MEGABYTE = 2**20


def keep_freed_memory() -> None:
    """Keep what a step frees for the next one, in huge pages. Call it before torch is imported.

    glibc gives every block above 32 MB back to the kernel, which clears each page when it is asked
    for again; a step on a CPU frees and asks for gigabytes. Other C libraries are left alone.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # PyTorch reads it once
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(MMAP_MAX, 0)
    libc.mallopt(TRIM_THRESHOLD, -1)
    libc.mallopt(TOP_PAD, 64 * MEGABYTE)
