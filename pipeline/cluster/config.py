"""Settings of a clustering: what comes before the algorithm, the algorithm, and how passes are made."""

from __future__ import annotations

import hashlib
import json

from pydantic import Field

from models.config import Config
from models.dpm.config import DPMConfig
from models.reduce import NoReduction, ReduceConfig
from models.registry import ClustererConfig
from models.umap_network import UMAPConfig
from pipeline.cluster.fit import FitConfig

_WIDE = 32  # up to here Gaussians describe embeddings directly; beyond, distances lose contrast and UMAP restores it


class ClusterConfig(Config):
    """How a table is clustered."""

    algorithm: ClustererConfig = DPMConfig()
    reduce: ReduceConfig | None = Field(
        None, description=f"umap for embeddings wider than {_WIDE}, none for narrower, when null"
    )
    fit: FitConfig = FitConfig()
    memory_ceiling_bytes: int = Field(4 << 30, ge=1, description="embeddings beyond this are memory-mapped")

    def reduction(self, dim: int) -> ReduceConfig:
        """The reduction that applies to `dim`-d embeddings."""
        if self.reduce is not None:
            return self.reduce
        return UMAPConfig() if dim > _WIDE else NoReduction()


def digest(config: Config) -> str:
    """SHA-256 of the settings as canonical JSON."""
    canonical = json.dumps(config.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
