"""Settings of a clustering: what comes before the algorithm, the algorithm, and how passes are made."""

from __future__ import annotations

from pydantic import Field

from models.config import Config
from models.dpm.config import DPMConfig
from models.reduce import NoReduction, ReduceConfig
from models.registry import ALGORITHMS, ClustererConfig
from models.umap_network import UMAPConfig
from pipeline.cluster.fit import FitConfig
from pipeline.train.checkpoints import fingerprint
from pipeline.train.config import TrainConfig

_WIDE = 32  # up to here Gaussians describe embeddings directly; beyond, distances lose contrast and UMAP restores it


class ClusterConfig(Config):
    """How a table is clustered."""

    algorithm: ClustererConfig = DPMConfig()
    reduce: ReduceConfig | None = Field(
        None, description=f"umap for embeddings wider than {_WIDE}, none for narrower, when null"
    )
    fit: FitConfig = FitConfig()
    train: TrainConfig = TrainConfig()
    memory_ceiling_bytes: int = Field(4 << 30, ge=1, description="embeddings beyond this are memory-mapped")

    def reduction(self, dim: int) -> ReduceConfig:
        """The reduction that applies to `dim`-d embeddings."""
        if self.reduce is not None:
            return self.reduce
        return UMAPConfig() if dim > _WIDE else NoReduction()

    @property
    def trained(self) -> bool:
        """Whether the algorithm is trained by gradient, by `train`; others are fitted in passes, by `fit`."""
        return ALGORITHMS[self.algorithm.kind].objective is not None

    @property
    def workers(self) -> int:
        """That take part in the fit; more than 1 need a Ray session."""
        return self.train.workers if self.trained else self.fit.workers


def with_resources(config: ClusterConfig, resources: ClusterConfig | None) -> ClusterConfig:
    """The same settings with the workers, threads and memory of another's: what a result does not depend on."""
    if resources is None:
        return config
    parts = {}
    for name in ("fit", "train"):
        own, other = getattr(config, name), getattr(resources, name)
        free = {field: getattr(other, field) for field in type(own).model_fields if field not in own.outcome}
        parts[name] = own.model_copy(update=free)
    return config.model_copy(update=parts | {"memory_ceiling_bytes": resources.memory_ceiling_bytes})


def digest(config: ClusterConfig) -> str:
    """SHA-256 of the settings that the result depends on, as canonical JSON."""
    settings = {
        "algorithm": config.algorithm.model_dump(mode="json"),
        "reduce": None if config.reduce is None else config.reduce.model_dump(mode="json"),
        "fit": config.fit.outcome,  # of trained algorithms too: the reduction has its seed from there
        "train": config.train.outcome if config.trained else None,
    }
    return fingerprint(**settings)
