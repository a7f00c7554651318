"""Threads beside those that compute the step."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from pipeline.extract.ahead import single_threads


def threads_beside(count: int) -> ThreadPoolExecutor:
    """`single_threads` that leave the number of the thread that asks, and of threads that come later, as it was."""
    before = torch.get_num_threads()
    pool = single_threads(count)
    torch.set_num_threads(before)
    return pool
