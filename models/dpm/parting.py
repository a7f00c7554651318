"""Splits of components that have grown, when only some of their rows are at hand.

Rows at hand say what a component is made of where they are like the others: older rows, a uniform sample, and arrivals
that it expects (the others are for births). Each then stands for as many rows as it takes: in the
search, in the verdict, and until the others are read and labelled anew.

Shapes: N rows at hand, n of one component, D dimensions, K components, S sets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.dpm.counting import EMPTY, scaled_sets
from models.dpm.mixture import DPM
from models.dpm.novel import Proposal, found_sets
from models.dpm.regrowth import LEAST_ROWS
from models.dpm.settling import Settling
from models.moments import Moments

_GROWN = 0.05  # a component whose rows have changed by this fraction since it was last tried deserves a trial
_TRIALS = 16  # in one refinement, those that have changed most; the others keep for the next
_FLOATS = 2**23  # rows x dimensions^2 of a trial: a bound of its time, beyond which rows stand for others


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
        row_n = torch.nonzero((settling.label_N == k) & usable_N).flatten()[: _FLOATS // model.dim**2]
        factor = max(1.0, round(float(settling.count_K[k] / settling.weight_N[row_n].sum()), 9))
        sets = found_sets(model, settling, row_n, rng, factor)
        trials.tried.append(k)
        if len(sets) < 2:
            continue
        sets, gain = confirmed(settling, sets, factor)
        if gain <= 0:
            trials.proposals.append(Proposal(k, len(row_n), gain))
            continue
        partial = float(settling.base.count_K[k]) > EMPTY
        if partial:
            _stand_in(settling, k, row_n)
        sets = sorted(sets, key=len, reverse=True)
        children = settling.enlist(sets[1:]).tolist()
        trials.proposals.extend(
            Proposal(k, len(each), gain, child) for each, child in zip(sets[1:], children, strict=True)
        )
        if partial:
            trials.unsettled.update([k, *children])
    return trials


def confirmed(settling: Settling, sets: list[Tensor], factor: float) -> tuple[list[Tensor], float]:
    """Sets that stay apart when each of their rows stands for `factor` rows, and what the log joint gains by that.

    Moments of a sample are taken for those of all rows. What they owe to chance counts `factor` times then, so a set
    has to gain (factor - 1) p more, p the parameters of a component: Akaike's correction. Sets without rows enough for
    their parameters go to others; and those that do not gain so much merge, the least first.
    """
    dim, covariance = settling.prior.dim, settling.config.covariance
    price = (factor - 1) * (
        dim + {"full": dim * (dim + 1) // 2, "diagonal": dim, "spherical": 1, "tied": 0}[covariance]
    )
    least = 0 if factor == 1 else LEAST_ROWS * dim
    sets = sorted(sets, key=len, reverse=True)
    small = [each for each in sets[1:] if len(each) < least]
    sets = [torch.cat([sets[0], *small]), *(each for each in sets[1:] if len(each) >= least)]
    parts = Moments.cat([settling.moments(each, torch.zeros_like(each), 1) for each in sets])
    parts = scaled_sets(parts, factor)
    while len(sets) > 1:
        left_P, right_P = torch.triu_indices(len(sets), len(sets), 1)
        worth = settling.worth(parts)
        gain_P = settling.worth(parts[left_P] + parts[right_P]) - worth[left_P] - worth[right_P] + price
        best = int(gain_P.argmax())
        if gain_P[best] <= 0:
            whole = float(settling.worth(parts.total())[0])
            gain = float(worth.sum()) - whole - price * (len(sets) - 1)
            return sets, gain
        left, right = int(left_P[best]), int(right_P[best])
        kept = [s for s in range(len(sets)) if s not in (left, right)]
        parts = Moments.cat([parts[torch.tensor([left, right])].total(), parts[torch.tensor(kept, dtype=torch.int64)]])
        sets = [torch.cat([sets[left], sets[right]]), *(sets[s] for s in kept)]
    return sets, 0.0


def _due(model: DPM, settling: Settling, usable_N: Tensor) -> list[int]:
    """Components that were last tried when they had other numbers of rows, and have enough at hand for a trial."""
    population, config = model.population, model.config
    old = len(population)
    rows_K = torch.bincount(settling.label_N[usable_N], minlength=len(settling))[:old]
    change_K = (settling.count_K[:old] / population.tried_K.clamp_min(1) - 1).abs()
    least = 2 * max(config.min_size, LEAST_ROWS * model.dim)
    due_K = (change_K > _GROWN) & (rows_K >= least)
    order = torch.argsort(change_K, descending=True, stable=True).tolist()
    return [k for k in order if due_K[k]][:_TRIALS]


def _stand_in(settling: Settling, k: int, row_n: Tensor) -> None:
    """Let these rows of component k count for those that are not at hand."""
    settling.weight_N[row_n] *= 1 + float(settling.base.count_K[k]) / float(settling.weight_N[row_n].sum())
    for part in settling.base.tensors().values():
        part[k] = 0
