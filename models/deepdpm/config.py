"""Settings of DeepDPM."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from models.config import Config
from models.dpm.config import DPMConfig

_STARTS, _ROWS_PER_START = 32, 50


class DeepDPMConfig(Config):
    """A Dirichlet-process mixture of Gaussians whose responsibilities come from a network; K is found.

    Lengths of time are steps, so that they do not depend on the number of rows; what they count down to happens at the
    end of an epoch. The prior means what it means in `DPMConfig`. The two divergences find the same clusters on MNIST
    and Fashion-MNIST; `reference` learns faster what it knows least, so fewer clusters die when it starts from many:
    2 of 1,000 in 60,000 rows of 16 dimensions, against 51.
    """

    kind: Literal["deepdpm"] = "deepdpm"
    concentration: float = Field(10.0, gt=0, description="alpha of the Dirichlet process")
    prior_scale: float = Field(1.0, gt=0, description="prior covariance, in units of the data's mean variance")
    prior_rows: float = Field(1.0, gt=0, description="kappa: how many rows the prior mean counts as")
    prior_degrees: float | None = Field(None, description="nu, more than dimensions - 1; dimensions + 2 when null")
    initial_clusters: int | None = Field(
        None, ge=1, description="k-means cells that the search starts from; 32, fewer below 1,600 rows, when null"
    )
    hidden: int = Field(50, ge=2, description="units of the hidden layer of the clustering net")
    sub_hidden: int = Field(50, ge=2, description="units of the hidden layer of each subclustering net")
    learning_rate: float = Field(5e-3, gt=0, description="of the clustering net")
    sub_learning_rate: float = Field(5e-3, gt=0, description="of the subclustering nets")
    divergence: Literal["paper", "reference"] = Field(
        "paper", description="paper: KL(net || mixture); reference: KL(mixture || net), as in the authors' code"
    )
    smoothing: float = Field(1e-5, ge=0, lt=1, description="share of the uniform mixed into the mixture's side")
    candidates: int = Field(8, ge=1, description="largest responsibilities of a row that enter the M-step")
    warmup: int = Field(256, ge=0, description="steps in which the net only learns the first mixture")
    update: int = Field(64, ge=1, description="steps from one M-step to the next, at least")
    interval: int = Field(256, ge=1, description="steps from one round of moves to the next, at least")
    freeze: int = Field(128, ge=0, description="steps after accepted moves in which the mixture stays as it is")
    axes: int = Field(3, ge=1, description="principal axes along which a cluster is cut before it counts as whole")
    merge_neighbors: int = Field(3, ge=1, description="nearest other clusters that a merge is tried with")
    min_size: int = Field(5, ge=2, description="rows that a cluster, or half of a split, must have")
    metropolis: bool = Field(False, description="accept a move with probability min(1, H) instead of when H > 1")
    stall: int = Field(8, ge=1, description="rounds without a better partition after which nothing is split any more")
    tolerance: float = Field(1e-3, gt=0, description="change of the objective, in nats per row, that counts as none")

    def starts(self, rows: int) -> int:
        """Cells that the search starts from: at most one for every 50 rows.

        The authors start from 1, which ends at the same partition of MNIST and at one of lower log joint on
        Fashion-MNIST: splits that are cut along an axis find fewer of the clusters than merges leave standing.
        """
        return max(1, min(self.initial_clusters or _STARTS, rows // _ROWS_PER_START))

    def prior(self) -> DPMConfig:
        """The settings that a prior is made from."""
        return DPMConfig(prior_scale=self.prior_scale, prior_rows=self.prior_rows, prior_degrees=self.prior_degrees)
