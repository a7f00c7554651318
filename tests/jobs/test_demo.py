"""The demo's digits are scikit-learn's, as images."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from jobs.config import RunConfig
from jobs.demo import Digits
from pipeline.ingest.digits import COUNT, digits
from pipeline.ingest.shards import Sample, read_samples
from pipeline.progress import silent


def test_every_digit_is_an_image_of_its_ink_with_its_label() -> None:
    data, samples = load_digits(), list(digits())
    assert len(samples) == COUNT == len(data.images)
    for sample, ink_88, digit in zip(samples, data.images, data.target, strict=True):
        with Image.open(io.BytesIO(sample.image)) as image:
            assert (image.mode, image.size) == ("L", (8, 8))
            np.testing.assert_allclose(np.asarray(image, float) * 16 / 255, ink_88, atol=0.04)  # half a grey level
        assert sample.label == str(digit)


def test_they_are_written_as_shards_that_read_back(tmp_path: Path) -> None:
    config = RunConfig.model_validate({"shards": {"images_per_shard": 1_000}})
    figures = Digits(str(tmp_path), config).run(silent)
    assert (figures.values["images"], figures.values["shards"]) == (1_797, 2)
    read = [item for shard in sorted(tmp_path.glob("*.tar")) for item in read_samples(str(shard))]
    assert all(isinstance(item, Sample) for item in read)
    assert Counter(item.label for item in read) == Counter(str(digit) for digit in load_digits().target)
