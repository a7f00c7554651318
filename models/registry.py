"""The only list of clustering algorithms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from models import gmm, kmeans
from models.clusterer import Clusterer, DataSummary
from models.config import Config
from models.deepdpm import model as deepdpm
from models.deepdpm.config import DeepDPMConfig
from models.deepdpm.objective import DeepDPMObjective
from models.dpm import mixture as dpm
from models.dpm.config import DPMConfig
from models.errors import ShoalError
from models.gmm import GMMConfig
from models.kmeans import KMeansConfig
from models.objective import Objective
from models.swav import prototypes
from models.swav.config import PrototypesConfig


@dataclass(frozen=True)
class Algorithm:
    """A Clusterer's settings, its first model, and the way back from its tensors."""

    config: type[Config]
    start: Callable[[Any, DataSummary], Clusterer] | None  # None where it is trained, or comes with a backbone
    load: Callable[[Any, dict[str, Tensor]], Clusterer]
    objective: Callable[[Any], Objective] | None = None  # where it is trained by gradient, from its settings


ALGORITHMS: dict[str, Algorithm] = {
    "kmeans": Algorithm(KMeansConfig, kmeans.start, kmeans.load),
    "gmm": Algorithm(GMMConfig, gmm.start, gmm.load),
    "dpm": Algorithm(DPMConfig, dpm.start, dpm.load),
    "deepdpm": Algorithm(DeepDPMConfig, None, deepdpm.load, DeepDPMObjective),
    "prototypes": Algorithm(PrototypesConfig, None, prototypes.load),
}

ClustererConfig = Annotated[
    KMeansConfig | GMMConfig | DPMConfig | DeepDPMConfig | PrototypesConfig, Field(discriminator="kind")
]


def start(config: ClustererConfig, data: DataSummary) -> Clusterer:
    """The first model of the algorithm that `config` is for.

    Raises ShoalError when the data cannot be fitted with these settings (fewer rows than clusters), or with none.
    """
    begin, objective = ALGORITHMS[config.kind].start, ALGORITHMS[config.kind].objective
    if begin is None and objective is None:
        raise ShoalError(
            f"{config.kind} are learned together with a backbone, by `shoal train`, and cannot be fitted to a table; "
            "label it with `shoal assign` and their artifact, or cluster it with another kind."
        )
    if begin is None:
        raise ShoalError(f"{config.kind} is trained by gradient, not fitted in passes; cluster a table with it.")
    return begin(config, data)


def load(config: ClustererConfig, tensors: dict[str, Tensor]) -> Clusterer:
    """The model whose `tensors()` these are, fitted with `config`."""
    return ALGORITHMS[config.kind].load(config, tensors)
