"""scikit-learn's clusterings, as benchmarks call them."""

from __future__ import annotations

import numpy as np

from pipeline.evaluate.baselines import bayesian_mixture, kmeans

# Three pairs of points, far from each other.
X_ND = np.array([[0, 0], [0, 1], [50, 0], [50, 1], [0, 50], [1, 50]], np.float32)


def partition(cluster_N: np.ndarray) -> list[int]:
    return [cluster_N.tolist().index(cluster) for cluster in cluster_N.tolist()]


def test_kmeans_given_three_finds_the_pairs() -> None:
    found = kmeans(X_ND, clusters=3, seed=0)
    assert partition(found.cluster_N) == [0, 0, 2, 2, 4, 4]
    assert found.settled


def test_the_mixture_leaves_spare_components_empty_and_says_when_it_was_cut_short() -> None:
    x_ND = np.concatenate([X_ND + shift for shift in np.random.default_rng(0).normal(size=(40, 1, 2))])
    found = bayesian_mixture(x_ND.astype(np.float32), components=6, seed=0, most_passes=200)
    assert len(np.unique(found.cluster_N)) <= 6
    assert found.settled
    assert len({found.cluster_N[0], found.cluster_N[2], found.cluster_N[4]}) == 3
    cut_short = bayesian_mixture(x_ND.astype(np.float32), components=6, seed=0, most_passes=1)
    assert (cut_short.passes, cut_short.settled) == (1, False)
