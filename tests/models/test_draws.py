"""Numbers by counter: splitmix64's own, and boxes of torchvision's distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torchvision.transforms import v2

from models.draws import ATTEMPTS, SLOTS, crop_box, draw, stream, uniform
from models.views_config import Bank, ViewsConfig

ROWS = np.arange(4000, dtype=np.int64) * 7919 - 10**12


def numbers(rows: int = 4000, seed: int = 0) -> np.ndarray:
    return uniform(seed, 0, ROWS[:rows], range(1), SLOTS)


def test_the_stream_is_splitmix64_as_published() -> None:
    """First outputs of state 1234567 as printed by the authors' C program (Rosetta Code lists them)."""
    assert stream(np.array([1234567], np.uint64), 3)[0].tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


def test_numbers_are_uniform_and_independent_across_keys() -> None:
    u_RS = uniform(3, 1, ROWS, range(2), 4)
    assert stats.kstest(u_RS.ravel(), "uniform").pvalue > 1e-3
    columns = [u_RS[:4000, 0], u_RS[:4000, 1], u_RS[4000:, 0], uniform(3, 2, ROWS, range(1), 1)[:, 0]]
    columns.append(uniform(4, 1, ROWS, range(1), 1)[:, 0])
    off_diagonal = np.corrcoef(columns) - np.eye(len(columns))
    assert abs(off_diagonal).max() < 5 / math.sqrt(len(ROWS))


@given(
    seed=st.integers(-(2**70), 2**70),
    epoch=st.integers(0, 10_000),
    row=st.integers(-(2**63), 2**63 - 1),
    view=st.integers(0, 20),
)
def test_numbers_of_a_view_depend_on_its_own_keys_alone(seed: int, epoch: int, row: int, view: int) -> None:
    alone = uniform(seed, epoch, np.array([row]), range(view, view + 1), SLOTS)[0]
    among = uniform(seed, epoch, np.array([5, row, -1]), range(view + 2), SLOTS).reshape(view + 2, 3, SLOTS)
    assert np.array_equal(among[view, 1], alone)
    others = [uniform(seed + 1, epoch, np.array([row]), range(view, view + 1), SLOTS)[0]]
    others += [uniform(seed, epoch + 1, np.array([row]), range(view, view + 1), SLOTS)[0], among[view + 1, 1]]
    assert all((other != alone).all() for other in others)


@pytest.mark.parametrize("area", [(0.14, 1.0), (0.05, 0.14), (0.3, 0.3)])
def test_boxes_have_torchvisions_distribution(area: tuple[float, float]) -> None:
    """Heights, widths and both positions, by Kolmogorov's test of two samples."""
    height, width = 300, 400
    ours = crop_box(area, numbers()[:, : 2 * ATTEMPTS + 2], height, width)
    torch.manual_seed(0)
    crop, image = v2.RandomResizedCrop(8, scale=area), torch.empty(3, height, width)
    drawn = [crop.make_params([image]) for _ in range(2000)]
    for mine, name in zip(ours, ("top", "left", "height", "width"), strict=True):
        assert stats.ks_2samp(mine, [each[name] for each in drawn]).pvalue > 1e-3, name


def test_area_is_uniform_and_aspect_log_uniform_where_every_box_fits() -> None:
    _, _, height_R, width_R = crop_box((0.05, 0.14), numbers()[:, : 2 * ATTEMPTS + 2], 4000, 4000)
    assert stats.kstest(height_R * width_R / 4000**2, "uniform", args=(0.05, 0.09)).pvalue > 1e-3
    aspect = np.log(width_R / height_R)
    assert stats.kstest(aspect, "uniform", args=(math.log(3 / 4), math.log(16 / 9))).pvalue > 1e-3


@given(height=st.integers(1, 600), width=st.integers(1, 600), low=st.floats(0.001, 1.0))
def test_a_box_lies_within_an_image_of_any_shape(height: int, width: int, low: float) -> None:
    top, left, box_height, box_width = crop_box((low, 1.0), numbers(50)[:, : 2 * ATTEMPTS + 2], height, width)
    assert (box_height >= 1).all() and (box_width >= 1).all() and (top >= 0).all() and (left >= 0).all()
    assert (top + box_height <= height).all() and (left + box_width <= width).all()


def test_an_image_too_long_for_any_box_gives_its_centre() -> None:
    box = crop_box((1.0, 1.0), numbers(20)[:, : 2 * ATTEMPTS + 2], 30, 300)
    assert [set(each.tolist()) for each in box] == [{0}, {130}, {30}, {40}]  # 30 high, 30 · 4/3 wide


def test_events_come_as_often_and_as_strong_as_asked() -> None:
    policy = ViewsConfig(rotate=20, blur=0.25, jitter=0.6, gamma=0.7).chances
    drawn = draw(policy, Bank(size=224, count=1, area=(0.2, 1.0)), numbers(), 50, 50)
    rates = [drawn.flip_R.mean(), drawn.grey_R.mean(), (drawn.blur_R > 0).mean(), (drawn.hue_R != 0).mean()]
    assert np.allclose(rates, [0.5, 0.2, 0.25, 0.6], atol=0.03)
    assert stats.kstest(drawn.angle_R, "uniform", args=(-20, 40)).pvalue > 1e-3
    assert stats.kstest(drawn.blur_R[drawn.blur_R > 0], "uniform", args=(0.1, 1.9)).pvalue > 1e-3
    changed = drawn.hue_R != 0
    assert stats.kstest(drawn.hue_R[changed], "uniform", args=(-0.2, 0.4)).pvalue > 1e-3
    assert (drawn.gamma_R[~changed] == 1).all()
    assert stats.kstest(np.log(drawn.gamma_R[changed]), "uniform", args=(-0.7, 1.4)).pvalue > 1e-3
    for factor in (drawn.brightness_R, drawn.contrast_R, drawn.saturation_R):
        assert (factor[~changed] == 1).all()
        assert stats.kstest(factor[changed], "uniform", args=(0.2, 1.6)).pvalue > 1e-3


def test_a_small_crop_is_blurred_in_proportion() -> None:
    radius = {
        size: draw(ViewsConfig(blur=1.0).chances, Bank(size=size, count=1, area=(0.2, 1.0)), numbers(), 50, 50).blur_R
        for size in (32, 96, 224)
    }
    assert np.array_equal(radius[96], radius[224]) and np.allclose(radius[32], radius[96] / 3)


def test_one_setting_leaves_the_other_events_as_they_were() -> None:
    bank, u_RS = Bank(size=96, count=1, area=(0.1, 1.0)), numbers(100)
    plain, other = (draw(p.chances, bank, u_RS, 50, 50) for p in (ViewsConfig(), ViewsConfig(hue=0.0, blur=1.0)))
    assert np.array_equal(plain.top_R, other.top_R) and np.array_equal(plain.brightness_R, other.brightness_R)
    assert np.array_equal(plain.grey_R, other.grey_R) and not np.array_equal(plain.blur_R, other.blur_R)
