"""Scores by hand, against scikit-learn, under relabelling and reordering, and with noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from models.errors import ShoalError
from pipeline.evaluate.metrics import LabelScores, score_geometry, score_labels

SCORES = ("acc", "nmi", "ari", "purity", "homogeneity", "completeness", "v")

rows = st.lists(st.tuples(st.integers(0, 4), st.integers(-1, 5)), min_size=2, max_size=60)


def predicted(*clusters: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array(clusters, dtype=np.int64)


def values(scores: LabelScores) -> list[float]:
    return [getattr(scores, name) for name in SCORES]


def test_scores_by_hand() -> None:
    scores = score_labels(["a", "a", "a", "b", "b", "b"], predicted(0, 0, 1, 1, 1, 1))
    assert scores.contingency.labels == ("a", "b")
    assert scores.contingency.clusters == (0, 1)
    assert scores.contingency.count_LK.tolist() == [[2, 1], [0, 3]]
    assert scores.acc == pytest.approx(5 / 6)
    assert scores.purity == pytest.approx(5 / 6)
    # Pairs: same label 6, same cluster 1 + 6 = 7, both 1 + 3 = 4, of 15; expected 6 * 7 / 15 = 2.8.
    assert scores.ari == pytest.approx((4 - 2.8) / ((6 + 7) / 2 - 2.8))
    # H(label) = ln 2, H(label | cluster) = 4/6 H(1/4, 3/4), H(cluster) = H(1/3, 2/3) = 2 H(cluster | label).
    inside = 4 / 6 * -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    of_clusters = -(np.log(1 / 3) / 3 + 2 * np.log(2 / 3) / 3)
    assert scores.homogeneity == pytest.approx(1 - inside / np.log(2))
    assert scores.completeness == pytest.approx(0.5)
    assert scores.nmi == pytest.approx(2 * (np.log(2) - inside) / (np.log(2) + of_clusters))


def test_accuracy_needs_the_matching_not_the_greedy_choice() -> None:
    # Cluster 0 prefers "a" (5 over 4), but giving it "b" lets cluster 1 have "a": 4 + 4 beats 5 + 0.
    true = ["a"] * 5 + ["b"] * 4 + ["a"] * 4
    assert score_labels(true, predicted(*[0] * 9, *[1] * 4)).acc == pytest.approx(8 / 13)


def test_more_clusters_than_labels() -> None:
    scores = score_labels([0, 0, 0, 0, 1, 1], predicted(7, 7, 8, 9, 3, 3))
    assert scores.acc == pytest.approx(4 / 6)  # 8 and 9 stay unmatched
    assert scores.purity == 1.0
    assert scores.homogeneity == pytest.approx(1.0)


def test_fewer_clusters_than_labels() -> None:
    scores = score_labels([0, 0, 1, 1, 2, 2, 2], predicted(0, 0, 0, 0, 0, 0, 0))
    assert scores.acc == pytest.approx(3 / 7)
    assert (scores.nmi, scores.ari, scores.completeness) == (pytest.approx(0), pytest.approx(0), pytest.approx(1))


def test_noise_is_never_right_but_is_one_cluster_of_the_partition() -> None:
    true, clusters = ["a", "a", "b", "b"], predicted(0, 0, -1, -1)
    scores = score_labels(true, clusters)
    assert scores.acc == scores.purity == 0.5
    assert scores.nmi == pytest.approx(1.0)
    assert scores.ari == pytest.approx(1.0)
    assert scores.noise == 2
    assert scores.contingency.clusters == (-1, 0)
    assert scores.contingency.count_LK.tolist() == [[0, 2], [2, 0]]


def test_all_noise_scores_zero_accuracy() -> None:
    scores = score_labels(["a", "b"], predicted(-1, -1))
    assert (scores.acc, scores.purity, scores.noise) == (0.0, 0.0, 2)


@pytest.mark.parametrize("missing", [None, float("nan"), np.float32("nan")])
def test_rows_without_a_label_are_left_out_and_counted(missing: Any) -> None:
    scores = score_labels(["a", missing, "b", missing], predicted(0, 0, 1, 1))
    assert (scores.rows, scores.unlabelled) == (2, 2)
    assert values(scores) == [1.0] * 7


def test_no_labels_give_no_scores() -> None:
    scores = score_labels([None, None, None], predicted(0, 1, -1))
    assert values(scores) == [None] * 7
    assert (scores.rows, scores.unlabelled, scores.noise) == (0, 3, 0)
    assert scores.contingency.count_LK.shape == (0, 0)
    assert values(score_labels([], predicted())) == [None] * 7


def test_labels_are_text_in_numeric_order() -> None:
    scores = score_labels([10, "9", "-2", "cat", 9, "9" * 5000], predicted(0, 1, 2, 3, 1, 4))
    assert scores.contingency.labels == ("-2", "9", "10", "9" * 5000, "cat")
    assert scores.acc == 1.0
    assert score_labels(np.array([1, 1, 2]), predicted(5, 5, 6)).contingency.labels == ("1", "2")


def test_lengths_must_agree() -> None:
    with pytest.raises(ShoalError, match="3 labels for 2 assignments"):
        score_labels([1, 2, 3], predicted(0, 1))
    with pytest.raises(ShoalError, match="4 embeddings for 2 assignments"):
        score_geometry(np.zeros((4, 2)), predicted(0, 1))


@given(rows)
def test_partition_scores_equal_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    true, clusters = np.array(pairs).T
    scores = score_labels(true, clusters)
    assert scores.nmi == pytest.approx(sk.normalized_mutual_info_score(true, clusters))
    assert scores.ari == pytest.approx(sk.adjusted_rand_score(true, clusters))
    expected = sk.homogeneity_completeness_v_measure(true, clusters)
    assert (scores.homogeneity, scores.completeness, scores.v) == pytest.approx(expected)
    assert scores.nmi == pytest.approx(scores.v)


@given(rows, st.permutations(range(6)), st.permutations(range(5)), st.randoms(use_true_random=False))
def test_names_and_order_do_not_matter(
    pairs: list[tuple[int, int]], rename: list[int], relabel: list[int], random: Any
) -> None:
    true, clusters = np.array(pairs).T
    shuffled = pairs.copy()
    random.shuffle(shuffled)
    renamed = score_labels(
        [f"label {relabel[label]}" for label, _ in shuffled],
        predicted(*[100 + rename[cluster] if cluster >= 0 else -1 for _, cluster in shuffled]),
    )
    assert values(renamed) == pytest.approx(values(score_labels(true, clusters)))


@given(rows)
def test_accuracy_never_exceeds_purity_and_noise_lowers_both(pairs: list[tuple[int, int]]) -> None:
    true, clusters = np.array(pairs).T
    scores = score_labels(true, clusters)
    assert scores.acc is not None and scores.purity is not None
    assert scores.acc <= scores.purity + 1e-12
    assert scores.purity <= 1 - scores.noise / len(pairs) + 1e-12


def blobs(per_cluster: int = 40) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, np.dtype[np.int64]]]:
    rng = np.random.default_rng(0)
    centre_KD = np.array([[0.0, 0, 0], [6, 0, 0], [0, 6, 0]])
    cluster_N = np.repeat(np.arange(3), per_cluster)
    return centre_KD[cluster_N] + rng.normal(size=(3 * per_cluster, 3)), cluster_N


def test_geometry_by_hand() -> None:
    x_ND = np.array([[0.0], [2.0], [10.0], [12.0]])
    scores = score_geometry(x_ND, predicted(0, 0, 4, 4))
    # Outer rows: within 2, nearest other cluster (10 + 12) / 2; inner rows: (8 + 10) / 2.
    assert scores.silhouette == pytest.approx((9 / 11 + 7 / 9) / 2)
    assert scores.davies_bouldin == pytest.approx((1 + 1) / 10)
    assert scores.calinski_harabasz == pytest.approx((100 / 1) / (4 / 2))  # between 4 * 5², within 4 * 1²
    assert (scores.sizes, scores.clusters, scores.rows, scores.sampled) == ({0: 2, 4: 2}, 2, 4, 4)


def test_geometry_equals_scikit_learn_on_the_rows_in_clusters() -> None:
    x_ND, cluster_N = blobs()
    noisy_N = np.where(np.arange(120) % 10 == 0, -1, cluster_N)
    scores = score_geometry(x_ND, noisy_N)
    kept = noisy_N >= 0
    assert scores.silhouette == pytest.approx(sk.silhouette_score(x_ND[kept], noisy_N[kept]))
    assert scores.davies_bouldin == pytest.approx(sk.davies_bouldin_score(x_ND[kept], noisy_N[kept]))
    assert scores.calinski_harabasz == pytest.approx(sk.calinski_harabasz_score(x_ND[kept], noisy_N[kept]))
    assert (scores.noise, scores.rows) == (12, 108)


@pytest.mark.parametrize(
    "clusters", [(0, 0, 0, 0), (0, 1, 2, 3), (-1, -1, -1, -1), (0, -1, -1, -1), (5, 5, -1, -1), ()]
)
def test_undefined_geometry_is_none(clusters: tuple[int, ...]) -> None:
    x_ND = np.arange(2.0 * len(clusters)).reshape(-1, 2)
    scores = score_geometry(x_ND, predicted(*clusters))
    assert (scores.silhouette, scores.davies_bouldin, scores.calinski_harabasz) == (None, None, None)
    assert scores.rows + scores.noise == len(clusters)


def test_a_sample_of_one_cluster_has_no_silhouette() -> None:
    x_ND, cluster_N = blobs()
    scores = score_geometry(x_ND, cluster_N, sample_rows=1)
    assert scores.silhouette is None
    assert scores.davies_bouldin is not None


def test_the_sample_follows_row_hashes_not_row_order() -> None:
    x_ND, cluster_N = blobs()
    rng = np.random.default_rng(1)
    hash_N = rng.integers(2**64, size=120, dtype=np.uint64)
    order = rng.permutation(120)
    first = score_geometry(x_ND, cluster_N, sample_rows=30, row_hash_N=hash_N)
    again = score_geometry(x_ND[order], cluster_N[order], sample_rows=30, row_hash_N=hash_N[order])
    other = score_geometry(x_ND, cluster_N, sample_rows=30, row_hash_N=hash_N, seed=1)
    assert first.silhouette == again.silhouette
    assert first.silhouette != other.silhouette
    assert first.sampled == 30


def test_the_seed_decides_the_sample() -> None:
    x_ND, cluster_N = blobs()
    scores = [score_geometry(x_ND, cluster_N, sample_rows=30, seed=seed).silhouette for seed in (0, 0, 1)]
    assert scores[0] == scores[1] != scores[2]


def test_float32_rows_far_from_the_origin_keep_their_digits() -> None:
    x_ND, cluster_N = blobs(per_cluster=2_000)
    far_ND = (x_ND + 1_000).astype(np.float32)
    scores = score_geometry(far_ND, cluster_N, sample_rows=10)
    expected = sk.davies_bouldin_score(far_ND.astype(np.float64), cluster_N)
    assert scores.davies_bouldin == pytest.approx(expected, rel=1e-6)
