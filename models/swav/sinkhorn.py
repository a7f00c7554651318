"""Balanced codes: entropic optimal transport between rows and prototypes by Sinkhorn-Knopp (Cuturi 2013).

Shapes: A sets of rows that are balanced one by one and travel together, B rows of this worker, K prototypes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.objective import Reduce

_LEAST = 1e-30  # its reciprocal is still a number in float32; what has any mass has far more


@torch.no_grad()
def sinkhorn(score_ABK: Tensor, epsilon: float, iterations: int, reduce: Reduce) -> Tensor:
    """Codes of this worker's rows, (A, B, K): exp(score / epsilon) scaled so that prototypes, then rows, weigh alike.

    Each iteration ends with the rows, which sum to 1, as in SwAV and in Python Optimal Transport's `sinkhorn` with rows
    as its source. In float32 (float64 stays), whatever autocast says. Nothing over- or underflows: the first iteration
    is done in logarithms, after which every row has an entry of 1 and every prototype one of at least 1 / (all rows);
    beside these, what float32 loses below 1e-38 is nothing. Later iterations are two matrix-vector products. A
    prototype or row whose scores are all -inf gets zeros. Workers exchange K-vectors: a maximum, and a sum in each
    iteration.
    """
    with torch.autocast(score_ABK.device.type, enabled=False):
        score_ABK = score_ABK if score_ABK.dtype == torch.float64 else score_ABK.float()
        plan_ABK = _first_iteration(score_ABK, epsilon, reduce)
        row_AB1 = _reciprocal(plan_ABK.sum(dim=2, keepdim=True))
        for _ in range(iterations - 1):
            (mass_A1K,) = reduce.sum(row_AB1.mT @ plan_ABK)
            prototype_A1K = _reciprocal(mass_A1K)
            prototype_A1K /= prototype_A1K.amax(dim=2, keepdim=True).clamp_min(_LEAST)  # or they grow where K ≠ B
            row_AB1 = _reciprocal(plan_ABK @ prototype_A1K.mT)
        if iterations > 1:
            plan_ABK *= prototype_A1K
        return plan_ABK.mul_(row_AB1)


def _first_iteration(score_ABK: Tensor, epsilon: float, reduce: Reduce) -> Tensor:
    """exp(score / epsilon) with prototypes that weigh alike, each row then divided by its largest entry.

    Scores over epsilon are of the order of 100, where float32 keeps five digits: so they are subtracted first, and
    divided then.
    """
    (top_A1K,) = reduce.max(score_ABK.amax(dim=1, keepdim=True))
    top_A1K = _finite(top_A1K)
    (mass_A1K,) = reduce.sum(((score_ABK - top_A1K) / epsilon).exp_().sum(dim=1, keepdim=True))
    level_ABK = score_ABK - (top_A1K + epsilon * mass_A1K.clamp_min(1).log())
    level_ABK -= _finite(level_ABK.amax(dim=2, keepdim=True))
    return level_ABK.div_(epsilon).exp_()


def _finite(largest: Tensor) -> Tensor:
    """0 for the largest of nothing but -inf, from which -inf can be subtracted."""
    return torch.where(largest == -torch.inf, 0.0, largest)


def _reciprocal(mass: Tensor) -> Tensor:
    """0 where there is no mass to scale."""
    return torch.where(mass > 0, mass.clamp_min(_LEAST).reciprocal(), 0.0)
