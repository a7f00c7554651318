"""Views are a pure function of (seed, epoch, row, view number), in banks, for every policy and any image."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from models.errors import ShoalError
from models.views import ROWS_AT_ONCE, Views
from models.views_config import Bank, ViewsConfig

BANKS = (Bank(size=12, count=2, area=(0.3, 1.0)), Bank(size=7, count=3, area=(0.1, 0.4)))
POLICIES = ("colour", "grey", "digits")


def config(policy: str = "colour", base: int | None = 16, **changes: float) -> ViewsConfig:
    return ViewsConfig.model_validate({"policy": policy, "banks": BANKS, "base": base, **changes})


def images(count: int, channels: int = 3, size: int = 16) -> Tensor:
    shape = (count, channels, size, size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def hashes(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(-(2**63), 2**63, count, dtype=np.int64)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("channels", [1, 3])
def test_views_come_in_the_order_of_banks_as_bytes(policy: str, channels: int) -> None:
    views = Views(config(policy), channels, seed=0)
    batch = views.of_batch(images(5, channels), hashes(5), epoch=0)
    assert [view.shape for view in batch] == [(5, channels, size, size) for size in (12, 12, 7, 7, 7)]
    single = views.of_image(images(1, 3, size=20)[0], row=1, epoch=0)
    assert [view.shape for view in single] == [(channels, size, size) for size in (12, 12, 7, 7, 7)]
    assert {view.dtype for view in batch + single} == {torch.uint8} and all(v.is_contiguous() for v in batch)


@settings(deadline=None, max_examples=25)
@given(
    data=st.data(),
    count=st.integers(1, 2 * ROWS_AT_ONCE),
    policy=st.sampled_from(POLICIES),
    channels=st.sampled_from([1, 3]),
)
def test_a_view_depends_on_neither_the_batch_nor_its_order(
    data: st.DataObject, count: int, policy: str, channels: int
) -> None:
    image_BCHW, row_B = images(count, channels), hashes(count)
    views = Views(config(policy, rotate=10.0), channels, seed=1)
    whole = views.of_batch(image_BCHW, row_B, epoch=3)
    part = np.array(data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=5)))
    some = Views(config(policy, rotate=10.0), channels, seed=1).of_batch(image_BCHW[part], row_B[part], epoch=3)
    assert all(torch.equal(view[part], other) for view, other in zip(whole, some, strict=True))


def test_seed_epoch_and_row_each_change_every_view_and_views_differ() -> None:
    image_BCHW, row_B = images(20), hashes(20)
    usual = Views(config(), 3, seed=0).of_batch(image_BCHW, row_B, 0)
    for other in (
        Views(config(), 3, seed=1).of_batch(image_BCHW, row_B, 0),
        Views(config(), 3, seed=0).of_batch(image_BCHW, row_B, 1),
        Views(config(), 3, seed=0).of_batch(image_BCHW, row_B + 1, 0),
    ):
        assert all((a != b).flatten(1).any(1).all() for a, b in zip(usual, other, strict=True))
    assert not torch.equal(usual[0], usual[1])


def test_no_global_generator_is_read_and_threads_may_share_views() -> None:
    views, image_BCHW, row_B = Views(config(), 3, seed=0), images(20), hashes(20)
    before = torch.get_rng_state()
    expected = [views.of_batch(image_BCHW, row_B, epoch) for epoch in range(8)]
    with ThreadPoolExecutor(4) as threads:
        got = list(threads.map(lambda epoch: views.of_batch(image_BCHW, row_B, epoch), range(8)))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for pair in zip(expected, got, strict=True) for a, b in zip(*pair, strict=True))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("channels", [1, 3])
def test_one_image_has_the_views_that_it_has_in_a_batch(policy: str, channels: int) -> None:
    """Up to two roundings of the resize, which jitter may enlarge."""
    views, image = Views(config(policy, hue=0.0, saturation=0.0), channels, seed=0), images(1)[0]
    batch = views.of_batch(views.base_image(image)[None], np.array([99]), epoch=2)
    for alone, view in zip(views.of_image(image, 99, epoch=2), batch, strict=True):
        assert (alone.int() - view[0].int()).abs().max() <= 4


@pytest.mark.parametrize("shape", [(1, 500), (500, 1), (1, 1), (3, 2), (90, 31)])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_of_any_shape_has_views(shape: tuple[int, int], channels: int) -> None:
    image = torch.full((3, *shape), 200, dtype=torch.uint8)
    flat = config(jitter=0.0, blur=1.0, rotate=30.0)
    for view in Views(flat, channels, seed=0).of_image(image, 5, epoch=0):
        assert view.unique().tolist() == [200]
    assert Views(flat, channels, seed=0).base_image(image).shape == (channels, 16, 16)


def test_digits_are_neither_mirrored_nor_recoloured_but_turned() -> None:
    digits = config("digits").resolved
    assert (digits.flip, digits.jitter, digits.grey, digits.blur, digits.rotate) == (0, 0, 0, 0, 15)
    left_half = torch.zeros(64, 1, 16, 16, dtype=torch.uint8)
    left_half[..., :8] = 255
    whole = {"banks": (Bank(size=16, count=1, area=(1.0, 1.0)),)}
    (view,) = Views(config("digits", **whole), 1, 0).of_batch(left_half, hashes(64), 0)
    assert (view[:, 0, :, :4].float().mean((1, 2)) > 200).all()  # no mirror: what is bright stays left
    assert len(view.flatten(1).unique(dim=0)) > 50  # angles differ
    (still,) = Views(config("digits", rotate=0.0, **whole), 1, 0).of_batch(left_half, hashes(64), 0)
    assert torch.equal(still, left_half)


def test_grey_objects_are_mirrored_and_lit_and_colours_keep_their_hue() -> None:
    grey = config("grey").resolved
    assert grey.flip == 0.5 and grey.brightness and grey.contrast and not grey.hue and not grey.saturation
    red = torch.zeros(32, 3, 16, 16, dtype=torch.uint8)
    red[:, 0] = 100
    (view, *_) = Views(config("grey", contrast=0.0), 3, 0).of_batch(red, hashes(32), 0)
    assert view[:, 1:].max() == 0 and len(view[:, 0].unique()) > 10


def test_null_takes_the_policys_value_and_a_number_replaces_it() -> None:
    resolved = config("colour", hue=0.05, flip=0.0).resolved
    assert (resolved.hue, resolved.flip, resolved.brightness, resolved.grey) == (0.05, 0.0, 0.8, 0.2)
    assert None not in resolved.model_dump(exclude={"base"}).values() and resolved.resolved == resolved


def test_the_defaults_are_the_published_eight_views() -> None:
    views = ViewsConfig()
    assert views.views == 8 and views.sizes == (224, 224, 96, 96, 96, 96, 96, 96)
    assert [bank.area for bank in views.banks] == [(0.14, 1.0), (0.05, 0.14)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"banks": ()},
        {"banks": [{"size": 0, "count": 1, "area": (0.1, 1)}]},
        {"banks": [{"size": 8, "count": 1, "area": (0.5, 0.1)}]},
        {"banks": [{"size": 8, "count": 1, "area": (0, 1)}]},
        {"flip": 1.5},
        {"hue": 0.6},
        {"brightness": -0.1},
        {"policy": "sepia"},
        {"solarize": 0.1},
    ],
)
def test_settings_out_of_bounds_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ViewsConfig.model_validate(wrong)


def test_a_base_image_needs_a_base() -> None:
    with pytest.raises(ShoalError, match=r"views\.base"):
        Views(config(base=None), 3, seed=0).base_image(images(1)[0])
