"""Settings of evaluation."""

from __future__ import annotations

from pydantic import Field

from models.config import Config
from pipeline.evaluate.probe_config import ProbeConfig


class EvaluateConfig(Config):
    """How scores are sampled, and features probed."""

    sample_rows: int = Field(5_000, ge=2, description="rows that the silhouette is taken over")
    seed: int = Field(0, ge=0)
    probe: ProbeConfig = ProbeConfig()
