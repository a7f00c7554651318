"""Images of any size become fixed uint8 tensors, and floats only inside the network."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.preprocessing import Preprocessing, grey_levels

CROP = Preprocessing(size=8, resize=10)


def test_every_grey_keeps_its_level() -> None:
    level_256 = torch.arange(256, dtype=torch.uint8)
    image_3HW = level_256.expand(3, 1, 256)
    assert torch.equal(grey_levels(image_3HW)[0, 0], level_256)


def test_luma_of_pure_colours_by_hand() -> None:
    colours_3HW = torch.tensor([[[255, 0, 0]], [[0, 255, 0]], [[0, 0, 255]]], dtype=torch.uint8)
    assert grey_levels(colours_3HW).flatten().tolist() == [76, 150, 29]  # .299, .587, .114 of 255


@given(height=st.integers(1, 40), width=st.integers(1, 40), fit=st.sampled_from(["crop", "squash"]), grey=st.booleans())
def test_any_size_gives_one_shape_and_keeps_a_constant_colour(height: int, width: int, fit: str, grey: bool) -> None:
    preprocessing = Preprocessing(size=8, resize=10, fit=fit, grey=grey, interpolation="bicubic")
    image_3HW = torch.full((3, height, width), 77, dtype=torch.uint8)
    prepared = preprocessing.prepare(image_3HW)
    assert prepared.shape == (3, 8, 8) and prepared.dtype == torch.uint8
    assert prepared.is_contiguous() and prepared.unique().tolist() == [77]


def test_crop_keeps_the_centre_of_the_long_side() -> None:
    image_3HW = torch.zeros(3, 10, 30, dtype=torch.uint8)
    image_3HW[:, :, 10:20] = 200
    assert CROP.prepare(image_3HW).unique().tolist() == [200]


def test_squash_keeps_both_ends_of_the_long_side() -> None:
    image_3HW = torch.zeros(3, 10, 30, dtype=torch.uint8)
    image_3HW[:, :, :10] = 200
    squashed = Preprocessing(size=8, resize=8, fit="squash").prepare(image_3HW)
    assert squashed[0, 0, 0] == 200 and squashed[0, 0, -1] == 0


def test_a_very_long_image_does_not_blow_up_and_shows_its_centre() -> None:
    """Its short side scaled to 10 would be 10 × 2,000,000 pixels."""
    image_3HW = torch.zeros(3, 1, 200_000, dtype=torch.uint8)
    image_3HW[:, :, 99_990:100_010] = 200
    assert CROP.prepare(image_3HW).unique().tolist() == [200]


def test_an_image_of_the_right_size_is_not_resampled() -> None:
    image_3HW = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Preprocessing(size=8, resize=8, fit="squash").prepare(image_3HW), image_3HW)


def test_normalise_by_hand() -> None:
    preprocessing = Preprocessing(size=1, resize=1, mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 0.25))
    image_1311 = torch.tensor([0, 255, 51], dtype=torch.uint8).reshape(1, 3, 1, 1)
    assert preprocessing.normalise(image_1311).flatten().tolist() == pytest.approx([0.0, 1.0, -3.2])
