"""From log joint densities to an Assignment, the same for every mixture.

Shapes: N rows, K components.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.clusterer import NOISE, Assignment

_TIE = 1e-9  # relative; rounding of a log density, which differs with the size of the block, stays below


def most_probable(joint_NK: Tensor) -> Tensor:
    """Index of each row's best component, int64; of those that agree to rounding the first, in blocks of any size."""
    best_N1 = joint_NK.amax(dim=1, keepdim=True)
    return (joint_NK >= best_N1 - _TIE * (1 + best_N1.abs())).int().argmax(dim=1)


def posterior_assignment(joint_NK: Tensor, log_weight_K: Tensor, id_K: Tensor) -> Assignment:
    """Maximum a posteriori component of each row; `score` is the row's log density in that component alone.

    A runner-up needs a component of positive weight besides the best.
    """
    component_N = most_probable(joint_NK)
    best_N = joint_NK.gather(1, component_N[:, None])[:, 0]
    others_NK = joint_NK.scatter(1, component_N[:, None], -torch.inf)
    runner_up_N = torch.where(others_NK.isfinite().any(dim=1), id_K[most_probable(others_NK)], NOISE)
    return Assignment(
        cluster_N=id_K[component_N],
        component_N=component_N,
        probability_N=(best_N - joint_NK.logsumexp(dim=1)).exp().float(),
        runner_up_N=runner_up_N,
        score_N=(best_N - log_weight_K[component_N]).float(),
    )
