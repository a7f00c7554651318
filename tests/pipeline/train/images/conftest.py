"""Shards of images in a test's own folder, and sources over them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for image_shards

from image_shards import IMAGES, PIXELS, SMALL, write_folder

from models.preprocessing import Preprocessing
from models.views_config import ViewsConfig
from pipeline.tables.place import Place
from pipeline.train.images.feed import ImageSource
from pipeline.train.images.index import index_shards


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    return write_folder(tmp_path / "shards")


@pytest.fixture
def source_of(shards: list[str], tmp_path: Path) -> Callable[..., ImageSource]:
    """A source over the shards, with other settings where they are given."""

    def make(
        views: ViewsConfig = SMALL, pixels: Preprocessing = PIXELS, folder: Place = tmp_path / "index", **images: object
    ) -> ImageSource:
        index = index_shards(shards, folder)
        return ImageSource.of(index, IMAGES.model_copy(update=images), views, pixels, seed=3)

    return make
