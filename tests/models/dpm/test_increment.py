"""A mixture that goes on: what is born, split, merged and ended when rows come later, and what stays as it was."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.clusterer import DataSummary
from models.dpm.config import DPMConfig
from models.dpm.counting import counted_sets
from models.dpm.mixture import DPM, DPMStats, load
from models.dpm.moves import log_joint
from models.dpm.population import newborn
from models.dpm.prior import Covariance, prior_of
from models.errors import ShoalError
from models.increment import Held, Refinable, Refinement, folded, scaled, total

KINDS: list[Covariance] = ["full", "diagonal", "spherical", "tied"]
CORNERS = torch.tensor([[0.0, 0.0, 0.0], [20.0, 0.0, 0.0], [0.0, 20.0, 0.0], [0.0, 0.0, 20.0]])


def _noise(rows: int, seed: int, dim: int = 3) -> Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))


def _clouds(rows: int, clouds: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    label_N = torch.arange(rows) % clouds
    return _noise(rows, seed) + CORNERS[label_N], label_N


def _model(x_ND: Tensor, label_N: Tensor, kind: Covariance = "full", **options: object) -> DPM:
    """Components of the given rows, under a prior that expects unit covariances."""
    config = DPMConfig.model_validate({"covariance": kind, "prior_scale": 1.0, **options})
    dim = x_ND.shape[1]
    prior = prior_of(kind, DataSummary(2, x_ND.double().mean(dim=0), torch.eye(dim).double(), x_ND, 0), 1.0, 0.1, None)
    sets = counted_sets(prior, x_ND, label_N, None, int(label_N.max()) + 1)
    return DPM(config, newborn(config, prior, sets), x_ND, torch.arange(len(sets)))


def _held(x_ND: Tensor, component_N: Tensor, new: bool = True) -> Held:
    rows = len(x_ND)
    return Held(
        x_ND, torch.arange(rows) * 7919 % 1_000_003, component_N, torch.ones(rows).double(), torch.full((rows,), new)
    )


def _both(first: Held, second: Held) -> Held:
    names = ("x_ND", "component_N", "weight_N", "new_N")
    x_ND, component_N, weight_N, new_N = (torch.cat([getattr(first, name), getattr(second, name)]) for name in names)
    return Held(x_ND, torch.arange(len(x_ND)), component_N, weight_N, new_N)


def _arrived(model: DPM, x_ND: Tensor) -> Held:
    return _held(x_ND, model.assign(x_ND).component_N)


def _refined(model: DPM, held: Held, stats: DPMStats, sample_MD: Tensor | None = None) -> Refinement:
    sample_MD = torch.cat([model.sample_MD, held.x_ND]) if sample_MD is None else sample_MD
    return model.refined(held, stats, sample_MD, torch.Generator().manual_seed(0))


def _after(model: DPM, x_ND: Tensor, held: Held) -> DPMStats:
    """Of rows that the model was made from, and of those at hand."""
    old = model.counted(x_ND, model.sets_of(x_ND)[0])
    return old + model.counted(held.x_ND, held.component_N, held.weight_N)


def _accepted(found: Refinement) -> list[tuple[str, tuple[int, ...]]]:
    return [(move.kind, move.clusters) for move in found.moves if move.accepted]


def _population(found: Refinement) -> DPM:
    assert isinstance(found.model, DPM)
    return found.model


def _close(actual: DPMStats, expected: DPMStats, relative: float = 1e-12) -> None:
    for one, other in zip(actual.sets.tensors().values(), expected.sets.tensors().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=relative, atol=relative * float(other.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_counted_where_they_are_found_leave_what_expect_leaves(kind: Covariance) -> None:
    x_ND, label_N = _clouds(300, 3)
    model = _model(x_ND, label_N, kind)
    component_N, _ = model.sets_of(x_ND)
    counted, expected = model.counted(x_ND, component_N), model.expect(x_ND, label_N)
    for one, other in zip(counted.sets.tensors().values(), expected.sets.tensors().values(), strict=True):
        assert torch.equal(one, other)
    half = model.counted(x_ND, component_N, torch.full((300,), 0.5).double())
    _close(half, scaled(expected, 0.5))
    assert isinstance(model, Refinable)


def test_counted_by_hand() -> None:
    model = _model(*_clouds(300, 2))
    origin_D = model.population.prior.mean_D
    x_ND = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
    sets = model.counted(x_ND, torch.tensor([1, 1, 0]), torch.tensor([2.0, 0.5, 1.0]).double()).sets
    assert sets.count_K.tolist() == [1, 2.5]
    first, second, third = x_ND.double() - origin_D
    torch.testing.assert_close(sets.sum_KD, torch.stack([third, 2 * first + second / 2]))
    torch.testing.assert_close(sets.second_KDD[1], 2 * torch.outer(first, first) + torch.outer(second, second) / 2)


@settings(max_examples=5, deadline=None)
@given(st.lists(st.integers(1, 299), min_size=9, max_size=9, unique=True))
def test_ten_increments_of_a_fixed_model_are_one_pass(cuts: list[int]) -> None:
    x_ND, label_N = _clouds(300, 3)
    model = _model(x_ND, label_N)
    bounds = [0, *sorted(cuts), 300]
    parts = [model.expect(x_ND[a:b], label_N[a:b]) for a, b in itertools.pairwise(bounds)]
    _close(total(parts), model.expect(x_ND, label_N), 1e-9)
    faded = folded(parts[0], 0.5, parts[1])
    _close(
        faded,
        model.counted(
            x_ND[: bounds[2]],
            model.sets_of(x_ND[: bounds[2]])[0],
            torch.where(torch.arange(bounds[2]) < bounds[1], 0.5, 1.0).double(),
        ),
        1e-9,
    )


@pytest.mark.parametrize(("kind", "assignment"), [*((kind, "predictive") for kind in KINDS), ("full", "mode")])
def test_a_cloud_among_arrivals_is_born_and_nobody_else_changes(kind: Covariance, assignment: str) -> None:
    x_ND, label_N = _clouds(900, 3)
    model = _model(x_ND, label_N, kind, assignment=assignment)
    new_nD, new_n = _clouds(240, 4, seed=1)
    held = _arrived(model, new_nD)
    found = _refined(model, held, _after(model, x_ND, held))
    after = _population(found)
    assert after.component_K.tolist() == [0, 1, 2, 3]
    assert after.id_K.tolist() == [0, 1, 2, 4]  # components and clusters share one counter
    assert after.next_id == 5
    assert torch.equal(found.component_N, new_n)
    assert [kind for kind, _ in _accepted(found)] == ["birth"]
    assert not found.heir
    assert not found.unsettled
    assert found.stats.sets.count_K.tolist() == [360, 360, 360, 60]
    assert torch.equal(after.assign(new_nD).component_N, new_n)
    assert after.population.progress.objective == pytest.approx(
        log_joint(after.population.prior, after.population.concentration, found.stats.sets)
    )


def test_a_birth_gains_what_it_says() -> None:
    """The log joint of all rows with the newborn, less that of the same partition without it."""
    x_ND, label_N = _clouds(900, 3)
    model = _model(x_ND, label_N)
    new_nD = _clouds(240, 4, seed=1)[0]
    held = _arrived(model, new_nD)
    before = _after(model, x_ND, held)
    found = _refined(model, held, before)
    prior, alpha = model.population.prior, model.population.concentration
    gain = log_joint(prior, alpha, found.stats.sets) - log_joint(prior, alpha, before.sets)
    (told,) = [move.log_ratio for move in found.moves if move.accepted]
    assert told == pytest.approx(gain, rel=1e-9)
    assert told > 100


@pytest.mark.parametrize("seed", range(2))
def test_arrivals_like_the_others_change_nothing_but_parameters(seed: int) -> None:
    x_ND, label_N = _clouds(900, 4)
    model = _model(x_ND, label_N)
    held = _arrived(model, _clouds(200, 4, seed=10 + seed)[0])
    stats = _after(model, x_ND, held)
    found = _refined(model, held, stats)
    after = _population(found)
    assert _accepted(found) == []
    assert torch.equal(after.component_K, model.component_K)
    assert torch.equal(after.id_K, model.id_K)
    assert after.next_id == model.next_id
    assert torch.equal(found.component_N, held.component_N)
    _close(found.stats, stats)
    torch.testing.assert_close(after.population.clusters.chol_KDD, model.mstep(stats).population.clusters.chol_KDD)
    assert not torch.equal(after.population.clusters.chol_KDD, model.population.clusters.chol_KDD)


def test_two_components_that_have_come_together_merge_and_the_smaller_names_its_heir() -> None:
    x_ND, label_N = _clouds(900, 3)
    label_N = torch.where((label_N == 2) & (torch.arange(900) % 4 == 0), 3, label_N)  # a fragment of the third
    model = _model(x_ND, label_N)
    held = _held(_clouds(30, 3, seed=1)[0], torch.arange(30) % 3)
    stats = model.counted(x_ND, label_N) + model.counted(held.x_ND, held.component_N)
    found = _refined(model, held, stats)
    assert found.heir == {3: 2}
    assert _population(found).component_K.tolist() == [0, 1, 2]
    assert ("merge", (2, 3)) in _accepted(found)
    assert found.stats.sets.count_K.tolist() == [310, 310, 310]
    assert _population(found).next_id == 4  # the id that is gone is not given again


def test_a_component_whose_rows_have_left_dies() -> None:
    x_ND, label_N = _clouds(900, 3)
    model = _model(x_ND, label_N)
    stats = model.counted(x_ND, label_N) + scaled(model.counted(x_ND[label_N == 1], label_N[label_N == 1]), -1)
    held = _held(_clouds(30, 3, seed=1)[0][::3], torch.zeros(10, dtype=torch.int64))
    found = _refined(model, held, stats + model.counted(held.x_ND, held.component_N))
    assert ("death", (1,)) in _accepted(found)
    assert found.heir.keys() == {1}
    assert _population(found).component_K.tolist() == [0, 2]
    assert model.mstep(stats).component_K.tolist() == [0, 2]
    assert model.mstep(stats).id_K.tolist() == [0, 2]
    with pytest.raises(ShoalError, match="is left"):
        model.mstep(scaled(stats, 0.0))
    with pytest.raises(ShoalError, match="is left"):
        _refined(model, _held(torch.empty(0, 3), torch.empty(0, dtype=torch.int64)), scaled(stats, 0.0))


def test_rows_that_faded_to_nothing_are_with_the_heir_of_their_component() -> None:
    x_ND, label_N = _clouds(900, 3)
    model = _model(x_ND, label_N)
    third_n = torch.nonzero(label_N == 2).flatten()
    held = replace(_held(x_ND[third_n[:9]], torch.full((9,), 2), new=False), weight_N=torch.full((9,), 1e-12).double())
    faded = model.counted(x_ND, label_N, torch.where(label_N == 2, 1e-12, 1.0).double())
    found = _refined(model, held, faded)
    assert _population(found).component_K.tolist() == [0, 1]
    assert found.heir[2] in (0, 1)
    assert found.component_N.unique().numel() == 1
    assert found.stats.sets.count_K.sum() == pytest.approx(600)


def test_few_rows_all_of_them_at_hand_go_to_their_next_best() -> None:
    x_ND, label_N = _clouds(900, 2)
    label_N[[0, 2, 4]] = 2  # three rows of the first cloud
    model = _model(x_ND, label_N)
    held = _held(x_ND[label_N == 2], torch.full((3,), 2))
    found = _refined(model, held, model.counted(x_ND, label_N))
    assert found.component_N.tolist() == [0, 0, 0]
    assert _population(found).component_K.tolist() == [0, 1]
    assert found.stats.sets.count_K.tolist() == [450, 450]


def _grown() -> tuple[DPM, Held, DPMStats]:
    """A component made from few rows, which turns out to be two by more, of which one in five is at hand."""
    x_ND, label_N = _clouds(900, 2)
    two_nD = torch.tensor([50.0, 0.0, 0.0]) + _noise(400, 5) * torch.tensor([1.0, 1.0, 1.0])
    two_nD[::2, 1] += 12
    model = _model(torch.cat([x_ND, two_nD[:6]]), torch.cat([label_N, torch.full((6,), 2)]))
    sample_nD = two_nD[:80]
    held = _held(sample_nD, torch.full((80,), 2), new=False)
    stats = model.counted(x_ND, label_N) + model.counted(two_nD, torch.full((400,), 2))
    return model, held, stats


def test_a_component_cut_by_some_of_its_rows_asks_for_the_others() -> None:
    model, held, stats = _grown()
    found = _refined(model, held, stats)
    after = _population(found)
    (split,) = [
        move for move in found.moves if move.accepted and move.kind == "split" and math.isfinite(move.log_ratio)
    ]
    assert split.clusters == (2, 3)
    assert found.unsettled == (2, 3)
    assert found.stats.sets.count_K.tolist() == [450, 450, 360, 40]
    # Until the others are read the halves are described by what is at hand, each row of it for five.
    assert after.population.log_weight_K.exp().tolist() == pytest.approx(
        [450 / 1300, 450 / 1300, 200 / 1300, 200 / 1300]
    )
    upper_n = held.x_ND[:, 1] > 6
    assert found.component_N[upper_n].unique().numel() == found.component_N[~upper_n].unique().numel() == 1


def test_nothing_is_unsettled_where_all_rows_of_a_component_are_at_hand() -> None:
    model, held, _ = _grown()
    stats = model.counted(_clouds(900, 2)[0], _clouds(900, 2)[1]) + model.counted(held.x_ND, held.component_N)
    found = _refined(model, held, stats)
    assert found.unsettled == ()
    assert len(_population(found).component_K) == 4
    assert found.stats.sets.count_K.tolist() == [450, 450, 40, 40]


def test_a_component_whose_older_rows_follow_a_newborn_is_unsettled() -> None:
    """Before, twelve rows were too far from each other to be more than the first component's tail."""
    x_ND, label_N = _clouds(900, 2)
    far_nD = torch.tensor([0.0, 9.0, 0.0]) + 0.3 * _noise(12, 3)
    model = _model(torch.cat([x_ND, far_nD]), torch.cat([label_N, torch.zeros(12, dtype=torch.int64)]))
    arrivals = _held(torch.tensor([0.0, 9.0, 0.0]) + 0.3 * _noise(40, 4), torch.zeros(40, dtype=torch.int64))
    held = _both(_held(torch.cat([far_nD, x_ND[:100:2]]), torch.zeros(62, dtype=torch.int64), new=False), arrivals)
    stats = model.counted(x_ND, label_N) + model.counted(far_nD, torch.zeros(12, dtype=torch.int64))
    found = _refined(model, held, stats + model.counted(arrivals.x_ND, arrivals.component_N))
    assert ("birth", (0, 2)) in _accepted(found)
    assert found.unsettled == (0,)
    assert (found.component_N == 2).sum() == 52


def test_rows_that_count_half_are_counted_half() -> None:
    x_ND, label_N = _clouds(900, 3)
    model = _model(x_ND, label_N)
    held = _arrived(model, _clouds(240, 4, seed=1)[0])
    held = replace(held, weight_N=0.5 * held.weight_N)
    found = _refined(model, held, _after(model, x_ND, held))
    assert found.stats.sets.count_K.tolist() == [330, 330, 330, 30]
    expected = model.counted(x_ND, label_N)
    _close(
        found.stats.with_tensors({name: value[:3] for name, value in found.stats.tensors().items()}),
        expected
        + model.counted(
            held.x_ND[found.component_N < 3],
            found.component_N[found.component_N < 3],
            held.weight_N[found.component_N < 3],
        ),
    )


@pytest.mark.parametrize("seed", [1])
def test_the_order_of_rows_does_not_matter(seed: int) -> None:
    x_ND, label_N = _clouds(900, 3)
    model = _model(x_ND, label_N)
    held = _arrived(model, _clouds(240, 4, seed=1)[0])
    stats = _after(model, x_ND, held)
    order_N = torch.randperm(240, generator=torch.Generator().manual_seed(seed))
    first, second = _refined(model, held, stats, x_ND), _refined(model, held[order_N], stats, x_ND)
    assert torch.equal(first.component_N[order_N], second.component_N)
    assert first.moves == second.moves
    for name, value in first.model.tensors().items():
        assert torch.equal(second.model.tensors()[name], value), name


def test_statistics_are_moments_of_the_rows_where_they_are_now() -> None:
    """Rows at hand and rows that are not, after births, merges and moves."""
    x_ND, label_N = _clouds(900, 3)
    label_N = torch.where((label_N == 2) & (torch.arange(900) % 4 == 0), 3, label_N)
    model = _model(x_ND, label_N)
    held = _arrived(model, _clouds(400, 4, seed=1)[0])
    found = _refined(model, held, model.counted(x_ND, label_N) + model.counted(held.x_ND, held.component_N))
    after, heir = _population(found), {int(k): int(k) for k in model.component_K} | dict(found.heir)
    assert found.heir
    place = {identity: k for k, identity in enumerate(after.component_K.tolist())}
    elsewhere_N = torch.tensor([place[heir[k]] for k in label_N.tolist()])
    expected = after.counted(torch.cat([x_ND, held.x_ND]), torch.cat([elsewhere_N, found.component_N]))
    _close(found.stats, expected, 1e-10)


def test_without_rows_at_hand_it_is_an_m_step() -> None:
    x_ND, label_N = _clouds(900, 3)
    model = _model(x_ND, label_N)
    stats = scaled(model.counted(x_ND, label_N), 0.5)
    found = model.refined(_held(torch.empty(0, 3), torch.empty(0, dtype=torch.int64)), stats, x_ND, torch.Generator())
    assert _accepted(found) == []
    assert torch.equal(_population(found).id_K, model.id_K)
    _close(found.stats, stats)


def test_without_its_sample_a_mixture_labels_and_counts_all_the_same() -> None:
    x_ND, label_N = _clouds(900, 3)
    model = _model(x_ND, label_N)
    tensors = {name: value for name, value in model.tensors().items() if name not in model.retained}
    assert len(tensors) == len(model.tensors()) - 1
    again = load(model.config, tensors)
    assert again.sample_MD.shape == (0, 3)
    assert torch.equal(again.assign(x_ND).cluster_N, model.assign(x_ND).cluster_N)
    held = _arrived(again, _clouds(240, 4, seed=1)[0])
    found = again.refined(held, _after(again, x_ND, held), again.sample_MD, torch.Generator())
    assert _population(found).id_K.tolist() == [0, 1, 2, 3]


def test_a_renamed_mixture_is_the_same_but_for_names() -> None:
    x_ND, label_N = _clouds(300, 3)
    model = _model(x_ND, label_N)
    named = model.renamed(torch.tensor([7, 9, 7]), 12)
    assert named.id_K.tolist() == [7, 9, 7]
    assert named.component_K.tolist() == [0, 1, 2]
    assert named.next_id == 12
    assert torch.equal(named.assign(x_ND).component_N, label_N)
    held = _arrived(named, _clouds(240, 4, seed=1)[0])
    after = _population(_refined(named, held, _after(named, x_ND, held)))
    assert after.component_K.tolist() == [0, 1, 2, 12]
    assert after.next_id > int(after.id_K.max())


def test_a_plain_mixture_has_no_trials_and_whole_statistics() -> None:
    x_ND, label_N = _clouds(300, 3)
    model = _model(x_ND, label_N)
    on_trial = model.maximize(model.expect(x_ND, label_N), torch.Generator()).model
    assert isinstance(on_trial, DPM)
    assert len(on_trial.population.trial_J) == 3
    stats = on_trial.expect(x_ND, label_N)
    assert len(stats.sets) == 6
    plain, whole = on_trial.plain(stats)
    assert len(plain.population.trial_J) == 0
    _close(whole, plain.expect(x_ND, label_N))
    assert torch.equal(plain.assign(x_ND).cluster_N, on_trial.assign(x_ND).cluster_N)
    assert plain.plain(whole)[0] is plain
    assert torch.equal(load(plain.config, plain.tensors()).assign(x_ND).score_N, plain.assign(x_ND).score_N)
