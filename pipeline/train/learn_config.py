"""Settings of learning a backbone from images: what is minimised, views, how images are read, and the training loop."""

from __future__ import annotations

from pydantic import Field

from models.config import Config
from models.swav.config import SwAVConfig
from models.views_config import ViewsConfig
from pipeline.train.config import TrainConfig
from pipeline.train.images.config import ImagesConfig

# Caron et al. 2020, batches of 256: SGD with LARC, from .6 to .0006 by cosine, without warm-up.
_LOOP = TrainConfig(
    batch_size=256,
    epochs=200,
    optimizer="lars",
    lr=0.6,
    schedule="cosine",
    final_lr=1e-3,
    momentum=0.9,
    weight_decay=1e-6,
    seed=31,
)


class LearnConfig(Config):
    """How a backbone is learned; which one is said by the settings of backbones."""

    objective: SwAVConfig = Field(default_factory=SwAVConfig)
    views: ViewsConfig = Field(default_factory=ViewsConfig)
    images: ImagesConfig = Field(default_factory=ImagesConfig)
    loop: TrainConfig = _LOOP
