"""One sweep on Moments alone: what it accepts, what that is worth, and when it ends."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.clusterer import DataSummary, Move
from models.dpm.concentration import likeliest_concentration
from models.dpm.config import DPMConfig
from models.dpm.moves import log_joint, log_split_ratio
from models.dpm.population import Entry, Population, Progress, Roster, newborn
from models.dpm.prior import Covariance, Prior, prior_of
from models.dpm.sweep import Sums, _advanced, next_population
from models.moments import Moments, moments_of_sets

KINDS: list[Covariance] = ["full", "diagonal", "spherical", "tied"]
each_family = pytest.mark.parametrize("kind", KINDS)
CONFIG = DPMConfig(prior_scale=0.5, patience=1)


def _config(kind: Covariance, **settings: object) -> DPMConfig:
    return CONFIG.model_copy(update={"covariance": kind, **settings})


def _clouds(rows: int, clouds: int, apart: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    label_N = torch.arange(rows) % clouds
    noise_ND = torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed))
    return noise_ND + apart * torch.stack([label_N, label_N.square(), 0 * label_N], dim=1), label_N


def _prior(kind: Covariance, x_ND: Tensor) -> Prior:
    """Expects unit covariances, which all clouds here have, around the mean of the rows."""
    eye_DD = torch.eye(x_ND.shape[1]).double()
    return prior_of(kind, DataSummary(len(x_ND), x_ND.double().mean(dim=0), eye_DD, x_ND, 0), 1.0, 1.0, None)


def _moments(prior: Prior, x_ND: Tensor, set_N: Tensor) -> Moments:
    return moments_of_sets(x_ND, set_N, int(set_N.max()) + 1, prior.mean_D, diagonal=prior.diagonal)


def _sums(moments: Moments, clusters: int) -> Sums:
    return Sums(moments, torch.full((clusters,), -torch.inf, dtype=torch.float64))  # nobody gains by dying


def _swept(
    config: DPMConfig, population: Population, moments: Moments, seed: int = 0, *, trials: bool = False
) -> tuple[Population, list[Move], float]:
    rng = torch.Generator().manual_seed(seed)
    return next_population(config, population, _sums(moments, len(population)), rng, trials=trials)


def _one_trial(config: DPMConfig, prior: Prior, halves: Moments) -> Population:
    """One cluster whose split is on trial, about to be judged."""
    roster, whole = Roster(config, prior, config.concentration), halves.total()
    roster.entries.append(
        Entry(0, whole, tried=float(whole.count_K[0]), trial=True, age=config.patience, halves=halves)
    )
    return roster.population(1, Progress())


def _counts(population: Population) -> list[float]:
    return (population.log_weight_K.exp()).tolist()


@each_family
@settings(max_examples=15)
@given(seed=st.integers(0, 99), cells=st.integers(2, 9), apart=st.floats(0, 5))
def test_accepted_merges_raise_the_log_joint_by_their_ratios(
    kind: Covariance, seed: int, cells: int, apart: float
) -> None:
    x_ND, label_N = _clouds(240, 3, apart, seed)
    set_N = torch.randint(0, cells, (240,), generator=torch.Generator().manual_seed(seed))
    set_N = (set_N * 3 + label_N).unique(return_inverse=True)[1]
    config, prior = _config(kind), _prior(kind, x_ND)
    moments = _moments(prior, x_ND, set_N)
    after, moves, objective = _swept(config, newborn(config, prior, moments), moments)
    assert objective == pytest.approx(log_joint(prior, 10.0, moments), rel=1e-12)
    parent = {k: k for k in range(len(moments))}  # of accepted pairs and groups, whoever has the larger id joins
    pairs = [move for move in moves if move.kind == "merge" and move.accepted]
    for move in pairs:
        roots = {_root(parent, k) for k in move.clusters}
        parent |= dict.fromkeys(roots, min(roots))
    group_K = torch.tensor([_root(parent, k) for k in range(len(moments))]).unique(return_inverse=True)[1]
    died = {move.clusters[0] for move in moves if move.kind == "death"}
    assert len(after) == len(group_K.unique()) - len(died)
    if died:
        return
    joined = _moments(prior, x_ND, group_K[set_N])
    gain = log_joint(prior, 10.0, joined) - objective
    whole = [move for move in pairs if len(move.clusters) > 2]
    told = {k for move in whole for k in move.clusters}
    alone = [move for move in pairs if len(move.clusters) == 2 and not told & set(move.clusters)]
    assert gain == pytest.approx(sum(move.log_ratio for move in [*whole, *alone]), abs=1e-6 * abs(objective))
    assert gain >= 0


def _root(parent: dict[int, int], k: int) -> int:
    while parent[k] != k:
        k = parent[k]
    return k


@each_family
def test_cells_of_three_clouds_become_three_and_the_largest_names_them(kind: Covariance) -> None:
    x_ND, label_N = _clouds(300, 3, 15.0)
    set_N = 2 * label_N + (torch.arange(300) % 7 == 0)  # of each cloud a large cell and a small one
    config, prior = _config(kind), _prior(kind, x_ND)
    moments = _moments(prior, x_ND, set_N)
    after, moves, _ = _swept(config, newborn(config, prior, moments), moments)
    assert after.id_K.sort().values.tolist() == [0, 2, 4]
    assert _counts(after) == pytest.approx([1 / 3] * 3)
    accepted = [move for move in moves if move.accepted]
    assert sorted(move.clusters for move in accepted) == [(0, 1), (2, 3), (4, 5)]
    assert all(move.log_ratio > 0 and "likelier together" in move.why for move in accepted)
    refused = [move for move in moves if not move.accepted]
    assert refused
    assert any(move.log_ratio < 0 for move in refused)
    for move in refused:
        better = "likelier together, but one of them has a better merge in this sweep"
        assert move.why == (better if move.log_ratio > 0 else "likelier apart")


@each_family
def test_a_split_raises_the_log_joint_by_its_ratio_and_the_merge_of_its_children_undoes_it(kind: Covariance) -> None:
    x_ND, label_N = _clouds(250, 2, 12.0)
    label_N = torch.where(torch.arange(250) < 60, 0, label_N)  # so that one child is larger
    x_ND = torch.where(torch.arange(250)[:, None] < 60, _clouds(250, 1, 0.0)[0], x_ND)
    config, prior = _config(kind), _prior(kind, x_ND)
    halves = _moments(prior, x_ND, label_N)
    population = _one_trial(config, prior, halves)
    split, moves, before = _swept(config, population, halves)
    (move,) = [move for move in moves if move.accepted]
    assert (move.kind, move.clusters) == ("split", (0, 1))
    assert before == pytest.approx(log_joint(prior, 10.0, halves.total()), rel=1e-12)
    assert log_joint(prior, 10.0, halves) - before == pytest.approx(move.log_ratio, abs=1e-7)
    larger = int(halves.count_K.argmax())  # keeps the id
    assert split.id_K.tolist() == [0, 1]
    assert _counts(split) == pytest.approx([max(halves.count_K.tolist()) / 250, min(halves.count_K.tolist()) / 250])
    torch.testing.assert_close(split.clusters.mean_KD[0], newborn(config, prior, halves).clusters.mean_KD[larger])

    order = torch.tensor([larger, 1 - larger])
    metropolis = config.model_copy(update={"metropolis": True})
    _, back, _ = _swept(metropolis, split, halves[order])
    (merge,) = [move for move in back if move.kind == "merge"]
    assert merge.log_ratio == pytest.approx(-move.log_ratio, abs=1e-7)
    restored = newborn(config, prior, halves[order].total())
    torch.testing.assert_close(restored.clusters.mean_KD, population.clusters.mean_KD)
    torch.testing.assert_close(restored.clusters.chol_KDD, population.clusters.chol_KDD)


@each_family
def test_halves_of_one_cloud_stay_together_and_the_next_axis_is_tried(kind: Covariance) -> None:
    x_ND, _ = _clouds(300, 1, 0.0)
    config, prior = _config(kind, axes=3), _prior(kind, x_ND)
    halves = _moments(prior, x_ND, (x_ND[:, 0] > 0).long())
    population = _one_trial(config, prior, halves)
    for axis in (1, 2, 3):
        population, (move,), _ = _swept(config, population, halves, trials=True)
        assert (move.kind, move.clusters, move.accepted) == ("split", (0,), False)
        left, right = halves[torch.tensor([0])], halves[torch.tensor([1])]
        assert move.log_ratio == pytest.approx(log_split_ratio(prior, 10.0, left, right).item())
        assert "are likelier together" in move.why
        assert population.axis_K.tolist() == [axis]
        assert len(population.trial_J) == (axis < 3)
    still, moves, _ = _swept(config, population, halves.total(), trials=True)
    assert moves == []
    assert len(still.trial_J) == 0  # whole, while it has the same rows
    smaller = _moments(prior, x_ND[:250], torch.zeros(250).long())
    drifted, _, _ = _swept(config, still, smaller, trials=True)
    assert (drifted.trial_J.tolist(), drifted.axis_K.tolist()) == ([0], [0])


def test_a_half_below_min_size_is_no_split_and_says_so() -> None:
    x_ND = torch.cat([_clouds(100, 1, 0.0)[0], _clouds(4, 1, 0.0)[0] + 50])
    prior = _prior("full", x_ND)
    halves = _moments(prior, x_ND, (torch.arange(104) >= 100).long())
    after, (move,), _ = _swept(CONFIG, _one_trial(CONFIG, prior, halves), halves)
    assert len(after) == 1
    assert move.log_ratio > 0
    assert move.why == "halves of 100 and 4 rows: fewer than min_size 5"
    allowed = CONFIG.model_copy(update={"min_size": 4})
    assert len(_swept(allowed, _one_trial(allowed, prior, halves), halves)[0]) == 2


def test_trials_begin_in_quiet_sweeps_only() -> None:
    x_ND, label_N = _clouds(300, 3, 15.0)
    prior = _prior("full", x_ND)
    cells = _moments(prior, x_ND, 2 * label_N + (torch.arange(300) % 7 == 0))
    busy, _, _ = _swept(CONFIG, newborn(CONFIG, prior, cells), cells, trials=True)
    assert len(busy.trial_J) == 0
    clusters = _moments(prior, x_ND, label_N)
    quiet, _, _ = _swept(CONFIG, busy, clusters[torch.tensor([0, 1, 2])], trials=True)
    assert quiet.trial_J.tolist() == [0, 1, 2]
    assert len(_swept(CONFIG, busy, clusters, trials=False)[0].trial_J) == 0


def test_patience_is_how_many_sweeps_subclusters_take() -> None:
    x_ND, label_N = _clouds(200, 2, 12.0)
    config, prior = _config("full", patience=3), _prior("full", x_ND)
    halves = _moments(prior, x_ND, label_N)
    population = replace(_one_trial(config, prior, halves), age_J=torch.tensor([0]))
    for age in (1, 2):
        population, moves, _ = _swept(config, population, halves)
        assert moves == []
        assert population.age_J.tolist() == [age]
    after, (move,), _ = _swept(config, population, halves)
    assert move.accepted
    assert len(after) == 2


def test_a_branch_that_no_pair_wants_is_merged_as_a_whole() -> None:
    """The core of a cloud and three sectors around it."""
    x_ND = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sector_N = ((torch.atan2(x_ND[:, 1], x_ND[:, 0]) / (2 * math.pi) + 0.5) * 3).long().clamp_max(2)
    prior = _prior("full", x_ND)
    moments = _moments(prior, x_ND, torch.where(x_ND.norm(dim=1) < 0.6, 3, sector_N))
    after, moves, before = _swept(CONFIG, newborn(CONFIG, prior, moments), moments)
    (branch,) = [move for move in moves if move.accepted]
    assert sorted(branch.clusters) == [0, 1, 2, 3]
    assert "as a whole branch of their dendrogram" in branch.why
    assert log_joint(prior, 10.0, moments.total()) - before == pytest.approx(branch.log_ratio, abs=1e-6)
    assert len(after) == 1
    metropolis = CONFIG.model_copy(update={"metropolis": True})
    assert len(_swept(metropolis, newborn(CONFIG, prior, moments), moments)[0]) == 4


def test_a_cluster_its_neighbours_explain_better_dies_and_is_not_merged_besides() -> None:
    x_ND, label_N = _clouds(300, 3, 15.0)
    prior = _prior("full", x_ND)
    moments = _moments(prior, x_ND, label_N)
    population = newborn(CONFIG, prior, moments)
    sums = Sums(moments, torch.tensor([-torch.inf, 1e6, -torch.inf]).double())
    after, moves, _ = next_population(CONFIG, population, sums, torch.Generator(), trials=False)
    assert after.id_K.tolist() == [0, 2]
    (death,) = [move for move in moves if move.kind == "death"]
    assert death.clusters == (1,)
    assert not any(1 in move.clusters for move in moves if move.kind == "merge")


def test_a_stalled_search_records_what_it_would_have_done_and_does_nothing() -> None:
    """Otherwise a small cluster that splits off, dies and splits off again keeps a fit going for ever."""
    x_ND, label_N = _clouds(300, 3, 15.0)
    prior = _prior("full", x_ND)
    cells = _moments(prior, x_ND, 2 * label_N + (torch.arange(300) % 7 == 0))
    population = newborn(CONFIG, prior, cells)
    for stalled, ended in ((CONFIG.stall(3) - 2, False), (CONFIG.stall(3) - 1, True)):
        waiting = replace(population, progress=Progress(best=1e9, stalled=stalled))
        after, moves, _ = _swept(CONFIG, waiting, cells, trials=True)
        wanted = [move for move in moves if move.log_ratio > 0]
        assert sum(move.accepted for move in moves) == (0 if ended else 3)
        assert len(wanted) >= 3
        assert all(("but the search has ended" in move.why) == ended for move in wanted)
        assert len(after) == (6 if ended else 3)
        assert len(after.trial_J) == 0


@pytest.mark.parametrize(
    ("objective", "best", "stalled"),
    [(-90.0, -90.0, 0), (-100.0, -100.0, 6), (-110.0, -100.0, 6), (-100.0 + 1e-5, -100.0 + 1e-5, 6)],
)
def test_only_a_better_partition_counts_as_progress(objective: float, best: float, stalled: int) -> None:
    after = _advanced(Progress(objective=-105.0, best=-100.0, stalled=5, fitted=2), objective, 1e-6)
    assert after == Progress(objective, best, stalled, 2)


def test_a_best_that_was_forgotten_does_not_start_the_count_again() -> None:
    assert _advanced(Progress(-105.0, -math.inf, 5, 2), -500.0, 1e-6) == Progress(-500.0, -500.0, 5, 2)


def test_metropolis_follows_its_generator() -> None:
    """Rows so far from their cloud that some generators take them apart and most do not."""
    x_ND, _ = _clouds(40, 1, 0.0)
    x_ND[:4] = 0.3 * x_ND[:4] + 1.7
    config = _config("full", metropolis=True, min_size=2)
    prior = _prior("full", x_ND)
    halves = _moments(prior, x_ND, (torch.arange(40) < 4).long())
    population = _one_trial(config, prior, halves)
    ratio = log_split_ratio(prior, 10.0, halves[torch.tensor([0])], halves[torch.tensor([1])]).item()
    assert -4 < ratio < -0.2
    taken = [_swept(config, population, halves, seed)[1][0].accepted for seed in range(300)]
    assert taken == [_swept(config, population, halves, seed)[1][0].accepted for seed in range(300)]
    chance = math.exp(ratio)
    assert sum(taken) == pytest.approx(300 * chance, abs=4 * math.sqrt(300 * chance * (1 - chance)))
    (move,) = _swept(config, population, halves, taken.index(True))[1]
    assert "likelier together, but chance decided otherwise" in move.why


def test_the_concentration_follows_the_number_of_clusters_where_asked() -> None:
    x_ND, label_N = _clouds(300, 3, 15.0)
    prior = _prior("full", x_ND)
    moments = _moments(prior, x_ND, label_N)
    fixed, _, _ = _swept(CONFIG, newborn(CONFIG, prior, moments), moments)
    assert fixed.concentration == 10.0
    learnt = _config("full", learn_concentration=True)
    after, _, _ = _swept(learnt, newborn(learnt, prior, moments), moments)
    assert after.concentration == pytest.approx(likeliest_concentration(3, 300))
    assert after.concentration < 2  # ten expect many more than three
    drawn = learnt.model_copy(update={"metropolis": True})
    values = {_swept(drawn, newborn(drawn, prior, moments), moments, seed)[0].concentration for seed in (0, 0, 1)}
    assert len(values) == 2


def test_the_prior_follows_the_clusters_where_no_scale_is_given() -> None:
    """Overlapping clusters: wider than a tenth of the data, so the prior is theirs."""
    x_ND, label_N = _clouds(600, 3, 1.0)
    config, prior = DPMConfig(merge_neighbors=1), _prior("full", x_ND)
    moments = _moments(prior, x_ND, label_N)
    after, _, _ = _swept(config, newborn(config, prior, moments), moments)
    assert after.progress.fitted == len(after)
    assert after.progress.best == -math.inf  # under another prior
    assert not torch.equal(after.prior.tensors()["psi_DD"], prior.tensors()["psi_DD"])
    fixed, _, _ = _swept(CONFIG, newborn(CONFIG, prior, moments), moments)
    assert fixed.prior is prior
