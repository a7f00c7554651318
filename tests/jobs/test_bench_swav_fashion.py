"""The benchmark `swav-fashion`: its images, its command, and its bars."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.bench import swav_fashion
from jobs.bench.images import LABELS_FILE, PIXELS_FILE, TEST_FILES, Size, fashion, fashion_test
from jobs.bench.registry import BENCHMARKS
from jobs.figures import Figures
from jobs.probe import Probe
from pipeline.ingest.shards import Sample, read_samples
from pipeline.progress import silent

SMALL = Size(shards=1, images=2)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with a Fashion-MNIST of two images of classes 3 and 4, and two test images of classes 8 and 9."""
    for (pixels, labels), classes in (((PIXELS_FILE, LABELS_FILE), [3, 4]), (TEST_FILES, [8, 9])):
        ink = np.full((2, 28, 28), classes[0], np.uint8)
        for name, code, array in ((pixels, 3, ink), (labels, 1, np.array(classes, np.uint8))):
            header = np.array([0x800 + code, *array.shape], ">i4").tobytes()
            (tmp_path / name).write_bytes(gzip.compress(header + array.tobytes()))
    return tmp_path


def labels_of(shards: list[str]) -> list[str | None]:
    return [item.label for shard in shards for item in read_samples(shard) if isinstance(item, Sample)]


def test_test_images_are_those_of_the_other_files(images: Path) -> None:
    assert labels_of(fashion(images, SMALL)) == ["3", "4"]
    assert labels_of(fashion_test(images, SMALL)) == ["8", "9"]


def test_bars_by_hand(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained in 25 minutes; every score is the bar itself but k-means NMI, which is below; random has better ones."""
    trained: dict[str, Any] = dict.fromkeys(swav_fashion._TRAINING, 1.0) | {"backbone": "shoal/conv4_grey"}
    line = {"features": "backbone", "knn": 0.835, "linear": 0.875, "kmeans_nmi": 0.62, "kmeans_acc": 0.64}
    rows = [{**line, "features": "random weights", "kmeans_nmi": 0.99}, line]
    probed = Figures("probe", {"train_images": 2, "test_images": 2}, {"probes": rows})
    monkeypatch.setattr(swav_fashion, "_train", lambda *_: (trained, 1_500.0))
    monkeypatch.setattr(Probe, "run", lambda *_: probed)
    result = swav_fashion.run(images, silent, train=SMALL, test=SMALL)
    assert [(bar.name, bar.value, bar.holds) for bar in result.bars] == [
        ("knn", 0.835, True),
        ("linear", 0.875, True),
        ("kmeans_nmi", 0.62, False),
        ("kmeans_acc", 0.64, True),
        ("minutes of training", 25.0, False),
    ]
    assert result.figures.tables["probes"] == rows
    assert result.figures.values["train_seconds"] == 1_500.0


def test_it_is_listed_with_every_bar() -> None:
    assert all(f"{bar:g}" in BENCHMARKS["swav-fashion"].bar for bar in swav_fashion._BARS.values())
