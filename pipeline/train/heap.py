"""The C library's heap, told to keep what a step of training frees: the next one asks for as much again."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
KEPT_BYTES = 1 << 30  # free memory at the end of a heap that stays with the process
BLOCK_BYTES = 1 << 25  # larger ones still go back; glibc takes no higher limit


def keep_heap() -> None:
    """For the rest of this process; of glibc only, so nothing happens where there is none.

    Otherwise the activations of a step are given back to the kernel, which hands out the same pages anew, filled with
    zeros: on a CPU some 15 ms of a step of 170 ms, one thread at a time.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, BLOCK_BYTES)
        mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
