"""Settings of the Dirichlet-process mixture."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from models.config import Config

_STARTS, _ROWS_PER_START = 32, 50


class DPMConfig(Config):
    """A Dirichlet-process mixture of Gaussians with full covariances; K is found."""

    kind: Literal["dpm"] = "dpm"
    concentration: float = Field(10.0, gt=0, description="alpha of the Dirichlet process")
    prior_scale: float = Field(1.0, gt=0, description="prior covariance, in units of the data's mean variance")
    prior_rows: float = Field(1.0, gt=0, description="kappa: how many rows the prior mean counts as")
    prior_degrees: float | None = Field(None, description="nu, more than dimensions - 1; dimensions + 2 when null")
    initial_clusters: int | None = Field(
        None, ge=1, description="k-means cells that the search starts from; 32, fewer below 1,600 rows, when null"
    )
    min_size: int = Field(5, ge=2, description="rows that a cluster, or half of a split, must have")
    patience: int = Field(3, ge=1, description="sweeps that subclusters take to settle before their split is judged")
    axes: int = Field(3, ge=1, description="principal axes along which a cluster is cut before it counts as whole")
    merge_neighbors: int = Field(3, ge=1, description="nearest other clusters that a merge is tried with")
    metropolis: bool = Field(False, description="accept a move with probability min(1, H) instead of when H > 1")
    tolerance: float = Field(1e-6, gt=0, description="relative change of the objective that counts as none")

    def stall(self, dim: int) -> int:
        """Sweeps without a better partition after which the search ends: twice what trying every axis takes. A cluster
        that is split off, dies and is split off again would otherwise keep it going for ever.
        """
        return 2 * self.patience * (min(self.axes, dim) + 1)

    def starts(self, rows: int) -> int:
        """Cells that the search starts from: by default more than most collections need, since merging what belongs
        together is surer than finding where one large cluster should be cut.
        """
        if self.initial_clusters is not None:
            return self.initial_clusters
        return max(1, min(_STARTS, rows // _ROWS_PER_START))
