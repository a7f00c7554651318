"""Geometry and colour of many images at once do to each image what torchvision does to one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import functional as image_ops

from models import pixels

SIZES = st.integers(1, 40)


def levels(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)).float()


def smooth(images: int, size: int) -> Tensor:
    """Images with large areas, where filters are compared best; saturated and grey pixels among them."""
    coarse = levels(images, 3, 5, 5).round().to(torch.uint8)
    coarse[:, :, 0, 0], coarse[:, 0, 1, 1], coarse[:, :, 2, 2] = 90, 255, 0
    return image_ops.resize(coarse, [size, size]).float()


@settings(deadline=None, max_examples=60)
@given(
    data=st.data(),
    height=SIZES,
    width=SIZES,
    size=st.integers(2, 40),
    channels=st.sampled_from([1, 3]),
    flip=st.booleans(),
)
def test_any_box_is_resized_as_by_torchvision_to_one_grey_level(
    data: st.DataObject, height: int, width: int, size: int, channels: int, flip: bool
) -> None:
    box_height, box_width = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    top, left = data.draw(st.integers(0, height - box_height)), data.draw(st.integers(0, width - box_width))
    image_1CHW = levels(1, channels, height, width, seed=height * width + size)

    row = pixels.resize_weights(np.array([top]), np.array([box_height]), size, height)
    column = pixels.resize_weights(np.array([left]), np.array([box_width]), size, width, np.array([flip]))
    ours = pixels.resample(image_1CHW, row, column)

    byte_image = image_1CHW.to(torch.uint8)
    theirs = image_ops.resized_crop(byte_image, top, left, box_height, box_width, [size, size], antialias=True)
    theirs = image_ops.horizontal_flip(theirs) if flip else theirs
    assert (ours - theirs.float()).abs().max() <= 1


def test_weights_that_are_looked_up_are_those_that_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    start, end = np.triu_indices(13, 1)  # every part of 12 pixels
    flip = start % 2 == 0
    looked_up = pixels.resize_weights(start, end - start, 5, 12, flip)
    monkeypatch.setattr(pixels, "TABLE_NUMBERS", 0)
    assert torch.equal(looked_up, pixels.resize_weights(start, end - start, 5, 12, flip))


def test_weights_of_halving_four_pixels_by_hand() -> None:
    """Triangles of half-width 2 pixels about 1 and 3: distances .5, .5, 1.5 give 3/4, 3/4, 1/4 before they sum to 1."""
    weights = pixels.resize_weights(np.array([0]), np.array([4]), 2, 4)[0] / pixels.UNIT
    assert torch.allclose(weights, torch.tensor([[3, 3, 1, 0], [0, 1, 3, 3]]) / 7, atol=1 / pixels.UNIT)


@pytest.mark.parametrize("level", [0, 1, 128, 255])
def test_a_constant_image_stays_as_it_is_under_geometry(level: int) -> None:
    image = torch.full((2, 3, 9, 9), float(level))
    weights = pixels.resize_weights(np.array([0, 3]), np.array([9, 4]), 7, 9)
    assert pixels.resample(image, weights, weights).unique().tolist() == [level]
    assert pixels.blur(image, np.array([0.1, 3.0])).unique().tolist() == [level]
    assert pixels.turn(image, np.array([15.0, 90.0])).unique().tolist() == [level]


Colour = Callable[[Tensor, Any], Tensor]
FACTORS, SHIFTS = [0.0, 0.3, 1.0, 1.8], [-0.5, -0.17, 0.0, 0.2]
COLOURS: list[tuple[int, Colour, Colour, list[float]]] = [
    (1, pixels.scale_brightness, image_ops.adjust_brightness, FACTORS),
    (3, pixels.scale_brightness, image_ops.adjust_brightness, FACTORS),
    (1, pixels.apply_gamma, image_ops.adjust_gamma, [0.4, 0.7, 1.0, 2.0]),
    (3, pixels.apply_gamma, image_ops.adjust_gamma, [0.4, 0.7, 1.0, 2.0]),
    (1, pixels.scale_contrast, image_ops.adjust_contrast, FACTORS),
    (3, pixels.scale_contrast, image_ops.adjust_contrast, FACTORS),
    (3, pixels.scale_saturation, image_ops.adjust_saturation, FACTORS),
    (3, pixels.shift_hue, image_ops.adjust_hue, SHIFTS),
]


@pytest.mark.parametrize(("channels", "ours", "theirs", "numbers"), COLOURS)
def test_colour_changes_as_by_torchvision(channels: int, ours: Colour, theirs: Colour, numbers: list[float]) -> None:
    """It cuts decimals off where we round, and its grey is a level lower at times: two levels at most."""
    image = smooth(4, 16)[:, :channels]
    changed = ours(image.clone(), np.array(numbers))
    expected = torch.stack([theirs(each.to(torch.uint8), n) for each, n in zip(image, numbers, strict=True)])
    assert (changed - expected.float()).abs().max() <= 2
    assert (changed - image).abs().max() > 10  # something did change


def test_neutral_numbers_change_no_level() -> None:
    image, one, zero = levels(2, 3, 16, 16), np.ones(2), np.zeros(2)
    for change in (pixels.apply_gamma, pixels.scale_brightness, pixels.scale_contrast, pixels.scale_saturation):
        assert torch.equal(change(image.clone(), one), image)
    assert torch.equal(pixels.shift_hue(image.clone(), zero), image)
    assert torch.equal(pixels.turn(image, zero), image)


def test_hue_turns_red_to_green_to_blue_by_hand() -> None:
    red = torch.tensor([200.0, 0.0, 0.0]).view(1, 3, 1, 1).repeat(3, 1, 1, 1)
    assert pixels.shift_hue(red, np.array([0.0, 1 / 3, -1 / 3]))[:, :, 0, 0].tolist() == [
        [200, 0, 0],
        [0, 200, 0],
        [0, 0, 200],
    ]


def test_without_colour_every_channel_is_luma() -> None:
    image = levels(2, 3, 4, 4)
    grey = pixels.without_colour(image)
    expected = image_ops.rgb_to_grayscale(image.to(torch.uint8), 3).float()
    assert (grey - expected).abs().max() <= 1 and torch.equal(grey[:, 0], grey[:, 2])


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
def test_blur_is_torchvisions_away_from_the_edge(sigma: float) -> None:
    image = smooth(2, 40)
    ours = pixels.blur(image.clone(), np.array([sigma, sigma]))
    theirs = image_ops.gaussian_blur(image.to(torch.uint8), [23, 23], [sigma, sigma])
    assert (ours - theirs)[:, :, 10:-10, 10:-10].abs().max() <= 1
    assert (ours - image).abs().max() > 2


def test_turn_is_torchvisions_rotation_away_from_the_edge() -> None:
    image = smooth(2, 40)
    ours = pixels.turn(image, np.array([15.0, -40.0]))
    bilinear = image_ops.InterpolationMode.BILINEAR
    theirs = torch.stack(
        [image_ops.rotate(each, angle, bilinear) for each, angle in zip(image, (15.0, -40.0), strict=True)]
    )
    assert (ours - theirs)[:, :, 12:-12, 12:-12].abs().max() <= 1
    assert (ours - image).abs().max() > 2


def test_every_image_is_treated_alone_whatever_the_batch() -> None:
    image, many = levels(70, 3, 12, 12), np.linspace(0.2, 1.8, 70)
    steps: list[Callable[[Tensor, Any], Tensor]] = [
        pixels.scale_contrast,
        pixels.scale_saturation,
        lambda x, n: pixels.shift_hue(x, n - 1),
        pixels.blur,
        lambda x, n: pixels.turn(x, 20 * n),
    ]
    for step in steps:
        together = step(image.clone(), many)
        alone = torch.cat([step(image[i : i + 1].clone(), many[i : i + 1]) for i in range(70)])
        assert torch.equal(together, alone)
