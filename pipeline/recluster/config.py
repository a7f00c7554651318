"""Settings of incremental reclustering."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from models.config import Config
from models.drift import NoveltyConfig

Mode = Literal["assign", "refine", "refit"]


class ReclusterConfig(Config):
    """When new rows change a model, and how much is read again for it."""

    mode: Literal["auto", "assign", "refine", "refit"] = Field(
        "auto", description="auto decides by tests; the others are done whatever the tests say"
    )
    decay: float = Field(
        1.0, gt=0, le=1, description="what old statistics are multiplied by when rows arrive; less than 1 forgets"
    )
    novelty: NoveltyConfig = NoveltyConfig()
    lost: float = Field(0.1, gt=0, le=1, description="share of a cluster's rows whose going makes a refinement due")
    swelling: float = Field(
        1.0, gt=0, description="arrivals of a cluster since the model last changed, as a share of its other rows"
    )
    growth: float = Field(1.0, gt=0, description="rows since the last full fit, as a share of its rows, until the next")
    foreign: float = Field(
        0.2, gt=0, le=1, description="share of all rows that arrived with a low score at which a full fit is due"
    )
    reread_rows: int = Field(32_768, ge=0, description="old rows that a refinement may read again, at least")
    reread_fraction: float = Field(0.05, ge=0, le=1, description="likewise, as a share of all rows; the larger counts")
    settle_fraction: float = Field(
        0.5, ge=0, le=1, description="share of all rows that splits may label anew; beyond, a full fit is due"
    )
    fold_after: int = Field(8, ge=1, description="statistics that are kept as differences before they are added up")
    keep_generations: int | None = Field(
        None, ge=1, description="older generations are ended and their files removed; null keeps all"
    )
    epochs: int = Field(
        5, ge=1, description="deepdpm: epochs of training on the arrivals and a sample of older rows, at least"
    )
