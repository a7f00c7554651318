"""Passes over the rows of a fit: block by block, on several threads, summed over workers.

Shapes: N rows, n rows of a block, M sampled rows, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from models.clusterer import DataSummary, Stats
from models.errors import ShoalError
from pipeline.extract.ahead import map_ahead
from pipeline.train.rows import Rows
from pipeline.train.world import World, sum_stats

R = TypeVar("R")
S = TypeVar("S", bound=Stats)

_LARGEST = np.iinfo(np.int64).max


@dataclass(frozen=True)
class WorkerRows:
    """The rows that one worker passes over, and how. Implements `Passes` but for its `data`."""

    rows: Rows  # whole blocks, so that sums are over the same blocks on any number of workers
    world: World
    block_rows: int
    threads: int = 1

    def total(self, expect: Callable[[Tensor, Tensor], S]) -> S:
        """`expect` on every block, added in the order of rows and then over workers: threads change no bit of it.

        Memory is `threads + 2` statistics. A worker without rows adds those of an empty block.
        """
        with torch.no_grad():
            parts = self._map(expect)
            stats = next(parts, None)
            if stats is None:
                stats = expect(*next(self._no_rows()))
            for part in parts:
                stats += part  # in place where the statistics can be large and know how
            return sum_stats(stats, self.world)

    def summarize(self, sample_rows: int, seed: int) -> DataSummary:
        """Mean, covariance and a sample: the rows whose hashes are smallest, so neither order nor partition matters.

        The same on every worker. O(N D^2) time in two passes. Raises ShoalError when there are no rows.
        """
        count = int(self.world.sum(torch.tensor(len(self.rows)))[0])
        if count == 0:
            raise ShoalError(
                "The table has 0 embeddings but a fit needs at least 1; see the table's rejects for the reasons."
            )
        dim = self.rows.x_ND.shape[1]
        mean_D = self._sum(lambda x_nD, _: x_nD.double().sum(dim=0) / count, torch.zeros(dim, dtype=torch.float64))

        def scatter(x_nD: Tensor, _: Tensor) -> Tensor:
            centred_nD = x_nD.double() - mean_D.to(x_nD.device)
            return centred_nD.T @ centred_nD

        scatter_DD = self._sum(scatter, torch.zeros(dim, dim, dtype=torch.float64))
        return DataSummary(count, mean_D, scatter_DD / count, self._sample(min(sample_rows, count)), seed)

    def _sum(self, function: Callable[[Tensor, Tensor], Tensor], start: Tensor) -> Tensor:
        for part in self._map(function):
            start += part.to(start.device)
        return self.world.sum(start)[0]

    def _sample(self, count: int) -> Tensor:
        """The `count` rows of smallest hash, by hash and then by place: every worker offers its own smallest."""
        own = np.argsort(self.rows.row_N, kind="stable")[:count]
        offer_WM = torch.full((self.world.size, count), _LARGEST)
        taken_WM = torch.zeros(self.world.size, count, dtype=torch.int64)
        offer_WM[self.world.rank, : len(own)] = torch.from_numpy(self.rows.row_N[own])
        taken_WM[self.world.rank, : len(own)] = 1
        if self.world.size > 1:  # others' offers arrive as a sum with zeros
            offer_WM = torch.where(torch.arange(self.world.size)[:, None] == self.world.rank, offer_WM, 0)
            offer_WM, taken_WM = self.world.sum(offer_WM, taken_WM)
        # Places without an offer come last, behind even the largest hash there is.
        order = np.lexsort((offer_WM.numpy().ravel(), 1 - taken_WM.numpy().ravel()))[:count]
        sample_MD = torch.zeros(count, self.rows.x_ND.shape[1])
        mine_M = order // count == self.world.rank
        sample_MD[torch.from_numpy(mine_M)] = torch.from_numpy(self.rows.x_ND[own[order[mine_M] % count]])
        return self.world.sum(sample_MD)[0]

    def _map(self, function: Callable[[Tensor, Tensor], R]) -> Iterator[R]:
        """The function's result of each block, in order; `threads` blocks are at work at the same time."""
        blocks = self._blocks()
        if self.threads == 1 or len(self.rows) <= self.block_rows:
            yield from (function(*block) for block in blocks)
            return
        before = torch.get_num_threads()
        try:
            with threadpool_limits(1), ThreadPoolExecutor(self.threads, initializer=_one_thread) as pool:
                yield from map_ahead(lambda block: _without_gradient(function, block), blocks, pool, self.threads)
        finally:
            torch.set_num_threads(before)  # what the pool's threads asked for is partly this one's too

    def _blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        device = self.world.device
        return ((x_nD.to(device), row_n.to(device)) for x_nD, row_n in self.rows.blocks(self.block_rows))

    def _no_rows(self) -> Iterator[tuple[Tensor, Tensor]]:
        x_ND, row_N = self.rows[:0].x_ND, self.rows[:0].row_N
        yield torch.from_numpy(np.array(x_ND)).to(self.world.device), torch.from_numpy(np.array(row_N))


def _without_gradient(function: Callable[[Tensor, Tensor], R], block: tuple[Tensor, Tensor]) -> R:
    with torch.no_grad():  # torch keeps this per thread
        return function(*block)


def _one_thread() -> None:
    """One thread for torch and FAISS in the thread that asks: the blocks are what runs side by side."""
    torch.set_num_threads(1)
    threadpool_limits(1, user_api="openmp")
