"""Moments a few sets at a time, so that the D x D temporaries of many sets never stand in memory together.

Shapes: K sets, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator

from models.moments import Moments

_BYTES = 64 * 2**20
_TEMPORARIES = 6  # of D x D float64 per set: the posterior's scale, and what its factorisation copies


def batches(moments: Moments) -> Iterator[tuple[slice, Moments]]:
    """Consecutive sets as views, as many at a time as keep temporaries within 64 MB (at least one)."""
    size = max(1, _BYTES // (_TEMPORARIES * 8 * moments.dim**2))
    for start in range(0, len(moments), size):
        part = slice(start, start + size)
        yield part, Moments(moments.count_K[part], moments.sum_KD[part], moments.second_KDD[part])
