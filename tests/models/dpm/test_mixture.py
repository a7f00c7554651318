from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from models.clusterer import Clusterer, Move
from models.dpm.config import DPMConfig
from models.dpm.mixture import DPM, start
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
    assert all(move.kind == "split" and not move.accepted for _, move in result.moves)  # and it says what it tried
    assert len(result.moves) >= 3


def test_rotation_and_unit_do_not_change_the_partition() -> None:
    x_ND, _ = _clouds(6, 900, 3, 10.0)
    generator = torch.Generator().manual_seed(1)
    turn_DD = torch.linalg.qr(torch.randn(3, 3, generator=generator))[0]
    same = _labels(_fit(x_ND).model, x_ND)
    for moved_ND in (x_ND @ turn_DD, 1000 * x_ND, x_ND + 1e4):
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
        if move.kind == "split" and move.accepted:
            assert move.clusters[0] in born
            assert move.clusters[1] not in born
            born.append(move.clusters[1])
    assert set(result.model.id_K.tolist()) <= set(born)


def test_accepted_greedy_moves_raise_the_objective() -> None:
    x_ND, _ = _clouds(8, 800, 3, 10.0)
    accepted = [move for _, move in _fit(x_ND, initial_clusters=20).moves if move.accepted and move.kind != "death"]
    assert "merge" in {move.kind for move in accepted}
    assert all(move.log_ratio > 0 for move in accepted)


@pytest.mark.parametrize("metropolis", [False, True])
def test_the_reason_of_a_move_is_what_decided_it(metropolis: bool) -> None:
    x_ND, _ = _clouds(3, 300, 2, 3.0)
    rows = torch.arange(300).numpy()
    config = DPMConfig(metropolis=metropolis, initial_clusters=10, patience=1)
    moves = [move for _, move in fit(config, x_ND.numpy(), rows, FitConfig(max_passes=40)).moves]
    decided = [move for move in moves if move.kind != "death" and "min_size" not in move.why]
    assert decided
    for move in decided:
        above, below = ("apart", "together") if move.kind == "split" else ("together", "apart")
        assert f"likelier {above if move.log_ratio > 0 else below}" in move.why
        assert (", but " in move.why) == (move.accepted != (move.log_ratio > 0))


@settings(max_examples=10)
@given(block=st.integers(40, 400))
def test_a_fit_does_not_depend_on_the_size_of_blocks(block: int) -> None:
    x_ND, _ = _clouds(4, 400, 2, 10.0)
    rows = torch.arange(400).numpy()
    models = [fit(DPMConfig(), x_ND.numpy(), rows, FitConfig(block_rows=size)).model for size in (400, block)]
    assert torch.equal(_labels(models[0], x_ND), _labels(models[1], x_ND))


def test_metropolis_is_seeded() -> None:
    x_ND, _ = _clouds(4, 400, 2, 3.0)
    rows = torch.arange(400).numpy()
    first, again = (
        fit(DPMConfig(metropolis=True), x_ND.numpy(), rows, FitConfig(seed=1, max_passes=15)) for _ in range(2)
    )
    assert first.history == again.history


def test_degenerate_rows_never_raise() -> None:
    generator = torch.Generator().manual_seed(0)
    constant_column = torch.cat([torch.randn(50, 2, generator=generator), torch.ones(50, 1)], dim=1)
    wide = torch.randn(5, 20, generator=generator)
    duplicates = torch.randn(4, 3, generator=generator).repeat(30, 1)
    for x_ND in (constant_column, wide, duplicates, torch.ones(7, 3), torch.ones(1, 3), 1e-30 * wide, 1e15 * wide):
        result = _fit(x_ND)
        assert result.settled
        assert torch.isfinite(result.model.assign(x_ND).probability_N).all()  # type: ignore[attr-defined]


def test_a_started_model_covers_the_sample_with_its_seeds() -> None:
    x_ND, _ = _clouds(10, 500, 2, 10.0)
    summary = summarize(x_ND.numpy(), torch.arange(500).numpy(), FitConfig())
    model = start(DPMConfig(initial_clusters=30), summary)
    assert 10 <= len(model.id_K) <= 30
    assert all(a != b for a, b in itertools.pairwise(sorted(model.id_K.tolist())))


def test_a_search_that_has_stalled_proposes_but_accepts_nothing_and_settles() -> None:
    """Otherwise a small cluster that splits off, dies and splits off again keeps a fit going for ever."""
    x_ND, _ = _clouds(4, 400, 2, 10.0)
    rows_N = torch.arange(400)
    model = start(DPMConfig(initial_clusters=1), summarize(x_ND.numpy(), rows_N.numpy(), FitConfig()))
    stalled = replace(model.population, best=1e12, stalled=10**6)
    current: Clusterer = replace(model, population=stalled)
    proposed: list[Move] = []
    for _ in range(8):
        update = current.maximize(current.expect(x_ND, rows_N), torch.Generator())
        proposed += update.moves
        current = update.model
    assert update.settled
    assert any(move.log_ratio > 0 for move in proposed)
    assert not any(move.accepted for move in proposed)
    assert all(("the search has ended" in move.why) == (move.log_ratio > 0) for move in proposed)
