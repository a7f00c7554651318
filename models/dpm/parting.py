"""Splits of components that have grown, when only some of their rows are at hand.

Rows at hand say what a component is made of where they are like the others: older rows, a uniform sample, and arrivals
unless they are elsewhere as a group (those are for births). Each then stands for as many rows as it takes: in the
search, in the verdict, and until the others are read and labelled anew.

Shapes: N rows at hand, n of one component, D dimensions, K components, S sets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.dpm.counting import EMPTY
from models.dpm.mixture import DPM
from models.dpm.novel import Proposal, found_sets
from models.dpm.population import density
from models.dpm.settling import Settling
from models.moments import Moments

_GROWN = 0.05  # a component whose rows have changed by this fraction since it was last tried deserves a trial
_TRIALS = 16  # in one refinement, those that have changed most; the others keep for the next
_ROWS_PER_DIMENSION = 2  # that a trial takes: fewer say nothing of two covariances


@dataclass(frozen=True)
class Trials:
    """What was tried, what came of it, and components cut by a sample, whose other rows are still to be read."""

    tried: list[int]
    proposals: list[Proposal]
    unsettled: set[int]


def split(model: DPM, settling: Settling, usable_N: Tensor, rng: torch.Generator) -> Trials:
    """Try components that have changed, by a search among those of their rows that are usable."""
    trials = Trials([], [], set())
    for k in _due(model, settling, usable_N):
        row_n = torch.nonzero((settling.label_N == k) & usable_N).flatten()
        factor = float(settling.count_K[k]) / float(settling.weight_N[row_n].sum())
        sets = found_sets(model, settling, row_n, rng, factor)
        trials.tried.append(k)
        if len(sets) < 2:
            continue
        gain = split_gain(settling, sets, float(settling.count_K[k]))
        if gain <= 0:
            trials.proposals.append(Proposal(k, len(sets[1]), gain))
            continue
        partial = float(settling.base.count_K[k]) > EMPTY
        if partial:
            _stand_in(settling, k, row_n)
        children = settling.enlist(sets[1:]).tolist()
        trials.proposals.extend(
            Proposal(k, len(each), gain, child) for each, child in zip(sets[1:], children, strict=True)
        )
        if partial:
            trials.unsettled.update([k, *children])
    return trials


def split_gain(settling: Settling, sets: list[Tensor], rows: float) -> float:
    """What the log joint gains when a component of `rows` rows is parted as these sets of some of them are.

    The log joint of rows is that of some plus the log predictive density of every other given those before it. The
    latter is estimated by halves of the sets, each evaluated under the other: so what a cut owes to chance is no gain,
    and what it would gain by more rows is left out.
    """
    row_n, set_n = torch.cat(sets), torch.cat([torch.full_like(each, s) for s, each in enumerate(sets)])
    parts = settling.moments(row_n, set_n, len(sets))
    worth = settling.worth(Moments.cat([parts, parts.total()]))
    gain, others = float(worth[:-1].sum() - worth[-1]), rows - float(parts.count_K.sum())
    if others <= EMPTY * rows:
        return gain
    half_n = torch.cat([torch.arange(len(each)) % 2 for each in sets])
    gains = [_predicted_gain(settling, row_n, set_n, half_n == half) for half in (0, 1)]
    return gain + others * float(torch.cat(gains).mean())


def _predicted_gain(settling: Settling, row_n: Tensor, set_n: Tensor, known_n: Tensor) -> Tensor:
    """Log joint density of each unknown row in its most probable set, minus that in all of them as one."""
    parts = settling.moments(row_n[known_n], set_n[known_n], int(set_n.max()) + 1)
    sets = Moments.cat([parts, parts.total()])
    density_nS = density(settling.config, settling.prior, sets).log_density(settling.x_ND[row_n[~known_n]])
    joint_nS = density_nS + (sets.count_K / sets.count_K[-1]).log()
    return joint_nS[:, :-1].amax(dim=1) - joint_nS[:, -1]


def _due(model: DPM, settling: Settling, usable_N: Tensor) -> list[int]:
    """Components that were last tried when they had other numbers of rows, and have enough at hand for a trial."""
    population, config = model.population, model.config
    old = len(population)
    rows_K = torch.bincount(settling.label_N[usable_N], minlength=len(settling))[:old]
    change_K = (settling.count_K[:old] / population.tried_K.clamp_min(1) - 1).abs()
    least = max(2 * config.min_size, _ROWS_PER_DIMENSION * model.dim)
    due_K = (change_K > _GROWN) & (rows_K >= least)
    order = torch.argsort(change_K, descending=True, stable=True).tolist()
    return [k for k in order if due_K[k]][:_TRIALS]


def _stand_in(settling: Settling, k: int, row_n: Tensor) -> None:
    """Let these rows of component k count for those that are not at hand."""
    settling.weight_N[row_n] *= 1 + float(settling.base.count_K[k]) / float(settling.weight_N[row_n].sum())
    for part in settling.base.tensors().values():
        part[k] = 0
