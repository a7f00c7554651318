"""The one loop of contract A: expect over blocks of rows, sum, maximize, until the model settles.

Shapes: N rows, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from models.clusterer import Clusterer, DataSummary, Move, Stats
from models.config import Config
from models.errors import ShoalError
from models.registry import ClustererConfig, start
from pipeline.cluster.rows import as_tensor
from pipeline.cluster.threads import threads
from pipeline.progress import Progress, silent


class FitConfig(Config):
    """How passes over the rows are made; none of it changes the result but `seed` and `max_passes`."""

    seed: int = Field(0, ge=0)
    max_passes: int = Field(500, ge=1, description="stop with a warning after so many passes without convergence")
    sample_rows: int = Field(65_536, ge=1, description="rows that seeds are chosen from")
    # Blocks begin at multiples of this count whoever holds the rows: sums are the same on any number of workers.
    block_rows: int = Field(65_536, ge=1, description="rows per call of the model")
    threads: int = Field(1, ge=1, description="of torch and FAISS; more pay off from some hundred dimensions")


@dataclass(frozen=True)
class Pass:
    """What one pass left: the objective of the model before it, and the clusters after it."""

    objective: float
    clusters: int


@dataclass(frozen=True)
class Fit:
    """A fitted model with the statistics behind it and the story of the fit."""

    model: Clusterer
    stats: Stats
    history: tuple[Pass, ...]
    moves: tuple[tuple[int, Move], ...]  # (pass, move)
    settled: bool


def fit(
    algorithm: ClustererConfig,
    x_ND: np.ndarray,
    row_N: np.ndarray,
    config: FitConfig,
    on_progress: Progress = silent,
) -> Fit:
    """Fit `algorithm` to resident (or memory-mapped) float32 rows; `row_N` are their stable int64 hashes.

    The result is the same for any order of commits, workers and blocks of the same rows. Each pass costs what the
    model's `expect` costs; memory is one block beside the rows.

    Raises ShoalError when there are no rows, or when the algorithm refuses them.
    """
    with threads(config.threads):
        return _fit(start(algorithm, summarize(x_ND, row_N, config)), x_ND, row_N, config, on_progress)


def _fit(model: Clusterer, x_ND: np.ndarray, row_N: np.ndarray, config: FitConfig, on_progress: Progress) -> Fit:
    rng = torch.Generator().manual_seed(config.seed)
    history: list[Pass] = []
    moves: list[tuple[int, Move]] = []
    settled = False
    while not settled and len(history) < config.max_passes:
        stats = total(model, x_ND, row_N, config.block_rows)
        update = model.maximize(stats, rng)
        moves += [(len(history), move) for move in update.moves]
        model, settled = update.model, update.settled
        history.append(Pass(update.objective, len(model.id_K.unique())))
        on_progress("fit", len(history), None)
    return Fit(model, total(model, x_ND, row_N, config.block_rows), tuple(history), tuple(moves), settled)


def total(model: Clusterer, x_ND: np.ndarray, row_N: np.ndarray, block_rows: int) -> Stats:
    """The statistics of all rows (at least 1): one `expect` per block, summed in row order."""
    all_blocks = blocks(x_ND, row_N, block_rows)
    stats = model.expect(*next(all_blocks))
    for x_nD, row_n in all_blocks:
        stats = stats + model.expect(x_nD, row_n)
    return stats


def blocks(x_ND: np.ndarray, row_N: np.ndarray, block_rows: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Consecutive blocks as tensors that share the rows' memory."""
    for begin in range(0, len(x_ND), block_rows):
        end = begin + block_rows
        yield as_tensor(x_ND[begin:end]), as_tensor(row_N[begin:end])


def summarize(x_ND: np.ndarray, row_N: np.ndarray, config: FitConfig) -> DataSummary:
    """Mean, covariance and a sample: the rows whose hashes are smallest, so neither order nor partition matters.

    O(N D^2) time in two passes. Raises ShoalError when there are no rows.
    """
    if len(x_ND) == 0:
        raise ShoalError(
            "The table has 0 embeddings but a fit needs at least 1; see the table's rejects for the reasons."
        )
    mean_D = torch.zeros(x_ND.shape[1], dtype=torch.float64)
    scatter_DD = torch.zeros(x_ND.shape[1], x_ND.shape[1], dtype=torch.float64)
    for x_nD, _ in blocks(x_ND, row_N, config.block_rows):
        mean_D += x_nD.double().sum(dim=0) / len(x_ND)
    for x_nD, _ in blocks(x_ND, row_N, config.block_rows):
        centred_nD = x_nD.double() - mean_D
        scatter_DD += centred_nD.T @ centred_nD
    smallest_M = np.argsort(row_N, kind="stable")[: config.sample_rows]
    sample_MD = torch.from_numpy(np.ascontiguousarray(x_ND[smallest_M]))
    return DataSummary(len(x_ND), mean_D, scatter_DD / len(x_ND), sample_MD, config.seed)
