"""Rows at hand settle among components, most of whose rows are elsewhere and stay where they are.

A sweep moves each row to its most probable component given the Moments of all, then takes those Moments anew. It costs
what has changed: components that no row has left or joined keep their parameters and densities. Source: Neal and Hinton
(1998) for EM on part of the rows, with the hard assignments of `mixture`.

Shapes: N rows at hand, D dimensions, K components, C of them near a row, S of a selection.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.dpm.config import DPMConfig
from models.dpm.counting import EMPTY, counted_sets, worth
from models.dpm.population import density
from models.dpm.prior import Prior
from models.moments import Moments, zeros

NEAREST = 8  # most probable components of a row among which it may move
_SWEEPS = 8
_TIE = 1e-9  # relative, as of `posterior`: what is less is rounding, and a row stays where it is
_PAIRS = 2**18  # rows and components that are evaluated together


@dataclass
class Settling:
    """Components by index; one that has no rows any more keeps its index, and nothing moves there."""

    config: DPMConfig
    prior: Prior
    concentration: float
    x_ND: Tensor
    weight_N: Tensor  # how much each row counts
    label_N: Tensor
    base: Moments  # of the rows that are not at hand
    held: Moments  # of those that are
    near_NC: Tensor  # candidates of each row
    density_NC: Tensor  # log densities of the rows in them
    stale_K: Tensor  # bool, whether Moments have changed since densities were taken

    @staticmethod
    def of(rows: tuple[Tensor, Tensor, Tensor], base: Moments, near_NC: Tensor, model: ModelParts) -> Settling:
        """Rows (values, weights, labels) before the first sweep; every density is yet to be taken."""
        x_ND, weight_N, label_N = rows
        config, prior, concentration = model
        held = counted_sets(prior, x_ND, label_N, weight_N, len(base))
        density_NC = torch.full(near_NC.shape, -torch.inf, dtype=torch.float64)
        stale_K = torch.ones(len(base), dtype=torch.bool)
        return Settling(
            config, prior, concentration, x_ND, weight_N, label_N.clone(), base, held, near_NC, density_NC, stale_K
        )

    def __len__(self) -> int:
        return len(self.base)

    @property
    def count_K(self) -> Tensor:
        """Rows of each component."""
        return self.base.count_K + self.held.count_K

    def whole(self, index_S: Tensor) -> Moments:
        """Moments of all rows of some components."""
        return self.base[index_S] + self.held[index_S]

    def worth(self, sets: Moments) -> Tensor:
        """What sets add to the log joint."""
        return worth(self.prior, self.concentration, sets)

    def moments(self, row_n: Tensor, set_n: Tensor, num_sets: int) -> Moments:
        """Moments of sets of some rows."""
        return counted_sets(self.prior, self.x_ND[row_n], set_n, self.weight_N[row_n], num_sets)

    def settle(self) -> None:
        """Sweep until no row moves, at most 8 times."""
        for _ in range(_SWEEPS):
            if not self.sweep():
                return

    def sweep(self) -> int:
        """Move every row to its most probable component; how many moved."""
        joint_NC = self.log_joint()
        own_N = joint_NC.masked_fill(self.near_NC != self.label_N[:, None], -torch.inf).amax(dim=1)
        best_N, column_N = joint_NC.max(dim=1)
        row_n = torch.nonzero(best_N > own_N + _TIE * (1 + best_N.abs())).flatten()
        self.move(row_n, self.near_NC[row_n, column_N[row_n]])
        return len(row_n)

    def move(self, row_n: Tensor, label_n: Tensor) -> None:
        """Count some rows in other components from now on."""
        changed_S = torch.cat([self.label_N[row_n], label_n]).unique()
        self.label_N[row_n] = label_n
        self._recount(changed_S)

    def make_room(self, count: int) -> Tensor:
        """Add so many components without rows, near to every row; their indices."""
        fresh_S = torch.arange(len(self), len(self) + count)
        empty = zeros(count, self.prior.dim, diagonal=self.prior.diagonal)
        self.base, self.held = Moments.cat([self.base, empty]), Moments.cat([self.held, empty])
        self.stale_K = torch.cat([self.stale_K, torch.ones(count, dtype=torch.bool)])
        rows = len(self.x_ND)
        self.near_NC = torch.cat([self.near_NC, fresh_S.expand(rows, -1)], dim=1)
        self.density_NC = torch.cat([self.density_NC, self.density_NC.new_full((rows, count), -torch.inf)], dim=1)
        return fresh_S

    def enlist(self, sets: list[Tensor]) -> Tensor:
        """Make each of these sets of rows a component of its own; their indices."""
        fresh_S = self.make_room(len(sets))
        for index, row_n in zip(fresh_S.tolist(), sets, strict=True):
            self.move(row_n, torch.full_like(row_n, index))
        return fresh_S

    def log_joint(self) -> Tensor:
        """Log of weight times density of every row in its candidates, (N, C); -inf in those without rows."""
        self._refresh()
        count_K = self.count_K
        log_weight_K = torch.where(count_K > EMPTY, (count_K / count_K.sum()).log(), -torch.inf)
        return self.density_NC + log_weight_K[self.near_NC]

    def _recount(self, index_S: Tensor) -> None:
        place_K = torch.full((len(self),), -1)
        place_K[index_S] = torch.arange(len(index_S))
        row_n = torch.nonzero(place_K[self.label_N] >= 0).flatten()
        held = self.moments(row_n, place_K[self.label_N[row_n]], len(index_S))
        for mine, new in zip(self.held.tensors().values(), held.tensors().values(), strict=True):
            mine[index_S] = new
        self.stale_K[index_S] = True

    def _refresh(self) -> None:
        """Densities in the components whose Moments have changed."""
        index_S = torch.nonzero(self.stale_K & (self.count_K > EMPTY)).flatten()
        self.stale_K[:] = False
        if len(index_S) == 0 or len(self.x_ND) == 0:
            return
        gaussians = density(self.config, self.prior, self.whole(index_S))
        place_K = torch.full((len(self),), -1)
        place_K[index_S] = torch.arange(len(index_S))
        place_NC = place_K[self.near_NC]
        row_P, column_P = torch.nonzero(place_NC >= 0, as_tuple=True)
        place_P = place_NC[row_P, column_P]
        order_P = torch.argsort(place_P, stable=True)
        for part_p in order_P.split(_PAIRS):
            row_p, column_p = row_P[part_p], column_P[part_p]
            found_p1 = gaussians.log_density_at(self.x_ND[row_p], place_P[part_p][:, None])
            self.density_NC[row_p, column_p] = found_p1[:, 0]


ModelParts = tuple[DPMConfig, Prior, float]  # settings, prior and concentration, which stay what they are
