"""What a pass over the rows leaves for the M-step and the moves, by the networks' responsibilities.

Shapes: N rows, D dimensions, K clusters, E responsibilities that count, C of them per row at most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from models.deepdpm.mixture import Mixture
from models.deepdpm.network import DeepDPMNet
from models.moments import Moments, sparse_moments
from models.posterior import most_probable

_LEAST = 1e-6  # responsibilities below are rounding of a float32 softmax
_CELLS = 2**23  # numbers of a temporary
_PARTS = ("clusters", "halves", "members")


@dataclass(frozen=True)
class NetStats:
    """Moments under the networks' responsibilities. Adds over rows; size independent of N.

    `clusters`: every row in its C most probable clusters, by responsibility (the M-step's).
    `halves`: every row in the two halves of its most probable cluster, by responsibility (2K, a pair per cluster).
    `members`: every row in one half of one cluster, whole (2K): the partition that moves are judged by.
    """

    clusters: Moments
    halves: Moments
    members: Moments

    def __add__(self, other: NetStats) -> NetStats:
        return NetStats(self.clusters + other.clusters, self.halves + other.halves, self.members + other.members)

    def to(self, device: torch.device | str) -> NetStats:
        """The same on another device."""
        return NetStats(self.clusters.to(device), self.halves.to(device), self.members.to(device))

    def tensors(self) -> dict[str, Tensor]:
        """The summands by name."""
        return {f"{part}.{name}": value for part in _PARTS for name, value in getattr(self, part).tensors().items()}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> NetStats:
        """Statistics with these summands."""
        return NetStats(*(Moments.from_tensors(tensors, f"{part}.") for part in _PARTS))


@dataclass(frozen=True)
class Occupancy:
    """Rows of each cluster. Adds over rows."""

    count_K: Tensor

    def __add__(self, other: Occupancy) -> Occupancy:
        return Occupancy(self.count_K + other.count_K)

    def tensors(self) -> dict[str, Tensor]:
        """The summand by name."""
        return {"count_K": self.count_K}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Occupancy:
        """Statistics with this summand."""
        return Occupancy(tensors["count_K"])


def occupancy(mixture: Mixture, x_ND: Tensor) -> Occupancy:
    """How many rows each cluster of the mixture has for its own. O(N K D^2) time."""
    return Occupancy(torch.bincount(most_probable(mixture.log_joint(x_ND)), minlength=len(mixture.id_K)))


def net_statistics(
    net: DeepDPMNet, x_ND: Tensor, origin_D: Tensor, candidates: int, weight_N: Tensor | None = None
) -> NetStats:
    """Statistics of one block of rows (N may be 0), each counted `weight_N` times or once.

    O(N (H (D + K) + C D^2)) time, no N x K x D temporary.
    """
    weight_N = torch.ones_like(x_ND[:, 0], dtype=torch.float64) if weight_N is None else weight_N
    clusters, dim = len(net.last.bias), len(origin_D)
    step = max(256, _CELLS // (clusters + 4 * dim))
    blocks = zip(x_ND.split(step), weight_N.split(step), strict=True)
    parts = [_block(net, x_nD, weight_n, origin_D, candidates) for x_nD, weight_n in blocks]
    return sum(parts[1:], start=parts[0])


def _block(net: DeepDPMNet, x_ND: Tensor, weight_N: Tensor, origin_D: Tensor, candidates: int) -> NetStats:
    clusters, said = len(net.last.bias), net(x_ND)
    origin_D = origin_D.to(x_ND.device)
    row_N = torch.arange(len(x_ND), device=x_ND.device)
    row_E, cluster_E, share_E = largest(said.logit_BK, candidates)
    pair_2N = torch.softmax(said.pair_B2.double(), dim=1).T * weight_N
    first_N = 2 * said.cluster_B
    half_N = first_N + said.pair_B2.argmax(dim=1)
    return NetStats(
        clusters=sparse_moments(x_ND, row_E, cluster_E, share_E * weight_N[row_E], clusters, origin_D),
        halves=sparse_moments(
            x_ND, row_N.repeat(2), torch.cat([first_N, first_N + 1]), pair_2N.flatten(), 2 * clusters, origin_D
        ),
        members=sparse_moments(x_ND, row_N, half_N, weight_N, 2 * clusters, origin_D),
    )


def largest(logit_NK: Tensor, candidates: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `candidates` largest responsibilities of each row that are not negligible, made to sum to 1 again.

    Returns row, cluster and float64 weight of each, (E,).
    """
    weight_NC, cluster_NC = torch.softmax(logit_NK.double(), dim=1).topk(min(candidates, logit_NK.shape[1]), dim=1)
    weight_NC = torch.where(weight_NC >= _LEAST, weight_NC, 0.0)
    weight_NC = weight_NC / weight_NC.sum(dim=1, keepdim=True)
    row_E, column_E = torch.nonzero(weight_NC, as_tuple=True)
    return row_E, cluster_NC[row_E, column_E], weight_NC[row_E, column_E]
