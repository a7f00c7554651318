"""The settings of a backbone, apart from what loads one: reading settings should not cost an import of torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from models.config import Config

DEFAULT_NAME = "pypi/efficientnet_lite0"

Precision = Literal["fp32", "bf16", "fp16"]


class BackboneConfig(Config):
    """Which backbone, with which weights, on images of which size, computed how.

    Where `weights` names an artifact, the artifact says what else it is; a setting that is given wins, but for a
    name that is not the artifact's, which is an error.
    """

    name: str = DEFAULT_NAME
    weights: str = Field(
        default="default",
        description="default: what the library publishes, random with a warning where it cannot be had; hub: the same "
        "without that fallback; random: drawn from seed; else the path of a checkpoint or of a backbone artifact",
    )
    size: PositiveInt | None = Field(
        default=None, description="pixels; null: what the backbone was trained on (pixels: 32)"
    )
    grey: bool | None = Field(default=None, description="null: as the artifact says, else false")
    l2_normalise: bool | None = Field(default=None, description="null: as the artifact says, else false")
    precision: Precision | None = Field(
        default=None,
        description="null: as the artifact says, else fp32; bf16 and fp16 are autocast, fp16 on a GPU only",
    )
    compile: bool = Field(
        default=False, description="torch.compile, a minute per worker; embeddings stay the same up to rounding"
    )
    seed: int = 0
