"""Drift: silent where nothing has changed, and not where something has."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from models.drift import Arrivals, NoveltyConfig, Reference, drift, optimism

CLUSTERS, DIM = 500, 4


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def typical(rows: int, seed: int, clusters: int = CLUSTERS) -> tuple[Tensor, Tensor]:
    """Labels and log densities of rows of as many Gaussians, each in a unit of its own, up to a constant."""
    cluster_N = torch.randint(clusters, (rows,), generator=rng(seed))
    return cluster_N, -torch.randn(rows, DIM, generator=rng(seed + 1)).square().sum(dim=1) / 2 + cluster_N


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference.of(*typical(100_000, seed=10_000), torch.arange(CLUSTERS))


def test_arrivals_like_the_sample_raise_no_flag(reference: Reference) -> None:
    total = Arrivals.none()
    for repetition in range(200):
        arrivals = Arrivals.of(reference, *typical(4000, seed=2 * repetition))
        total += arrivals
        found = drift(reference, arrivals)
        assert not (found.overall.is_novel or found.overall.has_drifted or found.novel or found.drifted)
    found = drift(reference, total)
    assert found.overall.rows == 800_000
    assert found.overall.low_fraction == pytest.approx(0.01, abs=0.001)
    assert (found.overall.is_novel, found.overall.has_drifted, found.novel, found.drifted) == (False, False, (), ())


def test_chances_are_what_they_say(reference: Reference) -> None:
    """Of 4,000 tests one in a hundred at most has a p below .01, and z has the deviation of a standard normal."""
    p = torch.tensor(
        [
            each.p
            for repetition in range(8)
            for each in drift(reference, Arrivals.of(reference, *typical(20_000, seed=2 * repetition))).clusters
        ]
    )
    z = torch.tensor(
        [
            each.z
            for repetition in range(8)
            for each in drift(reference, Arrivals.of(reference, *typical(40_000, seed=2 * repetition))).clusters
            if each.z is not None
        ]
    )
    assert len(p) == 4000
    assert 0 < int((p < 0.01).sum()) <= 60
    assert len(z) > 3600
    assert 0.9 < float(z.std()) < 1.1


def test_two_per_cent_of_strangers_are_noticed_wherever_they_are(reference: Reference) -> None:
    cluster_N, score_N = typical(1000, seed=1)
    cluster_N[:20], score_N[:20] = 7, 7 - 30.0  # something new lies nearest to one cluster
    found = drift(reference, Arrivals.of(reference, cluster_N, score_N))
    assert found.novel == (7,)
    assert [each["cluster"] for each in found.as_json(most=1)["clusters"]] == [7]
    cluster_N, score_N = typical(50_000, seed=1)
    score_N[:1000] -= 30.0
    found = drift(reference, Arrivals.of(reference, cluster_N, score_N))
    assert found.overall.is_novel
    assert found.overall.low_fraction == pytest.approx(0.03, abs=0.003)
    assert not found.overall.has_drifted


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_cluster_whose_mean_has_moved_by_one_deviation_is_noticed(reference: Reference, seed: int) -> None:
    cluster_N, score_N = typical(30_000, seed=100 * seed)
    moved_ND = 1 + torch.randn(len(cluster_N), DIM, generator=rng(seed))
    score_N = torch.where(cluster_N == 33, -moved_ND.square().sum(dim=1) / 2 + 33, score_N)
    found = drift(reference, Arrivals.of(reference, cluster_N, score_N))
    assert found.drifted == (33,)
    assert not found.overall.has_drifted
    assert next(each for each in found.clusters if each.cluster == 33).log_density_shift < -1


def test_all_rows_moving_a_little_is_drift_of_all(reference: Reference) -> None:
    cluster_N, score_N = typical(4000, seed=5)
    found = drift(reference, Arrivals.of(reference, cluster_N, score_N - 0.8))
    assert found.overall.has_drifted
    assert found.drifted == ()


def test_one_row_far_from_everything_is_neither(reference: Reference) -> None:
    cluster_N, score_N = typical(4000, seed=5)
    score_N[0] = -1e30
    found = drift(reference, Arrivals.of(reference, cluster_N, score_N))
    assert not (found.overall.is_novel or found.overall.has_drifted or found.novel or found.drifted)


def test_it_makes_no_difference_which_clusters_arrivals_are_in() -> None:
    """A cluster of heavy tails has more low scores than others, and so have rows like it."""
    cluster_N, score_N = typical(40_000, seed=1, clusters=4)
    heavy_N = cluster_N == 2
    score_N[heavy_N] = 2 - torch.randn(int(heavy_N.sum()), generator=rng(3)).abs().exp().square()
    reference = Reference.of(cluster_N[:20_000], score_N[:20_000], torch.arange(4))
    later_N, here_N = score_N[20_000:], cluster_N[20_000:]
    found = drift(reference, Arrivals.of(reference, here_N[here_N == 2], later_N[here_N == 2]))
    assert found.overall.low_fraction > 0.03
    assert not (found.overall.is_novel or found.overall.has_drifted or found.novel or found.drifted)


def test_rows_that_were_fitted_score_better_than_new_ones() -> None:
    """200 rows in 8 dimensions: what looks like drift is what the fit has gained on its own rows."""
    x_NKD = torch.randn(200, 50, 8, generator=rng(0), dtype=torch.float64)
    new_NKD = torch.randn(400, 50, 8, generator=rng(1), dtype=torch.float64)
    mean_KD, covariance_KDD = x_NKD.mean(dim=0), torch.stack([torch.cov(x.T, correction=0) for x in x_NKD.unbind(1)])
    normal = torch.distributions.MultivariateNormal(mean_KD, covariance_KDD)
    label_NK = torch.arange(50).expand(200, -1)
    gain = float(normal.log_prob(x_NKD).mean() - normal.log_prob(new_NKD).mean())
    assert gain == pytest.approx(float(optimism(8, torch.tensor(200))), rel=0.15)
    gain_C = optimism(8, torch.full((50,), 200.0))
    told = []
    for optimism_C in (None, gain_C):
        reference = Reference.of(
            label_NK.flatten(), normal.log_prob(x_NKD).flatten(), torch.arange(50), optimism_C=optimism_C
        )
        new = Arrivals.of(reference, label_NK.repeat(2, 1).flatten(), normal.log_prob(new_NKD).flatten())
        told.append(drift(reference, new, NoveltyConfig(shift=0.05)).overall)
    assert told[0].has_drifted
    assert not told[1].has_drifted


def test_a_cluster_unknown_to_the_sample_is_no_alarm(reference: Reference) -> None:
    cluster_N, score_N = torch.full((100,), 9999), torch.full((100,), -1e6)
    found = drift(reference, Arrivals.of(reference, cluster_N, score_N))
    assert [(each.cluster, each.is_novel, each.has_drifted) for each in found.clusters] == [(9999, False, False)]
    assert found.overall.is_novel  # but rows of low score it has


@pytest.mark.parametrize("rows", [0, 1, 5000])
def test_json_is_finite(reference: Reference, rows: int) -> None:
    arrivals = Arrivals.of(reference, *typical(rows, seed=3))
    found = json.loads(json.dumps(drift(reference, arrivals).as_json(), allow_nan=False))
    assert found["overall"]["rows"] == rows
    assert len(found["clusters"]) == min(200, len(arrivals.id_C))
    assert found["overall"]["cluster"] is None
    empty = Reference.of(torch.empty(0, dtype=torch.int64), torch.empty(0), torch.arange(3))
    json.dumps(drift(empty, arrivals).as_json(), allow_nan=False)


def test_births_are_counted_per_thousand(reference: Reference) -> None:
    arrivals = Arrivals.of(reference, *typical(4000, seed=3))
    born = Arrivals(torch.empty(0, dtype=torch.int64), torch.empty(4, 0, dtype=torch.float64), born=2)
    assert drift(reference, arrivals + born).birth_rate == 0.5
