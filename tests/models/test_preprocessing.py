"""Images of any size become fixed uint8 tensors, and floats only inside the network."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

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


@pytest.mark.parametrize(("fit", "short_side"), [("crop", 10), ("squash", 8)])
def test_short_side_is_where_prepare_stops_reducing(fit: str, short_side: int) -> None:
    """A line of one pixel is blurred by reducing; at the short side itself it comes through untouched."""
    preprocessing = Preprocessing(size=8, resize=10, fit=fit)
    assert preprocessing.short_side == short_side
    image_3HW = torch.zeros(3, short_side, short_side, dtype=torch.uint8)
    image_3HW[:, :, 5] = 200
    assert preprocessing.prepare(image_3HW).unique().tolist() == [0, 200]
    larger_3HW = image_3HW.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    assert preprocessing.prepare(larger_3HW).unique().tolist() != [0, 200]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"channels": 1}, "set grey"),
        ({"mean": (0.0, 0.0)}, "one value, or one for each of 3 channels"),
        ({"std": (0.0,)}, "std above 0"),
        ({"mean": (float("nan"),)}, "mean must be finite"),
        ({"size": 5000}, "at most 4096"),
        ({"resize": 40}, "at most 4 times size"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Preprocessing.model_validate({"size": 8, "resize": 10, **wrong})


def test_another_size_keeps_the_share_that_is_cropped() -> None:
    assert Preprocessing(size=224, resize=256).at_size(112) == Preprocessing(size=112, resize=128)
    odd = Preprocessing(size=28, resize=33)
    assert odd.at_size(28) is odd


@given(value=st.integers(0, 255), mean=st.floats(0, 1), std=st.floats(0.1, 1))
def test_normalise_is_the_formula_in_channels_last_order(value: int, mean: float, std: float) -> None:
    preprocessing = Preprocessing(size=4, resize=4, mean=(mean, 0.0, 0.5), std=(std,))
    image_B3SS = torch.full((2, 3, 4, 4), value, dtype=torch.uint8)
    exact_B3SS = (image_B3SS.double() / 255 - torch.tensor([mean, 0.0, 0.5]).double()[:, None, None]) / std
    found_B3SS = preprocessing.normalise(image_B3SS)
    assert found_B3SS.dtype == torch.float32 and found_B3SS.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found_B3SS.double(), exact_B3SS, rtol=1e-5, atol=3e-6)
    rough_B3SS = preprocessing.normalise(image_B3SS, torch.bfloat16)
    assert torch.equal(rough_B3SS, found_B3SS.bfloat16())  # rounded once
