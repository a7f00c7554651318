"""From log joint densities to an Assignment, the same for every mixture.

Shapes: N rows, K components (a cluster may own several), C of them evaluated for each row.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from models.clusterer import NOISE, Assignment

_TIE = 1e-9  # relative; rounding of a log density, which differs with the size of the block, stays below
_CELLS = 2**22  # of the rows x clusters tables that components are gathered in


def most_probable(joint_NK: Tensor) -> Tensor:
    """Index of each row's best component, int64; of those that agree to rounding the first, in blocks of any size."""
    best_N1 = joint_NK.amax(dim=1, keepdim=True)
    return (joint_NK >= best_N1 - _TIE * (1 + best_N1.abs())).int().argmax(dim=1)


def best_two(joint_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Index of each row's best component as `most_probable`, and the value of the next best (-inf where K is 1)."""
    best_N = most_probable(joint_NK)
    if joint_NK.shape[1] < 2:
        return best_N, joint_NK.new_full((len(joint_NK),), -torch.inf)
    top_N2, index_N2 = joint_NK.topk(2, dim=1)
    return best_N, torch.where(index_N2[:, 0] == best_N, top_N2[:, 1], top_N2[:, 0])


def posterior_assignment(
    joint_NC: Tensor, component_NC: Tensor | None, log_weight_K: Tensor, id_K: Tensor
) -> Assignment:
    """Maximum a posteriori cluster of each row, the sum over its components; `component_NC` is None for all, in order.

    `component` is the cluster's most probable one, `score` the row's log density given the cluster. A runner-up needs
    another cluster of positive probability. O(N K) where clusters own several components.
    """
    if component_NC is None:
        component_NC = torch.arange(len(id_K), device=id_K.device).expand(len(joint_NC), -1)
    cluster_K, group_K = id_K.unique(return_inverse=True)
    if len(cluster_K) == len(id_K) or len(joint_NC) == 0:
        return _assignment(joint_NC, component_NC, log_weight_K, id_K)
    log_weight_G = log_weight_K.new_zeros(len(cluster_K)).index_add_(0, group_K, log_weight_K.exp()).log()
    rows = max(1, _CELLS // len(cluster_K))
    parts = [
        _grouped(joint_nC, component_nC, group_K, log_weight_G, cluster_K)
        for joint_nC, component_nC in zip(joint_NC.split(rows), component_NC.split(rows), strict=True)
    ]
    return Assignment(*(torch.cat(field) for field in zip(*(_fields(part) for part in parts), strict=True)))


def _grouped(
    joint_NC: Tensor, component_NC: Tensor, group_K: Tensor, log_weight_G: Tensor, cluster_G: Tensor
) -> Assignment:
    """Assignment to clusters of several components, by the sum over them."""
    group_NC = group_K[component_NC]
    peak_N1 = joint_NC.amax(dim=1, keepdim=True)
    mass_NG = joint_NC.new_zeros(len(joint_NC), len(cluster_G))
    mass_NG.scatter_add_(1, group_NC, (joint_NC - peak_N1).exp())
    every_NG = torch.arange(len(cluster_G), device=group_K.device).expand(len(joint_NC), -1)
    found = _assignment(mass_NG.log_().add_(peak_N1), every_NG, log_weight_G, cluster_G)
    own_N1 = torch.searchsorted(cluster_G, found.cluster_N)[:, None]  # ids come sorted out of `unique`
    inside_NC = joint_NC.masked_fill(group_NC != own_N1, -torch.inf)
    component_N = component_NC.gather(1, most_probable(inside_NC)[:, None])[:, 0]
    return replace(found, component_N=component_N)


def _assignment(joint_NC: Tensor, cluster_NC: Tensor, log_weight_G: Tensor, id_G: Tensor) -> Assignment:
    """From log joint densities of clusters, `cluster_NC` indices into `id_G`."""
    best_N = most_probable(joint_NC)
    value_N, cluster_N = (each.gather(1, best_N[:, None])[:, 0] for each in (joint_NC, cluster_NC))
    others_NC = joint_NC.scatter(1, best_N[:, None], -torch.inf)
    next_N = cluster_NC.gather(1, most_probable(others_NC)[:, None])[:, 0]
    return Assignment(
        cluster_N=id_G[cluster_N],
        component_N=cluster_N,
        probability_N=(value_N - joint_NC.logsumexp(dim=1)).exp().clamp_max(1).float(),
        runner_up_N=torch.where(others_NC.isfinite().any(dim=1), id_G[next_N], NOISE),
        score_N=(value_N - log_weight_G[cluster_N]).float(),
    )


def _fields(part: Assignment) -> tuple[Tensor, ...]:
    return part.cluster_N, part.component_N, part.probability_N, part.runner_up_N, part.score_N
