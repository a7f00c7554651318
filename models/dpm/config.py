"""Settings of the Dirichlet-process mixture."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from models.config import Config
from models.dpm.grouping import GroupingConfig

_LEAST_STARTS, _MOST_STARTS = 32, 2048  # k-means cells that the search starts from
_CUBES_PER_START = 2**21  # rows x dimensions^3 of the sample per cell, between these limits
_ROWS_PER_START = 16
_FLOATS_PER_ROW = 2**18  # multiplications that an E-step spends on a row before it is truncated
_LEAST_CANDIDATES = 8


class DPMConfig(Config):
    """A Dirichlet-process mixture of Gaussians; K is found."""

    kind: Literal["dpm"] = "dpm"
    covariance: Literal["full", "diagonal", "spherical", "tied"] = Field(
        "full", description="of each cluster; tied is one for all"
    )
    assignment: Literal["predictive", "mode"] = Field(
        "predictive", description="density of a row: Student-t with parameters integrated out, or the MAP Gaussian"
    )
    concentration: float = Field(10.0, gt=0, description="alpha of the Dirichlet process, or where it starts from")
    learn_concentration: bool = Field(
        False, description="alpha follows the number of clusters: its posterior mode, or a draw under metropolis"
    )
    prior_scale: float | None = Field(
        None,
        gt=0,
        description="prior covariance in units of the data's mean variance; when null fitted to the clusters, "
        "or 0.1 where these are narrower than that",
    )
    prior_rows: float = Field(1.0, gt=0, description="kappa: how many rows the prior mean counts as")
    prior_degrees: float | None = Field(
        None, description="nu, more than dimensions - 1; when null fitted with the scale, or dimensions + 2 beside one"
    )
    initial_clusters: int | None = Field(
        None,
        ge=1,
        description="k-means cells that the search starts from; when null, 32 to 2,048 by rows and dimensions",
    )
    attempts: int = Field(6, ge=0, description="births tried in each cluster and size of the sample; 0 for none")
    min_size: int = Field(5, ge=2, description="rows that a cluster, or half of a split, must have")
    patience: int = Field(2, ge=1, description="sweeps that subclusters take to settle before their split is judged")
    axes: int = Field(3, ge=1, description="principal axes along which a cluster is cut before it counts as whole")
    merge_neighbors: int = Field(3, ge=1, description="nearest other clusters that a merge is tried with")
    candidates: int | None = Field(
        None, ge=2, description="nearest clusters evaluated for each row; when null 262,144 / dimensions^2, at least 8"
    )
    grouping: GroupingConfig | None = Field(
        GroupingConfig(), description="how components become clusters; null makes each component a cluster"
    )
    metropolis: bool = Field(False, description="accept a move with probability min(1, H) instead of when H > 1")
    tolerance: float = Field(1e-6, gt=0, description="relative change of the objective that counts as none")

    @property
    def fits_prior(self) -> bool:
        """Whether the prior follows the clusters."""
        return self.prior_scale is None

    def stall(self, dim: int) -> int:
        """Sweeps without a better partition after which the search ends: twice what trying every axis takes. A cluster
        that is split off, dies and is split off again would otherwise keep it going for ever.
        """
        return 2 * self.patience * (min(self.axes, dim) + 1)

    def starts(self, rows: int, dim: int) -> int:
        """Cells that the search starts from, given the rows of the sample: by default more than most collections need,
        since merging what belongs together is surer than finding where one large cluster should be cut. More dimensions
        need smaller cells, because what a birth takes (`births`) grows with them.
        """
        if self.initial_clusters is not None:
            return min(self.initial_clusters, rows)
        return max(1, min(_MOST_STARTS, max(_LEAST_STARTS, rows * dim**3 // _CUBES_PER_START), rows // _ROWS_PER_START))

    def evaluated(self, dim: int) -> int:
        """C: clusters evaluated for each row."""
        if self.candidates is not None:
            return self.candidates
        return max(_LEAST_CANDIDATES, _FLOATS_PER_ROW // dim**2)
