"""What every registered Clusterer promises, whatever its mathematics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial

import pytest
import safetensors.torch
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from models.clusterer import NOISE, Assignment, Clusterer, DataSummary, Stats
from models.deepdpm.config import DeepDPMConfig
from models.deepdpm.objective import DeepDPMObjective
from models.dpm.config import DPMConfig
from models.dpm.mixture import DPM
from models.errors import ShoalError
from models.gmm import GMMConfig
from models.increment import Held as HeldRows
from models.increment import Refinable, folded, scaled
from models.kmeans import KMeansConfig
from models.objective import Plan, whole_batch
from models.registry import ALGORITHMS, ClustererConfig, load, start
from models.swav.config import PrototypesConfig
from models.swav.network import make_head
from models.swav.prototypes import Prototypes
from pipeline.train.world import Alone

MOMENTS = {"count_K", "sum_KD", "second_KDD"}
PASSES = 300  # a fit that has not settled by then never will


def config_for(kind: str, clusters: int) -> ClustererConfig:
    """Settings of each algorithm; those that find K themselves are not told it."""
    known: dict[str, ClustererConfig] = {
        "kmeans": KMeansConfig(clusters=clusters, restarts=3),
        "gmm": GMMConfig(clusters=clusters, restarts=3),
        "dpm": DPMConfig(),
        "deepdpm": DeepDPMConfig(initial_clusters=clusters, warmup=8, update=4, interval=10**6),
        "prototypes": PrototypesConfig(),
    }
    return known[kind]


def gaussian(rows: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))


def planted(rows: int, dim: int = 3, spread: float = 20.0) -> tuple[Tensor, Tensor]:
    """Four unit Gaussians around vertices of a cube, 2.8 `spread` apart, and which one each row came from."""
    label_N = torch.arange(rows) % 4
    centre_KD = torch.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, 1.0], [-1.0, 1.0, -1.0], [1.0, -1.0, -1.0]])
    return gaussian(rows, dim) + spread * centre_KD[label_N, :dim], label_N


def summarise(x_ND: Tensor, seed: int = 0) -> DataSummary:
    covariance_DD = torch.cov(x_ND.double().T, correction=0).reshape(x_ND.shape[1], -1)
    return DataSummary(len(x_ND), x_ND.double().mean(dim=0), covariance_DD, x_ND, seed)


def total(model: Clusterer, x_ND: Tensor, row_N: Tensor, size: int) -> Stats:
    blocks = zip(x_ND.split(size), row_N.split(size), strict=True)
    first, *rest = (model.expect(x_nD, row_n) for x_nD, row_n in blocks)
    return sum(rest, start=first)


def fit(
    model: Clusterer, x_ND: Tensor, row_N: Tensor | None = None, size: int = 1000, passes: int = PASSES
) -> Clusterer:
    """The driver in small: sum over blocks, maximize, until settled."""
    row_N = torch.arange(len(x_ND)) if row_N is None else row_N
    rng = torch.Generator().manual_seed(0)
    for _ in range(passes):
        update = model.maximize(total(model, x_ND, row_N, size), rng)
        model = update.model
        if update.settled:
            return model
    assert passes < PASSES, "the fit never settles"
    return model


def fitted(kind: str, x_ND: Tensor, clusters: int = 4) -> Clusterer:
    return fit(start(config_for(kind, clusters), summarise(x_ND)), x_ND)


class InMemory:
    """Passes over rows in memory."""

    def __init__(self, x_ND: Tensor) -> None:
        self.x_ND, self.data = x_ND, summarise(x_ND)

    @torch.no_grad()
    def total(self, expect: Callable[[Tensor, Tensor], object]) -> object:
        return expect(self.x_ND, torch.arange(len(self.x_ND)))


def trained(x_ND: Tensor, epochs: int) -> Clusterer:
    """DeepDPM after some epochs of plain gradient descent: the trainer in small."""
    config = config_for("deepdpm", 4)
    assert isinstance(config, DeepDPMConfig)
    objective, passes = DeepDPMObjective(config), InMemory(x_ND)
    net = objective.build(passes.data, Plan(128, 8, 1))
    optimizer = torch.optim.SGD(objective.groups(net), lr=0.1)
    row_N, step = torch.arange(len(x_ND)), 0
    for epoch in range(epochs):
        for x_BD, row_B in zip(x_ND.split(100), row_N.split(100), strict=True):
            batch = whole_batch((x_BD,), row_B)
            optimizer.zero_grad()
            objective.loss(net, batch, step, Alone()).total.backward()
            optimizer.step()
            objective.after_step(net, batch, step, Alone())
            step += 1
        objective.on_epoch_end(net, epoch, passes)  # type: ignore[arg-type]
    return objective.clusterer(net)


def prototypes() -> Prototypes:
    """Six directions behind a projection head, all of them as drawn."""
    torch.manual_seed(0)
    direction_KD = torch.nn.functional.normalize(torch.randn(6, 5).double())
    return Prototypes(PrototypesConfig(), make_head(3, 16, 5).state_dict(), direction_KD)


@cache
def halfway(kind: str) -> Clusterer:
    """A model of overlapping clusters after few passes: nothing about it is converged or certain."""
    x_ND, _ = planted(1003, spread=1.2)
    if kind == "deepdpm":
        return trained(x_ND, epochs=2)
    first = prototypes() if kind == "prototypes" else start(config_for(kind, 4), summarise(x_ND))
    return fit(first, x_ND, passes=4)


@cache
def plain(kind: str) -> Clusterer:
    """The same without what only a search needs: subclusters on trial count rows a second time."""
    model = halfway(kind)
    return model.plain(nothing(model))[0] if isinstance(model, DPM) else model  # type: ignore[arg-type]


def nothing(model: Clusterer) -> Stats:
    return model.expect(torch.empty(0, model.dim), torch.empty(0, dtype=torch.int64))


def no_rows(dim: int) -> HeldRows:
    none = torch.empty(0, dtype=torch.int64)
    return HeldRows(torch.empty(0, dim), none, none, none.double(), none.bool())


def known(stats: Stats) -> dict[str, Tensor]:
    """Summands but those that say of themselves that they are unknown."""
    return {name: value for name, value in stats.tensors().items() if not bool(value.isnan().any())}


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], relative: float) -> None:
    """Equal to `relative` of each tensor's own largest value."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        finite = value.double()[value.double().isfinite()]
        tolerance = relative * float(finite.abs().max()) if len(finite) else 0.0
        message = partial("{}: {}".format, name)
        torch.testing.assert_close(actual[name], value, rtol=relative, atol=tolerance, msg=message)


def assert_same(actual: Assignment, expected: Assignment) -> None:
    assert torch.equal(actual.cluster_N, expected.cluster_N)
    assert torch.equal(actual.component_N, expected.component_N)
    assert torch.equal(actual.runner_up_N, expected.runner_up_N)
    torch.testing.assert_close(actual.probability_N, expected.probability_N)
    torch.testing.assert_close(actual.score_N, expected.score_N)


def select(found: Assignment, index_N: Tensor) -> Assignment:
    return Assignment(**{name: value[index_N] for name, value in vars(found).items()})


def concatenate(parts: Sequence[Assignment]) -> Assignment:
    return Assignment(**{name: torch.cat([vars(part)[name] for part in parts]) for name in vars(parts[0])})


def assert_sensible(model: Clusterer, x_ND: Tensor) -> None:
    """What holds for any rows."""
    found = model.assign(x_ND)
    rows = len(x_ND)
    assert [tuple(value.shape) for value in vars(found).values()] == [(rows,)] * 5
    assert [value.dtype for value in vars(found).values()] == [torch.int64] * 2 + [
        torch.float32,
        torch.int64,
        torch.float32,
    ]
    assert ((found.probability_N >= 0) & (found.probability_N <= 1)).all()
    assert found.score_N.isfinite().all()
    ids = {*model.id_K.tolist(), NOISE}
    assert ids.issuperset(found.cluster_N.tolist())
    assert ids.issuperset(found.runner_up_N.tolist())
    assert ((found.component_N >= 0) & (found.component_N < len(model.id_K))).all()
    assert torch.equal(model.id_K[found.component_N], found.cluster_N)
    assert ((found.runner_up_N == NOISE) | (found.runner_up_N != found.cluster_N)).all()


any_kind = pytest.mark.parametrize("kind", ALGORITHMS)
fitted_kind = pytest.mark.parametrize("kind", [kind for kind, algorithm in ALGORITHMS.items() if algorithm.start])
trained_kind = pytest.mark.parametrize("kind", [kind for kind, algorithm in ALGORITHMS.items() if not algorithm.start])


@trained_kind
def test_what_is_trained_is_not_started(kind: str) -> None:
    with pytest.raises(ShoalError, match=f"{kind} (is trained by gradient, not fitted in passes|are learned together)"):
        start(config_for(kind, 4), summarise(planted(40)[0]))


@any_kind
def test_is_a_clusterer_with_ids_and_a_dimension(kind: str) -> None:
    model = halfway(kind)
    assert isinstance(model, Clusterer)
    assert model.dim == 3
    assert model.id_K.dtype == torch.int64
    assert model.id_K.ndim == 1  # two components of one cluster share its id
    assert model.id_K.unique().numel() > 1


@any_kind
@settings(max_examples=15)
@given(cut=st.integers(0, 300))
@example(cut=0)
def test_statistics_of_two_parts_add_up_to_those_of_the_whole(kind: str, cut: int) -> None:
    x_ND, row_N, model = planted(300, spread=1.2)[0], torch.arange(300), halfway(kind)
    parts = model.expect(x_ND[:cut], row_N[:cut]) + model.expect(x_ND[cut:], row_N[cut:])
    assert_close(parts.tensors(), model.expect(x_ND, row_N).tensors(), relative=1e-9)


@any_kind
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_statistics_and_assignments_do_not_depend_on_blocks(kind: str, size: int) -> None:
    x_ND, row_N, model = planted(1003, spread=1.2)[0], torch.arange(1003), halfway(kind)
    assert_close(total(model, x_ND, row_N, size).tensors(), model.expect(x_ND, row_N).tensors(), relative=1e-9)
    assert_same(concatenate([model.assign(block) for block in x_ND.split(size)]), model.assign(x_ND))


@fitted_kind
@pytest.mark.parametrize("size", [1, 7])
def test_a_whole_fit_does_not_depend_on_blocks_or_on_the_order_of_rows(kind: str, size: int) -> None:
    x_ND, _ = planted(203, spread=3.0)
    shuffle_N = torch.randperm(203, generator=torch.Generator().manual_seed(1))
    first = start(config_for(kind, 4), summarise(x_ND))
    whole = fit(first, x_ND, passes=12)
    blocks = fit(first, x_ND[shuffle_N], shuffle_N, size, passes=12)
    assert_close(blocks.tensors(), whole.tensors(), relative=1e-6)
    assert_same(blocks.assign(x_ND[shuffle_N]), select(whole.assign(x_ND), shuffle_N))


@fitted_kind
def test_the_same_seeds_give_the_same_model(kind: str) -> None:
    x_ND, _ = planted(200, spread=2.0)
    first = fit(start(config_for(kind, 4), summarise(x_ND, seed=5)), x_ND, passes=5)
    torch.manual_seed(123)
    again = fit(start(config_for(kind, 4), summarise(x_ND, seed=5)), x_ND, passes=5)
    assert_close(again.tensors(), first.tensors(), relative=0.0)


@any_kind
def test_a_saved_model_assigns_and_learns_as_before(kind: str) -> None:
    x_ND, row_N, model = planted(300, spread=1.2)[0], torch.arange(300), halfway(kind)
    payload = safetensors.torch.save(model.tensors())
    again = load(config_for(kind, 4), safetensors.torch.load(payload))
    assert_close(again.tensors(), model.tensors(), relative=0.0)
    assert torch.equal(again.id_K, model.id_K)
    for name, value in vars(model.assign(x_ND)).items():
        assert torch.equal(vars(again.assign(x_ND))[name], value), name
    stats = model.expect(x_ND, row_N)
    before, after = (m.maximize(stats, torch.Generator().manual_seed(0)) for m in (model, again))
    assert_close(after.model.tensors(), before.model.tensors(), relative=0.0)
    assert (after.objective, after.settled, after.moves) == (before.objective, before.settled, before.moves)


@any_kind
def test_no_method_changes_the_model_or_the_statistics(kind: str) -> None:
    x_ND, row_N, model = planted(300, spread=1.2)[0], torch.arange(300), halfway(kind)
    stats = model.expect(x_ND, row_N)
    tensors = {name: value.clone() for name, value in (model.tensors() | stats.tensors()).items()}
    rows_ND = x_ND.clone()
    model.assign(x_ND)
    _ = stats + stats
    model.maximize(stats, torch.Generator().manual_seed(0))
    assert_close(model.tensors() | stats.tensors(), tensors, relative=0.0)
    assert torch.equal(x_ND, rows_ND)


@fitted_kind
def test_well_separated_gaussians_are_recovered_exactly(kind: str) -> None:
    x_ND, label_N = planted(800)
    found = fitted(kind, x_ND).assign(x_ND)
    assert adjusted_rand_score(label_N, found.cluster_N) == 1
    assert found.probability_N.min() > 0.999


@fitted_kind
def test_rows_between_clusters_are_uncertain_and_far_rows_untypical(kind: str) -> None:
    x_ND, label_N = planted(800, spread=4.0)
    centre_KD = torch.stack([x_ND[label_N == k].mean(dim=0) for k in range(4)])
    way_N1 = torch.linspace(0, 1, 401)[:, None]
    found = fitted(kind, x_ND).assign(
        torch.cat([centre_KD[0] + way_N1 * (centre_KD[1] - centre_KD[0]), 2 * centre_KD[:1]])
    )
    here, there = int(found.cluster_N[0]), int(found.cluster_N[400])
    assert here != there
    middle = int(found.probability_N.argmin())
    assert {int(found.cluster_N[middle]), int(found.runner_up_N[middle])} == {here, there}
    assert found.probability_N[middle] < 0.6
    assert found.probability_N[[0, 400]].min() > 0.999
    assert found.score_N[0] > found.score_N[[middle, 401]].max()


@fitted_kind
@pytest.mark.parametrize(
    "x_ND",
    [
        torch.full((50, 3), 2.5),
        torch.zeros(50, 3),
        gaussian(5, 3).repeat(20, 1),
        gaussian(8, 20),
        torch.cat([gaussian(60, 2), torch.full((60, 1), 7.0)], dim=1),
        planted(200)[0] + 1e5,
        planted(200)[0] * 1e15,
        planted(200)[0] * 1e-15,
        planted(200, dim=1)[0],
    ],
    ids=[
        "all rows equal",
        "all rows zero",
        "duplicates",
        "fewer rows than dimensions",
        "a constant dimension",
        "far from zero",
        "huge",
        "tiny",
        "one dimension",
    ],
)
def test_hard_rows_settle_and_stay_finite(kind: str, x_ND: Tensor) -> None:
    model = fitted(kind, x_ND)
    assert all(value.double().isnan().sum() == 0 for value in model.tensors().values())
    assert_sensible(model, x_ND)


@fitted_kind
def test_rows_that_are_all_equal_are_one_cluster(kind: str) -> None:
    x_ND = torch.full((50, 3), 2.5)
    assert fitted(kind, x_ND).assign(x_ND).cluster_N.unique().numel() == 1


@fitted_kind
def test_one_row_is_a_certain_cluster(kind: str) -> None:
    x_ND = torch.tensor([[1.0, -2.0, 3.0]])
    model = fitted(kind, x_ND, clusters=1)
    assert_sensible(model, x_ND)
    assert model.assign(x_ND).probability_N.tolist() == [1.0]
    assert model.assign(x_ND).runner_up_N.tolist() == [NOISE]


@fitted_kind
def test_equal_rows_share_a_cluster(kind: str) -> None:
    x_ND = gaussian(25, 2).repeat(8, 1)
    found = fitted(kind, x_ND).assign(x_ND)
    assert torch.equal(found.cluster_N[:25].repeat(8), found.cluster_N)


@any_kind
def test_assignments_of_overlapping_clusters_are_sensible(kind: str) -> None:
    assert_sensible(halfway(kind), planted(300, spread=1.2)[0])


@any_kind
def test_no_rows_are_no_assignments(kind: str) -> None:
    assert_sensible(halfway(kind), torch.empty(0, 3))


@any_kind
@pytest.mark.parametrize("method", ["expect", "assign"])
def test_rows_of_another_dimension_are_refused_with_both_numbers(kind: str, method: str) -> None:
    model, x_ND = halfway(kind), gaussian(4, 5)
    with pytest.raises(ShoalError, match=r"5-d .* 3-d"):
        model.expect(x_ND, torch.arange(4)) if method == "expect" else model.assign(x_ND)


@any_kind
def test_ids_of_components_are_distinct_and_below_the_next(kind: str) -> None:
    model = halfway(kind)
    assert model.component_K.dtype == torch.int64
    assert model.component_K.unique().numel() == len(model.id_K)
    assert model.next_id > max(model.component_K.max(), model.id_K.max())


@any_kind
def test_rows_are_counted_where_they_are_said_to_be_or_not_at_all(kind: str) -> None:
    model, x_ND = plain(kind), planted(300, spread=1.2)[0]
    component_N = model.assign(x_ND).component_N
    if not model.hard:
        with pytest.raises(ShoalError, match=r"share rows among components, .*; recount"):
            model.counted(x_ND, component_N)
        return
    whole = model.expect(x_ND, torch.arange(300)).tensors()
    found = known(model.counted(x_ND, component_N))
    assert len(found) > 1
    assert_close(found, {name: whole[name] for name in found}, relative=1e-12)
    elsewhere_N = (component_N + 1) % len(model.id_K)
    elsewhere = known(model.counted(x_ND, elsewhere_N))
    assert float((elsewhere["count_K"] - torch.bincount(elsewhere_N, minlength=len(whole["count_K"]))).abs().max()) == 0


@any_kind
def test_rows_count_as_often_as_they_weigh(kind: str) -> None:
    model, x_ND = plain(kind), planted(300, spread=1.2)[0]
    if not model.hard:
        return
    component_N, weight_N = model.assign(x_ND).component_N, 0.5 + torch.arange(300).double() % 3
    one = model.counted(x_ND, component_N, weight_N)
    parts = [model.counted(x_ND[k::3], component_N[k::3]) for k in range(3)]
    other = scaled(parts[0], 0.5) + scaled(parts[1], 1.5) + scaled(parts[2], 2.5)
    assert_close(known(one), known(other), relative=1e-12)
    left, before = (one + model.counted(x_ND, component_N, -weight_N)).tensors(), one.tensors()
    assert float(before["count_K"].sum()) == float(weight_N.sum())
    for name in MOMENTS & before.keys():
        assert float(left[name].abs().max()) <= 1e-12 * float(before[name].abs().max())


@any_kind
def test_a_renamed_model_differs_in_names_alone(kind: str) -> None:
    model, x_ND = halfway(kind), planted(300, spread=1.2)[0]
    name_K = 1000 - 7 * model.id_K
    renamed = model.renamed(name_K, 5000)
    assert torch.equal(renamed.id_K, name_K)
    assert renamed.next_id >= 5000
    assert model.renamed(name_K, 0).next_id >= max(model.next_id, 1001 - 7 * int(model.id_K.min()))
    assert torch.equal(renamed.component_K, model.component_K if kind == "dpm" else name_K)
    before, after = model.assign(x_ND), renamed.assign(x_ND)
    named = {NOISE: NOISE} | {cluster: 1000 - 7 * cluster for cluster in model.id_K.tolist()}
    for field in ("cluster_N", "runner_up_N"):
        old, new = (vars(found)[field].tolist() for found in (before, after))
        assert [named[each] for each in old] == new
    for field in ("component_N", "probability_N", "score_N"):
        assert torch.equal(vars(before)[field], vars(after)[field])
    stats = [each.expect(x_ND, torch.arange(300)).tensors() for each in (model, renamed)]
    assert_close(stats[1], stats[0], relative=0.0)
    again = load(config_for(kind, 4), safetensors.torch.load(safetensors.torch.save(renamed.tensors())))
    assert (again.id_K.tolist(), again.next_id) == (name_K.tolist(), renamed.next_id)
    assert torch.equal(again.component_K, renamed.component_K)


@any_kind
def test_labels_need_nothing_that_only_learning_needs(kind: str) -> None:
    model, x_ND = halfway(kind), planted(300, spread=1.2)[0]
    tensors = model.tensors()
    assert set(model.retained) <= set(tensors)
    bare = load(config_for(kind, 4), {name: value for name, value in tensors.items() if name not in model.retained})
    assert_same(bare.assign(x_ND), model.assign(x_ND))
    assert torch.equal(bare.component_K, model.component_K)
    assert bare.next_id == model.next_id
    parts = [each.expect(x_ND, torch.arange(300)).tensors() for each in (bare, model)]
    assert_close(parts[0], parts[1], relative=0.0)


@pytest.mark.parametrize("kind", ["kmeans", "gmm", "deepdpm", "prototypes"])
def test_models_of_earlier_versions_are_numbered(kind: str) -> None:
    model = halfway(kind)
    earlier = {name: value for name, value in model.tensors().items() if name not in ("id_K", "next_id")}
    again = load(config_for(kind, 4), earlier)
    assert torch.equal(again.id_K, model.id_K)
    assert again.next_id == int(model.id_K.max()) + 1


@any_kind
@settings(max_examples=5)
@given(seed=st.integers(0, 2**32))
def test_ten_increments_leave_behind_what_one_pass_does(kind: str, seed: int) -> None:
    x_ND, row_N, model = planted(503, spread=1.2)[0], torch.arange(503), halfway(kind)
    rng = torch.Generator().manual_seed(seed)
    order_N, cut = torch.randperm(503, generator=rng), torch.randperm(502, generator=rng)[:10].sort().values + 1
    first, *increments = order_N.tensor_split(cut)
    stats = model.expect(x_ND[first], row_N[first])
    for index in increments:
        stats = folded(stats, 1.0, model.expect(x_ND[index], row_N[index]))
    assert_close(stats.tensors(), model.expect(x_ND, row_N).tensors(), relative=1e-9)


@pytest.mark.parametrize("kind", [kind for kind in ALGORITHMS if kind in ("kmeans", "gmm", "dpm")])
def test_nothing_to_refine_changes_nothing(kind: str) -> None:
    x_ND, _ = planted(400, spread=3.0)
    config = config_for(kind, 4).model_copy(update={"tolerance": 1e-12} if kind in ("kmeans", "gmm") else {})
    model = fit(start(config, summarise(x_ND)), x_ND)
    assert isinstance(model, Refinable)
    stats = model.expect(x_ND, torch.arange(400))
    found = model.refined(no_rows(3), stats, x_ND, torch.Generator().manual_seed(0))
    assert_same(found.model.assign(x_ND), model.assign(x_ND))
    assert torch.equal(found.model.component_K, model.component_K)
    assert torch.equal(found.model.id_K, model.id_K)
    assert_close(known(found.stats), {name: stats.tensors()[name] for name in known(found.stats)}, relative=1e-6)
    assert (dict(found.heir), found.unsettled, len(found.component_N)) == ({}, (), 0)
    assert not any(move.accepted for move in found.moves)


@pytest.mark.parametrize("kind", ["kmeans", "gmm", "dpm"])
def test_rows_that_came_late_are_taken_in(kind: str) -> None:
    """Refined by rows that were wrongly counted, a model ends near the one of all rows."""
    x_ND, label_N = planted(800, spread=6.0)
    early, late = slice(0, 700), slice(700, 800)
    model = fit(start(config_for(kind, 4), summarise(x_ND[early])), x_ND[early])
    assert isinstance(model, Refinable)
    component_N = model.assign(x_ND[late]).component_N
    late_rows = HeldRows(
        x_ND[late], torch.arange(700, 800), component_N, torch.ones(100).double(), torch.ones(100).bool()
    )
    stats = model.expect(x_ND[early], torch.arange(700)) + model.expect(x_ND[late], torch.arange(700, 800))
    found = model.refined(late_rows, stats, x_ND[early], torch.Generator().manual_seed(0))
    assert adjusted_rand_score(label_N, found.model.assign(x_ND).cluster_N) == 1
    assert torch.equal(found.model.id_K.unique(), model.id_K.unique())
    whole = found.model.expect(x_ND, torch.arange(800)).tensors()
    found_stats = known(found.stats)
    assert float((found_stats["count_K"][: len(found.model.id_K)].sum()) - 800) == pytest.approx(0, abs=1e-6)
    assert_close({"sum_KD": found_stats["sum_KD"]}, {"sum_KD": whole["sum_KD"]}, relative=1e-2)
    if found.model.hard:
        assert torch.equal(found.component_N, found.model.assign(x_ND[late]).component_N)
