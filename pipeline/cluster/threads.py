"""How many threads torch, FAISS, scikit-learn and BLAS use, set for a while and given back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Use `count` threads in every OpenMP and BLAS library of this process within the block.

    Each defaults to one per processor, and they wait for each other by spinning, which on small blocks, or beside other
    processes, costs more than it gains: t-SNE of 1,797 rows was seen to take 50 s on two busy cores, and 2 s on one.
    """
    before = torch.get_num_threads()
    with threadpool_limits(count):
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)
