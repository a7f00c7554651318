"""Classifiers on frozen features: votes by hand, and the linear probe beside scikit-learn's own."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import make_blobs
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from models.errors import ShoalError
from models.probes import Features, best_strength, linear_probe, unit_rows, weighted_knn

# Cosines with (1, 0): 1 of class 0; .8, .8 and .6 of class 1. Lengths differ, which must not matter.
TRAIN = np.array([[5, 0], [0.8, 0.6], [1.6, -1.2], [0.3, 0.4]], np.float32)
CLASSES = np.array([0, 1, 1, 1])
ASKED = np.array([[2, 0]], np.float32)


@pytest.mark.parametrize(
    ("k", "temperature", "voted"),
    [
        (1, 0.07, 0),  # 1 against 0
        (3, 0.07, 0),  # exp(0) against 2 exp(-.2 / .07) = .11
        (3, 0.2, 0),  # 1 against 2 exp(-1) = .74
        (3, 0.4, 1),  # 1 against 2 exp(-.5) = 1.21
        (4, 0.25, 1),  # 1 against 2 exp(-.8) + exp(-1.6) = 1.10
        (4, 0.24, 1),  # 1 against 2 exp(-.833) + exp(-1.667) = 1.06
        (4, 0.22, 0),  # 1 against 2 exp(-.909) + exp(-1.818) = .968
        (99, 0.25, 1),  # as of 4: there are no more
    ],
)
def test_neighbours_vote_by_their_cosine(k: int, temperature: float, voted: int) -> None:
    assert weighted_knn(TRAIN, CLASSES, ASKED, k, temperature).tolist() == [voted]


def test_the_first_of_classes_with_equal_votes_wins_at_the_smallest_temperature_too() -> None:
    x_ND = np.array([[1, 0], [1, 0], [-1, 0]], np.float32)
    assert weighted_knn(x_ND, np.array([2, 1, 0]), ASKED, 3, 1e-3).tolist() == [1]


def test_rows_of_zeros_have_no_direction() -> None:
    np.testing.assert_array_equal(unit_rows(np.array([[3, 4], [0, 0]], np.float32)), np.float32([[0.6, 0.8], [0, 0]]))


@pytest.fixture(scope="module")
def blobs() -> tuple[Features, np.ndarray]:
    """Four classes in six dimensions of very different spread, which overlap; the last dimension never varies."""
    x_ND, class_N = make_blobs(600, 6, centers=4, cluster_std=6.0, random_state=0)
    return np.float32(np.hstack([x_ND * [1, 100, 1e-3, 10, 1, 1], np.full((600, 1), 7.0)])), class_N


def test_the_linear_probe_is_scikit_learns_on_standardised_rows(blobs: tuple[Features, np.ndarray]) -> None:
    """Mean loss with strength / 2 |w|^2 is summed loss with C = 1 / (strength N)."""
    x_ND, class_N = blobs[0][:400], blobs[1][:400]
    for strength in (1.0, 1e-3):
        model = LogisticRegression(C=1 / (strength * 400), tol=1e-8, max_iter=5_000)
        expected = make_pipeline(StandardScaler(), model).fit(x_ND.astype(np.float64), class_N)
        found = linear_probe(x_ND, class_N, blobs[0][400:], strength, 500)
        assert np.mean(found == expected.predict(blobs[0][400:])) >= 0.99  # a row or two on the border, in float32
        assert 0.5 < np.mean(found == blobs[1][400:]) < 1


def test_a_feature_that_never_varied_in_training_counts_for_nothing(blobs: tuple[Features, np.ndarray]) -> None:
    moved_ND = blobs[0].copy()
    moved_ND[:, -1] = 1e9
    for x_ND in (blobs[0], moved_ND):
        found = linear_probe(blobs[0], blobs[1], x_ND, 1e-2, 100)
        assert np.mean(found == blobs[1]) > 0.5
    np.testing.assert_array_equal(found, linear_probe(blobs[0], blobs[1], blobs[0], 1e-2, 100))


def test_the_strength_is_the_one_that_held_out_rows_prefer() -> None:
    """One feature tells the classes, 60 are noise: with 200 train rows a weak penalty learns the noise."""
    rng = np.random.default_rng(0)
    class_N = np.arange(600) % 2
    x_ND = np.float32(np.hstack([(class_N * 2 - 1 + rng.normal(size=600))[:, None], rng.normal(size=(600, 60))]))
    held_out_N = np.arange(600) >= 200
    strengths = (1e-6, 1.0, 1e-3)
    assert best_strength(x_ND, class_N, held_out_N, strengths, 200) == 1.0
    part = (x_ND[~held_out_N], class_N[~held_out_N], x_ND[held_out_N])
    right = {each: np.mean(linear_probe(*part, each, 200) == class_N[held_out_N]) for each in strengths}
    assert max(right, key=lambda each: right[each]) == 1.0
    assert right[1.0] > right[1e-6] + 0.02


def test_of_equally_good_strengths_the_largest_is_taken_and_the_middle_one_where_nothing_tells() -> None:
    x_ND, class_N = np.float32([[-1], [-2], [1], [2], [-1], [1]]), np.array([0, 0, 1, 1, 0, 1])
    held_out_N = np.array([False] * 4 + [True] * 2)
    assert best_strength(x_ND, class_N, held_out_N, (1e-3, 1e-1, 1e-2), 50) == 1e-1
    assert best_strength(x_ND, class_N, np.zeros(6, bool), (1e-3, 1e-1, 1e-2), 50) == 1e-2
    assert best_strength(x_ND, class_N, class_N == 1, (1e-3, 1e-1, 1e-2), 50) == 1e-2


def test_one_class_is_nothing_to_learn() -> None:
    with pytest.raises(ShoalError, match="two labels at least"):
        linear_probe(TRAIN, np.zeros(4, np.int64), ASKED, 1.0, 10)
