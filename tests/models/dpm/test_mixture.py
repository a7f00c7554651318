"""Whole fits on planted clusters, and the E-step: what it sums, exactly and truncated."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torch import Tensor

from models.clusterer import Move
from models.dpm.config import DPMConfig
from models.dpm.mixture import DPM, DPMStats, load, start
from pipeline.cluster.fit import Fit, FitConfig, fit, summarize


def _clouds(clusters: int, rows: int, dim: int, spread: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mean_KD = torch.randn(clusters, dim, generator=generator) * spread
    label_N = torch.arange(rows) % clusters
    return mean_KD[label_N] + torch.randn(rows, dim, generator=generator), label_N


def _fit(x_ND: torch.Tensor, **settings: object) -> Fit:
    rows = torch.arange(len(x_ND)).numpy()
    return fit(DPMConfig.model_validate(settings), x_ND.numpy(), rows, FitConfig())


def _labels(model: object, x_ND: torch.Tensor) -> torch.Tensor:
    assert isinstance(model, DPM)
    return model.assign(x_ND).cluster_N


@pytest.mark.parametrize("initial", [1, 40])
def test_it_finds_twelve_clouds_from_one_cluster_and_from_many(initial: int) -> None:
    x_ND, label_N = _clouds(12, 2400, 4, 12.0)
    result = _fit(x_ND, initial_clusters=initial, prior_scale=0.1)
    assert result.settled
    assert adjusted_rand_score(label_N, _labels(result.model, x_ND)) > 0.99
    assert len(result.model.id_K) == 12


@pytest.mark.parametrize("seed", range(3))
def test_one_cloud_cut_into_many_cells_becomes_one_cluster(seed: int) -> None:
    x_ND, _ = _clouds(1, 1000, 5, 0.0, seed)
    assert len(_fit(x_ND, initial_clusters=20).model.id_K) == 1


def test_fragments_that_refuse_to_merge_in_pairs_merge_as_a_whole() -> None:
    x_ND, _ = _clouds(1, 20_000, 2, 0.0)
    result = _fit(x_ND)
    branches = [move for _, move in result.moves if move.kind == "merge" and len(move.clusters) > 2]
    assert branches
    assert all(move.log_ratio > 0 for move in branches)
    assert len(result.model.id_K) == 1


@pytest.mark.parametrize("seed", range(3))
def test_one_cloud_stays_one_cluster(seed: int) -> None:
    x_ND, _ = _clouds(1, 1000, 5, 0.0, seed)
    result = _fit(x_ND, initial_clusters=1)
    assert len(result.model.id_K) == 1
    assert all(move.kind in {"split", "birth"} and not move.accepted for _, move in result.moves)
    assert sum(move.kind == "split" for _, move in result.moves) == 3  # and it says what it tried


@pytest.mark.parametrize("dim", [2, 10, 32])
def test_one_gaussian_is_one_cluster_in_any_dimension(dim: int) -> None:
    x_ND, _ = _clouds(1, 2000, dim, 0.0)
    result = _fit(x_ND)
    assert result.settled
    assert len(result.model.id_K) == 1


def test_a_uniform_cube_is_one_cluster_of_however_many_components() -> None:
    x_ND = torch.rand(3000, 3, generator=torch.Generator().manual_seed(0))
    assert _fit(x_ND).model.id_K.unique().numel() == 1


@pytest.fixture(scope="module")
def fifty() -> tuple[Tensor, Tensor]:
    """Means about 12 deviations apart at least."""
    label_N = torch.arange(5000) % 50
    mean_KD = 12 * torch.randn(50, 8, generator=torch.Generator().manual_seed(7))
    return torch.randn(5000, 8, generator=torch.Generator().manual_seed(0)) + mean_KD[label_N], label_N


@pytest.mark.parametrize("initial", [1, 200, None])
def test_fifty_clusters_are_found_from_any_start(fifty: tuple[Tensor, Tensor], initial: int | None) -> None:
    x_ND, label_N = fifty
    result = _fit(x_ND, initial_clusters=initial)
    assert result.settled
    assert len(result.model.id_K.unique()) == 50
    assert adjusted_rand_score(label_N, _labels(result.model, x_ND)) == 1


@pytest.mark.parametrize("seed", [1, 2])
def test_the_same_fifty_are_found_in_rotated_data(fifty: tuple[Tensor, Tensor], seed: int) -> None:
    x_ND, label_N = fifty
    turn_DD = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(seed)))[0]
    turned_ND = x_ND @ turn_DD
    assert adjusted_rand_score(label_N, _labels(_fit(turned_ND).model, turned_ND)) == 1


def test_sizes_from_twenty_to_five_thousand_are_found_side_by_side() -> None:
    label_N = torch.repeat_interleave(torch.arange(5), torch.tensor([20, 60, 300, 1500, 5000]))
    mean_KD = 15 * torch.randn(5, 4, generator=torch.Generator().manual_seed(3))
    x_ND = torch.randn(len(label_N), 4, generator=torch.Generator().manual_seed(0)) + mean_KD[label_N]
    assert adjusted_rand_score(label_N, _labels(_fit(x_ND).model, x_ND)) > 0.999


@pytest.mark.parametrize("covariance", ["full", "diagonal", "spherical", "tied"])
@pytest.mark.parametrize("assignment", ["mode", "predictive"])
def test_every_family_finds_four_clusters(covariance: str, assignment: str) -> None:
    x_ND, label_N = _clouds(4, 600, 3, 15.0, seed=1)
    result = _fit(x_ND, covariance=covariance, assignment=assignment)
    assert result.settled
    assert adjusted_rand_score(label_N, _labels(result.model, x_ND)) == 1


def _shaped() -> tuple[Tensor, Tensor]:
    """Fifteen clusters whose means overlap and whose shapes differ: A A' with A = .15 G + diag(.6 + .6 U)."""
    generator = torch.Generator().manual_seed(1)
    label_N = torch.randint(0, 15, (6000,), generator=generator)
    mean_KD = 0.55 * torch.randn(15, 24, generator=generator)
    scale_K11 = 0.6 + 0.6 * torch.rand(15, 1, 1, generator=generator)
    shape_KDD = 0.15 * torch.randn(15, 24, 24, generator=generator) + scale_K11 * torch.eye(24)
    noise_ND = torch.randn(6000, 24, generator=generator)
    x_ND = torch.empty(6000, 24)
    for k in range(15):
        x_ND[label_N == k] = mean_KD[k] + noise_ND[label_N == k] @ shape_KDD[k].T
    return x_ND, label_N


def test_clusters_that_only_shapes_tell_apart_are_found_where_kmeans_and_splits_fail() -> None:
    x_ND, label_N = _shaped()
    kmeans = KMeans(15, n_init=1, random_state=0).fit(x_ND.numpy()).labels_
    assert normalized_mutual_info_score(label_N, kmeans) < 0.7
    found = {}
    for name, start_from in (("default", None), ("one", 1)):
        found[name] = normalized_mutual_info_score(
            label_N, _labels(_fit(x_ND, initial_clusters=start_from).model, x_ND)
        )
    assert min(found.values()) > 0.95, found
    without = _fit(x_ND, initial_clusters=1, attempts=0).model
    assert len(without.id_K) == 1  # no half of the whole is likelier than the whole: births it takes


def test_rotation_and_unit_do_not_change_the_partition() -> None:
    x_ND, _ = _clouds(6, 900, 3, 10.0)
    generator = torch.Generator().manual_seed(1)
    turn_DD = torch.linalg.qr(torch.randn(3, 3, generator=generator))[0]
    same = _labels(_fit(x_ND).model, x_ND)
    for moved_ND in (x_ND @ turn_DD, 1000 * x_ND, 1e-12 * x_ND, x_ND + 1e4):
        assert adjusted_rand_score(same, _labels(_fit(moved_ND).model, moved_ND)) == 1.0


def test_a_heavily_imbalanced_cloud_is_found() -> None:
    generator = torch.Generator().manual_seed(0)
    x_ND = torch.cat([torch.randn(2000, 2, generator=generator), torch.randn(20, 2, generator=generator) * 0.3 + 12])
    sizes = torch.bincount(_labels(_fit(x_ND).model, x_ND)).tolist()
    assert sorted(size for size in sizes if size) == [20, 2000]


def test_a_few_outliers_are_no_cluster_until_there_are_min_size_of_them() -> None:
    x_ND, _ = _clouds(2, 400, 2, 15.0)
    for outliers, clusters in ((4, 2), (6, 3)):
        far_nD = 200 + torch.randn(outliers, 2, generator=torch.Generator().manual_seed(0))
        result = _fit(torch.cat([x_ND, far_nD]), min_size=5, prior_scale=0.01)
        assert len(result.model.id_K) == clusters


def test_ids_follow_the_larger_child_and_are_never_reused() -> None:
    x_ND, _ = _clouds(5, 500, 2, 15.0)
    result = _fit(x_ND, initial_clusters=1)
    born = [0]
    for _, move in result.moves:
        if move.kind in {"split", "birth"} and move.accepted:
            assert move.clusters[0] in born
            assert move.clusters[1] not in born
            born.append(move.clusters[1])
    assert len(born) >= 5
    assert set(result.model.id_K.tolist()) <= set(born)


def test_accepted_greedy_moves_raise_the_objective() -> None:
    x_ND, _ = _clouds(8, 800, 3, 10.0)
    accepted = [move for _, move in _fit(x_ND, initial_clusters=20).moves if move.accepted and move.kind != "death"]
    assert "merge" in {move.kind for move in accepted}
    assert all(move.log_ratio > 0 for move in accepted)


def test_the_reason_of_a_move_is_what_decided_it() -> None:
    x_ND, _ = _clouds(3, 300, 2, 3.0)
    moves = [move for _, move in _fit(x_ND, initial_clusters=10, patience=1, grouping=None).moves]
    decided = [move for move in moves if move.kind in {"split", "merge"} and "min_size" not in move.why]
    assert {move.accepted for move in decided} == {True, False}
    for move in decided:
        above, below = ("apart", "together") if move.kind == "split" else ("together", "apart")
        assert f"likelier {above if move.log_ratio > 0 else below}" in move.why
        if move.accepted != (move.log_ratio > 0):
            assert ", but " in move.why


@settings(max_examples=10)
@given(block=st.integers(40, 400))
def test_a_fit_does_not_depend_on_the_size_of_blocks(block: int) -> None:
    x_ND, _ = _clouds(4, 400, 2, 10.0)
    rows = torch.arange(400).numpy()
    models = [fit(DPMConfig(), x_ND.numpy(), rows, FitConfig(block_rows=size)).model for size in (400, block)]
    assert torch.equal(_labels(models[0], x_ND), _labels(models[1], x_ND))


def test_metropolis_is_seeded_and_ends() -> None:
    x_ND, _ = _clouds(4, 400, 2, 2.0)
    rows, config = torch.arange(400).numpy(), DPMConfig(metropolis=True, patience=1, initial_clusters=10)
    fits = [fit(config, x_ND.numpy(), rows, FitConfig(seed=seed)) for seed in (1, 1, 2)]
    assert all(each.settled for each in fits)
    assert fits[0].history == fits[1].history
    told = [[(move.kind, move.clusters, move.accepted) for _, move in each.moves] for each in fits]
    assert told[0] == told[1] != told[2]
    assert any("chance decided otherwise" in move.why for each in fits for _, move in each.moves)


def test_the_concentration_moves_towards_the_number_of_clusters() -> None:
    x_ND, _ = _clouds(2, 400, 2, 15.0)
    model = _fit(x_ND, learn_concentration=True).model
    assert isinstance(model, DPM)
    assert len(model.id_K) == 2
    assert model.population.concentration < 2
    many_ND, _ = _clouds(40, 1200, 8, 20.0)
    other = _fit(many_ND, learn_concentration=True, concentration=0.1).model
    assert isinstance(other, DPM)
    assert len(other.id_K) == 40
    assert other.population.concentration > 5


def test_degenerate_rows_never_raise() -> None:
    generator = torch.Generator().manual_seed(0)
    constant_column = torch.cat([torch.randn(50, 2, generator=generator), torch.ones(50, 1)], dim=1)
    wide = torch.randn(5, 20, generator=generator)
    duplicates = torch.randn(4, 3, generator=generator).repeat(30, 1)
    for x_ND in (constant_column, wide, duplicates, torch.ones(7, 3), torch.ones(1, 3), 1e-30 * wide, 1e15 * wide):
        result = _fit(x_ND)
        assert result.settled
        assert torch.isfinite(result.model.assign(x_ND).probability_N).all()


def test_duplicates_are_as_many_clusters_as_there_are_points() -> None:
    x_ND = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0], [5.0, 5.0]]).repeat(40, 1)
    assert adjusted_rand_score(torch.arange(4).repeat(40), _labels(_fit(x_ND).model, x_ND)) == 1


def test_a_constant_dimension_changes_nothing() -> None:
    x_ND, label_N = _clouds(4, 400, 2, 15.0)
    wider_ND = torch.cat([x_ND, torch.full((400, 1), 3.0)], dim=1)
    assert adjusted_rand_score(label_N, _labels(_fit(wider_ND).model, wider_ND)) == 1


def _overlapping() -> tuple[Tensor, DPM]:
    """Some thirty components that overlap, each of its own."""
    label_N = torch.arange(4000) % 40
    mean_KD = 2 * torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    x_ND = torch.randn(4000, 6, generator=torch.Generator().manual_seed(0)) + mean_KD[label_N]
    model = _fit(x_ND, grouping=None, attempts=0).model
    assert isinstance(model, DPM)
    assert len(model.id_K) > 20
    return x_ND, model


@pytest.fixture(scope="module")
def overlapping() -> tuple[Tensor, DPM]:
    return _overlapping()


def _truncated(model: DPM, candidates: int) -> DPM:
    return replace(model, config=model.config.model_copy(update={"candidates": candidates}))


def _assert_close(actual: DPMStats, expected: DPMStats, runner_up: float = 1e-9) -> None:
    """Float32 log densities, which a truncated E-step has, round differently in blocks of other sizes."""
    for name, value in expected.tensors().items():
        relative = runner_up if name == "runner_up_K" else 1e-9
        torch.testing.assert_close(actual.tensors()[name], value, rtol=relative, atol=1e-7)


def test_as_many_candidates_as_clusters_are_exact(overlapping: tuple[Tensor, DPM]) -> None:
    x_ND, model = overlapping
    exact = model.expect(x_ND, torch.arange(4000))
    for candidates in (len(model.id_K), 2 * len(model.id_K)):
        _assert_close(_truncated(model, candidates).expect(x_ND, torch.arange(4000)), exact)
    every_NC = _truncated(model, len(model.id_K)).candidates(x_ND, model.population.clusters)
    joint_NK, none = model.log_joint(x_ND)
    assert none is None
    at_NC = model.population.clusters.log_density_at(x_ND, every_NC) + model.population.log_weight_K[every_NC]
    torch.testing.assert_close(at_NC, joint_NK.gather(1, every_NC), rtol=1e-4, atol=1e-4)


def test_few_candidates_change_few_assignments(overlapping: tuple[Tensor, DPM]) -> None:
    """Measured: 1 % of rows with the 2 nearest, 0.3 % with 3, 0.03 % with 5, none with 8."""
    x_ND, model = overlapping
    exact_N, _ = model.sets_of(x_ND)
    shares = [float((_truncated(model, c).sets_of(x_ND)[0] != exact_N).float().mean()) for c in (2, 3, 5, 8)]
    assert 0 < shares[0] < 0.02
    assert shares[1] < 0.006
    assert shares[2] < 0.001
    assert shares[3] < 0.0005
    found, whole = _truncated(model, 5).assign(x_ND), model.assign(x_ND)
    assert (found.cluster_N != whole.cluster_N).float().mean() < 0.001
    same_N = found.cluster_N == whole.cluster_N
    torch.testing.assert_close(found.score_N[same_N], whole.score_N[same_N], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("candidates", [2, 5])
@pytest.mark.parametrize("size", [7, 1000])
def test_truncated_sums_add_over_blocks(overlapping: tuple[Tensor, DPM], candidates: int, size: int) -> None:
    x_ND, model = overlapping
    x_ND, truncated = x_ND[:1500], _truncated(model, candidates)
    first, *rest = (truncated.expect(x_nD, torch.arange(len(x_nD))) for x_nD in x_ND.split(size))
    whole = truncated.expect(x_ND, torch.arange(1500))
    _assert_close(sum(rest, start=first), whole, runner_up=1e-6)
    for part in rest:
        first += part
    _assert_close(first, whole, runner_up=1e-6)
    assert whole.sets.count_K.sum() == 1500


def test_second_best_joint_densities_are_summed_by_cluster(overlapping: tuple[Tensor, DPM]) -> None:
    x_ND, model = overlapping
    top_N2, best_N2 = (model.population.clusters.log_density(x_ND) + model.population.log_weight_K).topk(2, dim=1)
    expected_K = torch.zeros(len(model.id_K)).double().index_add_(0, best_N2[:, 0], top_N2[:, 1])
    torch.testing.assert_close(model.expect(x_ND, torch.arange(4000)).runner_up_K, expected_K)


def test_rows_on_trial_are_in_one_half_or_the_other() -> None:
    x_ND, _ = _clouds(3, 600, 2, 10.0)
    model = start(DPMConfig(), summarize(x_ND.numpy(), torch.arange(600).numpy(), FitConfig()))
    assert len(model.population.trial_J) == 0
    model = model.maximize(model.expect(x_ND, torch.arange(600)), torch.Generator()).model  # type: ignore[assignment]
    assert model.population.trial_J.tolist() == [0, 1, 2]
    set_N, _ = model.sets_of(x_ND)
    assert torch.equal(set_N % 3, model.log_joint(x_ND)[0].argmax(dim=1))
    halves_NH = model.population.halves.log_density(x_ND) + model.population.log_weight_half_H
    second_N = halves_NH.gather(1, (2 * (set_N % 3) + 1)[:, None]) > halves_NH.gather(1, (2 * (set_N % 3))[:, None])
    assert torch.equal(set_N >= 3, second_N[:, 0])
    assert 100 < int((set_N >= 3).sum()) < 500


def _banana() -> Tensor:
    """An arc of radius 5, and a round cluster apart from it."""
    generator = torch.Generator().manual_seed(0)
    angle_N = 3.3 * torch.rand(3000, generator=generator)
    arc_ND = 5 * torch.stack([angle_N.cos(), angle_N.sin()], dim=1) + 0.35 * torch.randn(3000, 2, generator=generator)
    return torch.cat([arc_ND, 0.5 * torch.randn(1000, 2, generator=generator) - torch.tensor([[0.0, 8.0]])])


@pytest.fixture(scope="module")
def banana() -> Fit:
    return _fit(_banana())


def test_components_of_a_banana_share_the_id_of_the_largest(banana: Fit) -> None:
    model = banana.model
    assert isinstance(model, DPM)
    assert len(model.id_K) > 3
    assert banana.history[-1].clusters == len(model.id_K.unique()) == 2
    assert model.population.id_K.unique().numel() == len(model.id_K)
    for identity in model.id_K.unique():
        members = torch.nonzero(model.id_K == identity).flatten()
        largest = members[model.population.log_weight_K[members].argmax()]
        assert model.population.id_K[largest] == identity
    label_N = (torch.arange(4000) >= 3000).long()
    assert adjusted_rand_score(label_N, _labels(model, _banana())) > 0.999


def test_a_clusters_probability_is_the_sum_over_its_components(banana: Fit) -> None:
    model, x_ND = banana.model, _banana()[::10] + 0.5
    assert isinstance(model, DPM)
    found = model.assign(x_ND)
    posterior_NK = model.log_joint(x_ND)[0].softmax(dim=1)
    own_NK = model.id_K == found.cluster_N[:, None]
    torch.testing.assert_close(found.probability_N.double(), (posterior_NK * own_NK).sum(dim=1), rtol=1e-5, atol=1e-6)
    assert (found.probability_N > posterior_NK.amax(dim=1) + 0.1).any()
    assert torch.equal(found.component_N, (posterior_NK * own_NK).argmax(dim=1))
    assert set(found.runner_up_N.tolist()) <= {*model.id_K.tolist(), -1}
    assert not (found.runner_up_N == found.cluster_N).any()


def test_joins_are_told_as_merges_with_a_reason(banana: Fit) -> None:
    model = banana.model
    assert isinstance(model, DPM)
    last = max(number for number, _ in banana.moves)
    joins = [move for number, move in banana.moves if number == last and "components of one cluster" in move.why]
    assert len(joins) == len(model.id_K) - 2
    assert all(move.kind == "merge" and move.accepted and len(move.clusters) == 2 for move in joins)
    assert {identity for move in joins for identity in move.clusters} <= set(model.population.id_K.tolist())
    assert any("nats deep" in move.why for move in joins)


def test_a_saved_grouping_is_the_same(banana: Fit) -> None:
    model, x_ND = banana.model, _banana()
    assert isinstance(model, DPM)
    again = load(model.config, safetensors.torch.load(safetensors.torch.save(model.tensors())))
    assert torch.equal(again.id_K, model.id_K)
    for name, value in vars(model.assign(x_ND)).items():
        assert torch.equal(vars(again.assign(x_ND))[name], value), name
    regrouped, joins = again.grouped(model.config.grouping)  # type: ignore[arg-type]
    assert torch.equal(regrouped.id_K, model.id_K)
    assert len(joins) == len(model.id_K) - 2


def test_without_a_grouping_every_component_is_a_cluster() -> None:
    model = _fit(_banana(), grouping=None).model
    assert isinstance(model, DPM)
    assert model.cluster_K is None
    assert "cluster_K" not in model.tensors()
    assert len(model.id_K.unique()) == len(model.id_K) > 3


def test_a_started_model_covers_the_sample_with_its_seeds() -> None:
    x_ND, _ = _clouds(10, 500, 2, 10.0)
    summary = summarize(x_ND.numpy(), torch.arange(500).numpy(), FitConfig())
    model = start(DPMConfig(initial_clusters=30), summary)
    assert 8 <= len(model.id_K) <= 30
    assert model.population.log_weight_K.exp().sum().item() == pytest.approx(1)
    assert all(a != b for a, b in itertools.pairwise(sorted(model.id_K.tolist())))


def test_a_search_ends_although_something_is_proposed_for_ever() -> None:
    """Stalled: proposals are recorded, none is accepted."""
    x_ND, _ = _clouds(4, 400, 2, 10.0)
    rows_N = torch.arange(400)
    first = start(DPMConfig(initial_clusters=10, attempts=0), summarize(x_ND.numpy(), rows_N.numpy(), FitConfig()))
    progress = replace(first.population.progress, best=1e12, stalled=10**6)
    model = replace(first, population=replace(first.population, progress=progress), opening=())
    moves: list[Move] = []
    for _ in range(8):
        update = model.maximize(model.expect(x_ND, rows_N), torch.Generator())
        moves += [move for move in update.moves if "components of one" not in move.why]
        model = update.model  # type: ignore[assignment]
    assert update.settled
    assert moves
    assert not any(move.accepted for move in moves)
