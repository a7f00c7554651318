"""k-means by hand: means, inertia, the posterior it is the limit of, and clusters without rows."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from models.clusterer import NOISE, DataSummary, Update
from models.errors import ShoalError
from models.increment import Held, Refinement, folded, scaled
from models.kmeans import KMeans, KMeansConfig, KMeansStats, start


def kmeans(*centroid: float, variance: float = 1.0, tolerance: float = 1e-6) -> KMeans:
    config = KMeansConfig(clusters=len(centroid), tolerance=tolerance)
    return KMeans(config, torch.tensor(centroid, dtype=torch.float64)[:, None], variance, math.inf)


def column(*value: float) -> Tensor:
    return torch.tensor(value)[:, None]


def step(model: KMeans, x_ND: Tensor) -> Update:
    return model.maximize(model.expect(x_ND, torch.arange(len(x_ND))), torch.Generator())


def summary(x_ND: Tensor, seed: int = 0) -> DataSummary:
    covariance_DD = torch.cov(x_ND.double().T, correction=0).reshape(x_ND.shape[1], -1)
    return DataSummary(len(x_ND), x_ND.double().mean(dim=0), covariance_DD, x_ND, seed)


def held(x_ND: Tensor, *component: int, weight: float = 1.0) -> Held:
    rows = len(component)
    weight_N = torch.full((rows,), weight, dtype=torch.float64)
    return Held(x_ND, torch.arange(rows), torch.tensor(component, dtype=torch.int64), weight_N, torch.ones(rows).bool())


def refined(model: KMeans, rows: Held, stats: KMeansStats) -> tuple[Refinement, KMeans, KMeansStats]:
    found = model.refined(rows, stats, rows.x_ND, torch.Generator())
    assert isinstance(found.model, KMeans)
    assert isinstance(found.stats, KMeansStats)
    return found, found.model, found.stats


def test_statistics_by_hand() -> None:
    stats = kmeans(0.0, 10.0).expect(column(1, 2, 9), torch.arange(3))
    assert stats.count_K.tolist() == [2, 1]
    assert stats.sum_KD.tolist() == [[3], [9]]
    assert stats.inertia == 1 + 4 + 1


def test_a_centroid_moves_to_the_mean_of_its_rows() -> None:
    update = step(kmeans(0.0, 10.0), column(1, 2, 9))
    assert isinstance(update.model, KMeans)
    assert update.model.centroid_KD.tolist() == [[1.5], [9.0]]
    assert update.objective == -6
    assert update.moves == ()


def test_the_variance_is_that_of_the_new_centroids() -> None:
    update = step(kmeans(0.0, 10.0), column(1, 2, 9))
    assert isinstance(update.model, KMeans)
    assert update.model.variance == pytest.approx((0.25 + 0.25 + 0) / 3)


def test_a_cluster_without_rows_keeps_its_centroid() -> None:
    update = step(kmeans(0.0, 100.0), column(1, 3))
    assert isinstance(update.model, KMeans)
    assert update.model.centroid_KD.tolist() == [[2.0], [100.0]]


def test_a_block_without_rows_adds_nothing() -> None:
    stats = kmeans(0.0, 10.0).expect(torch.empty(0, 1), torch.arange(0))
    assert stats.count_K.tolist() == [0, 0]
    assert stats.inertia == 0


@given(seed=st.integers(0, 1000))
def test_no_pass_makes_the_inertia_larger(seed: int) -> None:
    x_ND = torch.randn(80, 2, generator=torch.Generator().manual_seed(seed))
    model = KMeans(KMeansConfig(clusters=6), x_ND[:6].double(), 1.0, math.inf)
    objectives = []
    for _ in range(6):
        update = step(model, x_ND)
        assert isinstance(update.model, KMeans)
        model = update.model
        objectives.append(update.objective)
    assert all(after >= before * (1 + 1e-12) for before, after in pairwise(objectives))
    assert objectives[-1] > objectives[0]


@pytest.mark.parametrize(("tolerance", "settled"), [(0.9, False), (1.1, True)])
def test_settled_when_the_inertia_falls_by_less_than_the_tolerance(tolerance: float, settled: bool) -> None:
    x_ND = column(0, 1, 10, 11)
    first = step(kmeans(0.0, 10.0, tolerance=tolerance), x_ND)  # centroids 0 and 10: inertia 2
    assert isinstance(first.model, KMeans)
    assert not first.settled
    second = step(first.model, x_ND)  # centroids 0.5 and 10.5: inertia 1, a fall of 1 times itself
    assert isinstance(second.model, KMeans)
    assert second.objective == -1
    assert second.settled is settled
    assert step(second.model, x_ND).settled


def test_rows_on_their_centroids_settle() -> None:
    x_ND = column(0, 0, 5)
    assert step(step(kmeans(0.0, 5.0), x_ND).model, x_ND).settled  # type: ignore[arg-type]


def test_assignment_by_hand() -> None:
    found = kmeans(0.0, 4.0, 100.0, variance=2.0).assign(column(1, 3, 2))
    assert found.cluster_N.tolist() == [0, 1, 0]  # the tie goes to the first
    assert found.runner_up_N.tolist() == [1, 0, 1]
    assert found.score_N.tolist() == [-1, -1, -4]
    sure = 1 / (1 + math.exp(-(9 - 1) / (2 * 2)))
    assert found.probability_N.tolist() == pytest.approx([sure, sure, 0.5])


def test_probability_is_the_posterior_of_equal_spherical_gaussians() -> None:
    x_ND = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    model = KMeans(KMeansConfig(clusters=4), x_ND[:4].double(), 0.7, math.inf)
    density_NK = torch.stack(
        [
            torch.distributions.MultivariateNormal(mean_D, 0.7 * torch.eye(3).double()).log_prob(x_ND.double())
            for mean_D in model.centroid_KD
        ],
        dim=1,
    )
    torch.testing.assert_close(model.assign(x_ND).probability_N, density_NK.softmax(dim=1).amax(dim=1).float())


def test_without_variance_the_nearest_is_certain_and_equals_share() -> None:
    found = kmeans(0.0, 5.0, 5.0, variance=0.0).assign(column(0, 5, 1))
    assert found.probability_N.tolist() == [1.0, 0.5, 1.0]
    assert found.cluster_N.tolist() == [0, 1, 0]


def test_a_lone_cluster_has_no_runner_up() -> None:
    assert kmeans(3.0).assign(column(1, 2)).runner_up_N.tolist() == [NOISE, NOISE]


def test_scores_do_not_lose_digits_far_from_zero() -> None:
    found = kmeans(1e6, 1e6 + 4).assign(column(1e6 + 1, 1e6 + 3))
    assert found.score_N.tolist() == [-1, -1]


def test_start_measures_the_variance_on_the_sample() -> None:
    model = start(KMeansConfig(clusters=2), summary(torch.tensor([[0.0, 0.0], [2.0, 0.0], [50.0, 0.0], [52.0, 0.0]])))
    assert model.centroid_KD.sort(dim=0).values.tolist() == [[1.0, 0.0], [51.0, 0.0]]
    assert model.variance == pytest.approx(4 / (4 * 2))


def test_more_clusters_than_rows_is_refused() -> None:
    with pytest.raises(ShoalError, match="5 clusters"):
        start(KMeansConfig(clusters=5), summary(column(1, 2)))


def test_fewer_distinct_rows_than_clusters_leave_clusters_empty() -> None:
    x_ND = column(*[0.0] * 6, *[8.0] * 6)
    model = start(KMeansConfig(clusters=4), summary(x_ND))
    for _ in range(3):
        model = step(model, x_ND).model  # type: ignore[assignment]
    found = model.assign(x_ND)
    assert len(model.id_K) == 4
    assert found.cluster_N.unique().numel() == 2
    assert found.score_N.abs().max() < 1e-12


@pytest.mark.parametrize("setting", [{"clusters": 0}, {"clusters": 2, "restarts": 0}, {"clusters": 2, "k": 3}, {}])
def test_impossible_settings_are_refused(setting: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        KMeansConfig(**setting)  # type: ignore[arg-type]


def test_rows_at_hand_settle_and_others_stay() -> None:
    # Rows 0, 2 | 8, 10 are not at hand; 4 and 7 are, both counted with the first two.
    model = kmeans(0.0, 10.0)
    others = model.counted(column(0, 2, 8, 10), torch.tensor([0, 0, 1, 1]))
    rows = held(column(4, 7), 0, 0)
    found, after, stats = refined(model, rows, others + model.counted(rows.x_ND, rows.component_N))
    assert found.component_N.tolist() == [0, 1]
    assert after.centroid_KD[:, 0].tolist() == pytest.approx([2.0, 25 / 3])
    assert (stats.count_K.tolist(), stats.sum_KD[:, 0].tolist()) == ([3, 3], [6, 25])
    assert float(stats.inertia) == pytest.approx(8 + 14 / 3)
    assert after.inertia == pytest.approx(8 + 14 / 3)
    assert after.variance == pytest.approx((8 + 14 / 3) / 6)


def test_rows_that_are_not_at_hand_keep_their_cluster_however_far_it_goes() -> None:
    model = kmeans(0.0, 10.0)
    others = model.counted(column(0, 6, 10), torch.tensor([0, 0, 1]))
    rows = held(column(5), 0)
    _, after, stats = refined(model, rows, others + model.counted(rows.x_ND, rows.component_N))
    assert stats.count_K.tolist() == [3, 1]
    assert after.centroid_KD[:, 0].tolist() == pytest.approx([11 / 3, 10])


def test_old_rows_fade_and_weigh_less_in_a_refinement() -> None:
    model = kmeans(0.0, 10.0)
    old = model.counted(column(0, 0, 10, 10), torch.tensor([0, 0, 1, 1]))
    rows = held(column(6, 6), 0, 1, weight=0.25)
    added = model.counted(rows.x_ND, rows.component_N, rows.weight_N)
    _, after, stats = refined(model, rows, folded(old, 0.5, added))
    assert stats.count_K.tolist() == [1, 1.5]
    assert after.centroid_KD[:, 0].tolist() == pytest.approx([0, (10 + 3) / 1.5])


@given(st.lists(st.integers(-20, 20), min_size=4, max_size=12), st.integers(0, 2**20))
def test_a_refinement_of_all_rows_is_a_fit(value: list[int], seed: int) -> None:
    """Nothing is left for Lloyd to do, the statistics are those of one pass, and inertia has not risen."""
    x_ND = column(*map(float, value))
    component_N = torch.randint(3, (len(value),), generator=torch.Generator().manual_seed(seed))
    model = kmeans(-10.0, 0.0, 10.0)
    before = model.counted(x_ND, component_N)
    found, after, stats = refined(model, held(x_ND, *component_N.tolist()), before)
    again = after.counted(x_ND, found.component_N)
    for name, summand in again.tensors().items():
        torch.testing.assert_close(stats.tensors()[name], summand, rtol=1e-9, atol=1e-9)
    assert float(stats.inertia) == pytest.approx(float(after.expect(x_ND, torch.arange(len(x_ND))).inertia), abs=1e-9)
    assert float(stats.inertia) <= float(before.inertia) + 1e-9


def test_a_cluster_that_loses_all_its_rows_keeps_its_centroid() -> None:
    model = kmeans(0.0, 1.0)
    rows = held(column(-1, -2, -3), 1, 1, 1, weight=0.1)
    found, after, stats = refined(model, rows, model.counted(rows.x_ND, rows.component_N, rows.weight_N))
    assert found.component_N.tolist() in ([0, 0, 0], [1, 1, 1])  # the second follows them, or loses them for good
    assert after.centroid_KD.isfinite().all()
    assert float(stats.count_K.sum()) == pytest.approx(0.3)


def test_three_faded_rows_have_their_mean_and_their_variance() -> None:
    model = KMeans(KMeansConfig(clusters=1), torch.zeros(1, 3).double(), 1.0, math.inf)
    x_ND = torch.tensor([[10.0, 10, 10], [9, 10, 10], [11, 10, 10]])
    weight_N = torch.full((3,), 0.1, dtype=torch.float64)
    stats = model.counted(x_ND, torch.zeros(3, dtype=torch.int64), weight_N)
    after = model.maximize(stats, torch.Generator()).model
    assert isinstance(after, KMeans)
    assert after.centroid_KD[0].tolist() == pytest.approx([10, 10, 10])
    assert after.variance == pytest.approx(2 / 9)  # squared distances 0, 1 and 1, each row in 3 dimensions


@given(st.lists(st.integers(-9, 9), min_size=1, max_size=8), st.floats(1e-12, 1e6))
def test_a_weight_that_all_rows_share_changes_no_model(value: list[int], weight: float) -> None:
    model, x_ND = kmeans(-5.0, 5.0), column(*map(float, value))
    stats = model.expect(x_ND, torch.arange(len(value)))
    plain, faded = (model.maximize(each, torch.Generator()).model for each in (stats, scaled(stats, weight)))
    assert isinstance(plain, KMeans)
    assert isinstance(faded, KMeans)
    torch.testing.assert_close(faded.centroid_KD, plain.centroid_KD)
    assert faded.variance == pytest.approx(plain.variance, rel=1e-6, abs=1e-9)


def faded_second() -> tuple[KMeans, KMeansStats]:
    """Rows 0, 2 | 10, 12 | 20, 22 of clusters 5, 7 and 9: those of cluster 7 have faded, and are not at hand."""
    model = kmeans(1.0, 12.0, 21.0).renamed(torch.tensor([5, 7, 9]), 10)
    weight_N = torch.tensor([1, 1, 1e-8, 1e-8, 1, 1], dtype=torch.float64)
    return model, model.counted(column(0, 2, 10, 12, 20, 22), torch.tensor([0, 0, 1, 1, 2, 2]), weight_N)


def test_a_cluster_that_fades_leaves_its_rows_to_the_nearest_that_lives() -> None:
    found, after, stats = refined(*with_rows(faded_second(), held(column(1), 0)))
    assert dict(found.heir) == {7: 9}  # centroid 12 is nearer to 21 than to 1
    assert (after.component_K.tolist(), after.next_id) == ([5, 9], 10)
    assert stats.count_K.tolist() == pytest.approx([3, 2 + 2e-8], rel=1e-12)
    assert stats.sum_KD[:, 0].tolist() == pytest.approx([3, 42 + 22e-8], rel=1e-12)
    assert after.centroid_KD.tolist() == (stats.sum_KD / stats.count_K[:, None]).tolist()
    distances = [2.0, 2e-8 + 2e-8 * 10.0**2 + 2.0]  # 10 and 12 lie 1 about 11, which lies 10 from 21
    assert float(stats.inertia) == pytest.approx(sum(distances), rel=1e-9)
    assert after.inertia == float(stats.inertia)


def test_rows_at_hand_of_a_cluster_that_ends_are_in_one_that_lives() -> None:
    # The first row is nearest to cluster 7, and counts too little to keep it.
    found, after, stats = refined(*with_rows(faded_second(), held(column(12, 11), 1, 1, weight=1e-9)))
    assert dict(found.heir) == {7: 9}
    assert after.component_K[found.component_N].tolist() == [9, 9]
    assert float(stats.count_K.sum()) == pytest.approx(4 + 2.2e-8, rel=1e-12)


def test_rows_that_faded_to_nothing_have_an_heir_too() -> None:
    model = kmeans(0.0, 4.0, 10.0)
    stats = model.counted(column(0, 4, 10), torch.tensor([0, 1, 2]), torch.tensor([1, 1e-30, 1], dtype=torch.float64))
    found, after, _ = refined(model, held(torch.empty(0, 1)), stats)
    assert dict(found.heir) == {1: 0}
    assert after.centroid_KD.tolist() == [[0.0], [10.0]]


def test_where_nothing_is_left_a_sentence_says_so() -> None:
    model = kmeans(0.0, 4.0)
    stats = model.counted(column(0, 4), torch.tensor([0, 1]), torch.full((2,), 1e-7, dtype=torch.float64))
    with pytest.raises(ShoalError, match=r"0 of 2 clusters have rows left, and at least 1 is needed.*shoal cluster"):
        refined(model, held(torch.empty(0, 1)), stats)


def with_rows(others: tuple[KMeans, KMeansStats], rows: Held) -> tuple[KMeans, Held, KMeansStats]:
    """A refinement's arguments: statistics of other rows, and of these."""
    model, stats = others
    return model, rows, stats + model.counted(rows.x_ND, rows.component_N, rows.weight_N)
