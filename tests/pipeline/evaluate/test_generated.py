"""Generated data: the law, the stream of random numbers, and subsamples."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from pipeline.evaluate.generated import LABELS_FILE, ROWS_FILE, Components, imbalanced

ORIGINAL = Path("../shared/data/components.py")


def test_components_have_the_law_that_they_are_said_to_have() -> None:
    """20,000 rows of one component about a mean: A A' is recovered from the same stream."""
    law = Components(rows=20_000, dim=3, clusters=1, spread=2.0, seed=4)
    x_ND, label_N = law.draw()
    rng = np.random.default_rng(4)
    rng.random(1), rng.choice(1, size=20_000, p=[1.0])
    mean_D = rng.standard_normal((1, 3))[0] * 2.0
    shape_DD = 0.15 * rng.standard_normal((3, 3)) + np.eye(3) * (0.6 + 0.6 * rng.random())
    assert x_ND.dtype == np.float32
    assert not label_N.any()
    np.testing.assert_allclose(x_ND.mean(axis=0), mean_D, atol=0.05)
    np.testing.assert_allclose(np.cov(x_ND.T), shape_DD @ shape_DD.T, atol=0.08)


def test_means_are_as_far_apart_as_the_spread_says() -> None:
    x_ND, label_N = Components(rows=40_000, dim=16, clusters=200, spread=3.0, seed=0).draw()
    mean_KD = np.stack([x_ND[label_N == k].mean(axis=0) for k in range(200)])
    assert mean_KD.std() == pytest.approx(3.0, rel=0.05)
    share_K = np.bincount(label_N) / len(label_N)  # weights between 0.3 and 1.3, before they are scaled to add to 1
    assert 2.5 < np.quantile(share_K, 0.98) / np.quantile(share_K, 0.02) < 6


def test_files_hold_what_draw_returns(tmp_path: Path) -> None:
    law = Components(rows=500, dim=4, clusters=7, spread=1.2, seed=3)
    law.write(tmp_path)
    x_ND, label_N = law.draw()
    np.testing.assert_array_equal(np.load(tmp_path / ROWS_FILE, allow_pickle=False), x_ND)
    np.testing.assert_array_equal(np.load(tmp_path / LABELS_FILE, allow_pickle=False), label_N)


def test_a_component_without_rows_leaves_the_others_as_they_are() -> None:
    _, label_N = Components(rows=5, dim=2, clusters=30, spread=1.0, seed=0).draw()
    assert len(np.unique(label_N)) <= 5


@pytest.mark.skipif(not ORIGINAL.is_file(), reason="the original generator is not here")
def test_the_stream_is_that_of_the_original() -> None:
    spec = importlib.util.spec_from_file_location("components", ORIGINAL)
    assert spec is not None
    assert spec.loader is not None
    original = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(original)
    x_ND, label_N = Components(rows=3_000, dim=5, clusters=40, spread=0.55, seed=2).draw()
    expected_ND, expected_N = original.components(3_000, 5, 40, 0.55, 2)
    np.testing.assert_array_equal(label_N, expected_N)
    np.testing.assert_array_equal(x_ND, expected_ND)


def test_an_imbalanced_subsample_keeps_from_all_to_a_twentieth_of_a_class() -> None:
    label_N = np.repeat(np.array(list("abcde")), 20_000)
    kept_N = imbalanced(label_N, seed=1)
    share_L = np.sort([kept_N[label_N == name].mean() for name in "abcde"])
    np.testing.assert_allclose(share_L, [0.05, 0.2875, 0.525, 0.7625, 1.0], atol=0.02)
    assert share_L[-1] == 1.0
    np.testing.assert_array_equal(kept_N, imbalanced(label_N, seed=1))
    orders = {
        tuple(np.argsort([imbalanced(label_N, seed)[label_N == name].mean() for name in "abcde"])) for seed in range(5)
    }
    assert len(orders) > 1
