"""How many threads torch and FAISS use, set for a while and given back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import faiss
import torch


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Use `count` threads in torch and FAISS within the block.

    Both default to one per processor and wait for each other by spinning, which on small blocks, or beside other
    processes, costs more than it gains.
    """
    before = torch.get_num_threads(), faiss.omp_get_max_threads()
    torch.set_num_threads(count)
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        faiss.omp_set_num_threads(before[1])
