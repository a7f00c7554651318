"""The search on the sample before the first pass over all rows: sweeps until they settle, births, and again.

A birth needs rows, which `maximize` never sees; the sample is at hand, and passes over it cost little. What is too
small to be found in the sample is left to the splits of later passes.

Shapes: M sampled rows, D dimensions, K clusters.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from models.clusterer import DataSummary, Move
from models.dpm.births import Births, births, judged
from models.dpm.mixture import DPM, DPMStats
from models.dpm.population import Progress, Roster, newborn
from models.dpm.prior import FINEST
from models.gaussians import Gaussians
from models.moments import moments_of_sets
from models.neighbors import cells

_ROUNDS = 100
_IDLE = 3  # rounds of births that brought nothing, after which what is born only dies again
_SWEEPS = 8  # between births: enough to settle what matters, and a bound where it does not
_FLAT = 1e-4  # relative change of the objective after which births are tried
_FAILURES = 2  # attempts without a birth after which a cluster is whole, while it stays about the same
_DRIFT = 0.02  # relative change of its size that makes it another
_FEW = 16  # rows of a cell below which it says nothing
_LARGE = 8  # rows per dimension of a large cell
_BLOCK_ROWS = 16_384


@dataclass
class _Opening:
    """A search in progress."""

    model: DPM
    x_MD: Tensor
    rng: torch.Generator
    factor: float = 1.0  # rows that each row stands for
    wide: bool = False  # clusters are wide beside the data, so they may overlap and hide each other
    moves: list[Move] = field(default_factory=list)
    failures: dict[int, tuple[int, int]] = field(default_factory=dict)  # id -> times, rows

    def settle(self) -> None:
        """Sweeps without trials, until the clusters stay about what they are."""
        before = -torch.inf
        for _ in range(_SWEEPS):
            update = self.model.swept(self._stats(), self.rng, trials=False)
            self.model = update.model  # type: ignore[assignment]
            self.moves += update.moves
            moved = any(move.accepted for move in update.moves)
            if not moved and update.objective - before <= _FLAT * abs(update.objective):
                return
            before = update.objective

    def _stats(self) -> DPMStats:
        parts = (self.model.expect(x_mD, x_mD[:, 0]) for x_mD in self.x_MD.split(_BLOCK_ROWS))
        stats = next(parts)
        for part in parts:
            stats += part
        if self.factor == 1:
            return stats
        return stats.with_tensors({name: self.factor * value for name, value in stats.tensors().items()})

    def bear(self) -> bool:
        """Try births in every cluster that may have one; whether there was any."""
        config, population = self.model.config, self.model.population
        set_M = torch.cat([self.model.sets_of(x_mD)[0] for x_mD in self.x_MD.split(_BLOCK_ROWS)])
        order_M = torch.argsort(set_M, stable=True)
        next_id, ids, label_M, begin = population.next_id, population.id_K.tolist(), set_M.clone(), 0
        labels = list(ids)
        for k, rows in enumerate(torch.bincount(set_M, minlength=len(ids)).tolist()):
            member_n = order_M[begin : begin + rows]
            begin += rows
            times, size = self.failures.get(ids[k], (0, rows))
            if abs(rows - size) > _DRIFT * size:
                times = 0
            if times >= (_FAILURES if self.wide else 1) or rows < 2:
                continue
            found = self._regrown(self.x_MD[member_n], times)
            if self.wide and not found.sets:
                found = births(population, k, self.x_MD[member_n], config.attempts, self.rng, config.min_size)
            children = list(range(next_id, next_id + len(found.sets)))
            self.moves += found.moves(ids[k], children, rows)
            for child, index_n in zip(children, found.sets, strict=True):
                label_M[member_n[index_n]] = len(labels)
                labels.append(child)
            next_id += len(children)
            self.failures[ids[k]] = (0 if children else times + 1, rows)
        if len(labels) == len(ids):
            return False
        self._enter(label_M, labels, next_id)
        return True

    def _regrown(self, x_nD: Tensor, times: int) -> Births:
        """The rows of one cluster searched by themselves under the prior of all: from many small cells, and when that
        found nothing from few large ones, which say more of a covariance.
        """
        config, population = self.model.config, self.model.population
        rows, dim = x_nD.shape
        count = min(config.starts(rows, dim), rows // _FEW) if times == 0 else rows // (_LARGE * dim)
        if count < 2:
            return judged(population, x_nD, torch.zeros(len(x_nD), dtype=torch.int64))
        cell_n = cells(x_nD, count, int(torch.randint(2**31, (1,), generator=self.rng)))
        set_n = searched(self.model, x_nD, cell_n, self.rng)
        return judged(population, x_nD, set_n, config.min_size)

    def _enter(self, label_M: Tensor, labels: list[int], next_id: int) -> None:
        population = self.model.population
        sets = moments_of_sets(
            self.x_MD, label_M, len(labels), population.prior.mean_D, diagonal=population.prior.diagonal
        )
        roster = Roster(self.model.config, population.prior, population.concentration)
        for k, identity in enumerate(labels):
            if sets.count_K[k] > 0:
                roster.enter(identity, sets.one(k))
        self.model = replace(self.model, population=roster.population(next_id, replace(population.progress, stalled=0)))


def searched(model: DPM, x_nD: Tensor, cell_n: Tensor, rng: torch.Generator, factor: float = 1.0) -> Tensor:
    """Set of each row after a search among these rows alone that starts from `cell_n`, under the prior of all; (n,).

    Each row counts `factor` times, where it stands for so many.
    """
    prior, config = model.population.prior, model.config.model_copy(update={"prior_scale": 1.0, "grouping": None})
    sets = moments_of_sets(x_nD, cell_n, int(cell_n.max()) + 1, prior.mean_D, diagonal=prior.diagonal)
    population = newborn(config, prior, sets[sets.count_K > 0])
    alone = _Opening(DPM(config, population, x_nD[:1]), x_nD, rng, factor)
    alone.settle()
    return torch.cat([alone.model.sets_of(x_mD)[0] for x_mD in x_nD.split(_BLOCK_ROWS)])


def is_wide(cells: Gaussians, variance: float) -> bool:
    """Whether k-means cells have a variance above a tenth of the data's: with hundreds of them, a sign of overlap."""
    trace_K = cells.chol_KDD.square().flatten(1).sum(dim=1)
    return float(trace_K.mean()) / cells.dim > FINEST * variance


def opened(model: DPM, data: DataSummary) -> DPM:
    """The model after the search on the sample; the moves that led to it are its `opening`.

    Sweeps cost what `expect` and `maximize` cost on M rows, births what `births` says. At most 100 rounds.
    """
    rng = torch.Generator().manual_seed(data.seed)
    wide = is_wide(model.population.clusters, data.variance)
    opening = _Opening(model, data.sample_MD, rng, wide=wide)
    best, idle = -torch.inf, 0
    for _ in range(_ROUNDS):
        opening.settle()
        objective = opening.model.population.progress.objective
        better = best == -torch.inf or objective - best > model.config.tolerance * abs(best)
        best, idle = max(best, objective), 0 if better else idle + 1
        if idle >= _IDLE or model.config.attempts == 0 or not opening.bear():
            break
    population = opening.model.population
    # The sample's objective says nothing of all rows', and no cluster has been cut on all rows.
    fresh = replace(Progress(), fitted=population.progress.fitted)
    return replace(opening.model, population=replace(population, progress=fresh), opening=tuple(opening.moves))
