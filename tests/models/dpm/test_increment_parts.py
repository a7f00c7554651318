"""What a refinement is made of: what counts as strange, what a search among few rows finds, who keeps an id."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from models.clusterer import DataSummary
from models.dpm.config import DPMConfig
from models.dpm.counting import counted_sets, minus, worth
from models.dpm.mixture import DPM
from models.dpm.moves import cluster_weight
from models.dpm.novel import birth_gain, born, strange, surprise, undone
from models.dpm.parting import confirmed
from models.dpm.population import density, newborn
from models.dpm.prior import Covariance, Prior, prior_of
from models.dpm.regrowth import grown, joint
from models.dpm.settling import Settling
from models.dpm.succession import succeeded
from models.gaussians import Gaussians
from models.moments import Moments, zeros

KINDS: list[Covariance] = ["full", "diagonal", "spherical", "tied"]
each_family = pytest.mark.parametrize("kind", KINDS)


def _noise(rows: int, seed: int = 0, dim: int = 3) -> Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))


def _prior(kind: Covariance, dim: int = 3) -> Prior:
    """Expects unit covariances around 0."""
    data = DataSummary(2, torch.zeros(dim).double(), torch.eye(dim).double(), torch.zeros(2, dim), 0)
    return prior_of(kind, data, 1.0, 0.1, None)


def _model(x_ND: Tensor, label_N: Tensor, kind: Covariance = "full") -> DPM:
    config, prior = DPMConfig(covariance=kind, prior_scale=1.0), _prior(kind, x_ND.shape[1])
    sets = counted_sets(prior, x_ND, label_N, None, int(label_N.max()) + 1)
    return DPM(config, newborn(config, prior, sets), x_ND[:0])


def _two_apart() -> tuple[Tensor, Tensor]:
    label_N = torch.arange(200) % 2
    return _noise(200) + 12 * label_N[:, None], label_N


def _settling(x_ND: Tensor, label_N: Tensor, base: Moments) -> Settling:
    near_NC = torch.arange(len(base)).expand(len(x_ND), -1)
    rows = (x_ND, torch.ones(len(x_ND)).double(), label_N)
    return Settling.of(rows, base, near_NC, (DPMConfig(), _prior("full", x_ND.shape[1]), 10.0))


@each_family
@pytest.mark.parametrize("assignment", ["predictive", "mode"])
def test_the_surprise_of_a_components_own_rows_has_mean_0_and_deviation_1(kind: Covariance, assignment: str) -> None:
    x_ND = _noise(40_000, dim=6)
    zeros_N = torch.zeros(len(x_ND), dtype=torch.int64)
    prior = _prior(kind, 6)
    clusters = density(DPMConfig(assignment=assignment), prior, counted_sets(prior, x_ND, zeros_N, None, 1))
    surprise_N = surprise(clusters, x_ND, zeros_N)
    assert float(surprise_N.mean()) == pytest.approx(0, abs=0.02)
    assert float(surprise_N.std()) == pytest.approx(1, abs=0.02)


def test_the_surprise_of_few_degrees_is_that_of_rows_drawn_from_them() -> None:
    """Student-t with 5 degrees: its tail is heavy, and no surprise."""
    generator = torch.distributions.StudentT(5.0)
    torch.manual_seed(0)
    x_ND = generator.sample((40_000, 1))
    one = Gaussians(
        torch.zeros(1).double(), torch.zeros(1, 1).double(), torch.ones(1, 1, 1).double(), torch.tensor([5.0])
    )
    surprise_N = surprise(one, x_ND, torch.zeros(len(x_ND), dtype=torch.int64))
    assert float(surprise_N.mean()) == pytest.approx(0, abs=0.02)
    assert float(surprise_N.std()) == pytest.approx(1, abs=0.02)


def test_surprise_by_hand() -> None:
    """In two dimensions minus the log density at (3, 4) is 12.5 above its least, where 1 +- 1 is expected."""
    one = Gaussians(torch.zeros(2).double(), torch.zeros(1, 2).double(), torch.eye(2).double()[None])
    found = surprise(one, torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.zeros(2, dtype=torch.int64))
    assert found.tolist() == pytest.approx([11.5, -1.0])


@each_family
def test_strange_are_far_rows_and_arrivals_that_are_elsewhere_as_a_group(kind: Covariance) -> None:
    x_ND, label_N = _two_apart()
    model = _model(x_ND, label_N, kind)
    like_nD, shifted_nD = _noise(60, 1), 12 + 0.3 * _noise(60, 2) + torch.tensor([0.9, 0.0, 0.0])
    rows_ND = torch.cat([like_nD, shifted_nD, torch.tensor([[0.0, 0.0, 9.0]])])
    component_N = torch.cat([torch.zeros(60), torch.ones(60), torch.zeros(1)]).long()
    every_N = torch.ones(121, dtype=torch.bool)
    strange_N = strange(model, rows_ND, component_N, every_N)
    assert strange_N[60:].all()
    assert int(strange_N[:60].sum()) < 4
    assert int(strange(model, rows_ND, component_N, ~every_N)[60:120].sum()) == 0  # older rows are no group of arrivals


@each_family
def test_what_is_left_of_nothing_is_worth_nothing(kind: Covariance) -> None:
    x_ND, label_N = _two_apart()
    prior = _prior(kind)
    sets = counted_sets(prior, x_ND, label_N, torch.full((200,), 0.3).double(), 2)
    left = minus(sets, sets)
    assert all(not value.any() for value in left.tensors().values())
    assert worth(prior, 10.0, left).tolist() == [0, 0]
    assert torch.equal(worth(prior, 10.0, sets), cluster_weight(prior, 10.0, sets))


def test_rows_settle_among_components_whose_other_rows_stay() -> None:
    """Labels begin wrong; Moments end as those of the others plus those of the rows where they are."""
    x_ND, label_N = _two_apart()
    prior = _prior("full")
    base = counted_sets(prior, _noise(200, 3) + 12 * label_N[:, None], label_N, None, 2)
    wrong_N = (torch.arange(200) // 2) % 2
    settling = _settling(x_ND, wrong_N, base)
    assert settling.sweep() == int((wrong_N != label_N).sum()) > 50
    assert torch.equal(settling.label_N, label_N)
    assert settling.sweep() == 0
    expected = base + counted_sets(prior, x_ND, label_N, None, 2)
    for one, other in zip(settling.whole(torch.arange(2)).tensors().values(), expected.tensors().values(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_component_that_no_row_left_or_joined_is_not_evaluated_again() -> None:
    x_ND, label_N = _two_apart()
    far_ND, far_N = torch.cat([x_ND, 100 + _noise(50, 4)]), torch.cat([label_N, torch.full((50,), 2)])
    wrong_N = far_N.clone()
    wrong_N[:10] = 1 - wrong_N[:10]
    settling = _settling(far_ND, wrong_N, zeros(3, 3))
    settling.sweep()
    assert settling.stale_K.tolist() == [True, True, False]


def test_a_birth_is_judged_by_all_rows_of_its_parents() -> None:
    """By hand from the weights: the set, and its two parents without its rows."""
    x_ND, label_N = _two_apart()
    base = counted_sets(_prior("full"), _noise(100, 3), torch.zeros(100, dtype=torch.int64), None, 2)
    settling = _settling(x_ND, label_N, base)
    row_n = torch.tensor([0, 1, 2, 3, 4, 6])
    prior, whole = settling.prior, settling.whole(torch.arange(2))
    part = counted_sets(prior, x_ND[row_n], label_N[row_n], None, 2)
    expected = (
        worth(prior, 10.0, Moments.cat([part.total(), minus(whole, part)])).sum() - worth(prior, 10.0, whole).sum()
    )
    assert birth_gain(settling, row_n) == pytest.approx(float(expected))
    assert expected < 0
    (proposal,) = born(settling, [row_n])
    assert (proposal.parent, proposal.rows, proposal.child) == (0, 6, -1)
    assert len(settling) == 2


def test_a_newborn_that_others_explain_better_is_undone_and_one_that_nobody_wants_is_not() -> None:
    x_ND, label_N = _two_apart()
    settling = _settling(x_ND, torch.zeros_like(label_N), zeros(1, 3))
    inside, outside = torch.nonzero(label_N == 0).flatten(), torch.nonzero(label_N == 1).flatten()
    settling.enlist([outside, inside[:20]])
    assert undone(settling, 1, least=5).keys() == {1}
    assert torch.equal(settling.label_N, label_N)
    assert settling.count_K.tolist() == [100, 100, 0]


@pytest.mark.parametrize("kind", ["full", "spherical"])
def test_a_search_among_few_rows_finds_clouds_beside_outliers(kind: Covariance) -> None:
    label_N = torch.arange(150) % 3
    x_ND = torch.cat([_noise(150) + 15 * torch.nn.functional.one_hot(label_N, 3), 400 + 100 * _noise(3, 1)])
    model = _model(x_ND[:150], torch.zeros_like(label_N), kind)
    set_N = grown(model, x_ND, torch.Generator().manual_seed(0))
    assert adjusted_rand_score(label_N, set_N[:150]) > 0.99
    assert joint(model, x_ND, set_N, 1.0) > joint(model, x_ND, torch.zeros_like(set_N), 1.0)


def test_a_search_in_one_cloud_finds_one() -> None:
    x_ND = _noise(300)
    model = _model(x_ND, torch.zeros(300, dtype=torch.int64))
    for factor in (1.0, 20.0):
        set_N = grown(model, x_ND, torch.Generator().manual_seed(0), factor)
        sets = [torch.nonzero(set_N == s).flatten() for s in range(int(set_N.max()) + 1)]
        settling = _settling(x_ND, torch.zeros_like(set_N), zeros(1, 3))
        assert len(confirmed(settling, sets, factor)[0]) == 1


@pytest.mark.parametrize("dim", [2, 8])
def test_halves_of_a_sample_of_one_cloud_are_not_confirmed_whatever_they_stand_for(dim: int) -> None:
    x_ND = _noise(60 * dim, dim=dim)
    settling = _settling(x_ND, torch.zeros(len(x_ND), dtype=torch.int64), zeros(1, dim))
    for cut_N in (x_ND[:, 0] > 0, x_ND.sum(dim=1) > 1, torch.arange(len(x_ND)) % 2 > 0):
        sets = [torch.nonzero(cut_N).flatten(), torch.nonzero(~cut_N).flatten()]
        for factor in (1.0, 5.0, 100.0):
            together, gain = confirmed(settling, sets, factor)
            assert (len(together), gain) == (1, 0.0)
            assert len(together[0]) == len(x_ND)


def test_sets_are_confirmed_by_what_they_gain_and_fragments_of_one_come_together() -> None:
    x_ND, label_N = _two_apart()
    settling = _settling(x_ND, torch.zeros_like(label_N), zeros(1, 3))
    one, other = torch.nonzero(label_N == 0).flatten(), torch.nonzero(label_N == 1).flatten()
    sets, gain = confirmed(settling, [one[:60], one[60:], other], 1.0)
    assert sorted(map(len, sets)) == [100, 100]
    parts = settling.moments(torch.arange(200), label_N, 2)
    assert gain == pytest.approx(float(settling.worth(parts).sum() - settling.worth(parts.total()).sum()))
    sets, scaled = confirmed(settling, [one, other], 3.0)
    thrice = Moments(*(3 * value for value in parts.tensors().values()))
    price = 2 * (3 + 6)  # (factor - 1) x the parameters of one component in three dimensions
    assert scaled == pytest.approx(float(settling.worth(thrice).sum() - settling.worth(thrice.total()).sum()) - price)
    assert scaled > gain > 0
    few = confirmed(settling, [one, other[:5]], 3.0)
    assert len(few[0]) == 1
    assert few[1] == 0


@pytest.mark.parametrize(
    ("group", "hold", "count", "names"),
    [
        ([0, 0, 1], [7, 7, 7], [5, 1, 9], [20, 20, 7]),  # the larger part of a split keeps the id
        ([0, 0], [7, 8], [3, 5], [8, 8]),  # the larger parent of a merge
        ([0, 1, 1], [7, -1, 8], [3, 50, 5], [7, 8, 8]),  # a newborn joins
        ([0, 1], [7, -1], [3, 50], [7, 20]),  # or has an id of its own
        (
            [0, 0, 1, 1],
            [7, 8, 7, -1],
            [6, 3, 10, 1],
            [8, 8, 7, 7],
        ),  # 8 is where its rows are, though 7's part is larger
        ([1, 0], [7, 8], [4, 4], [7, 8]),
        ([0, 1], [-1, -1], [4, 4], [20, 21]),
    ],
)
def test_an_id_goes_where_most_of_its_rows_are(
    group: list[int], hold: list[int], count: list[float], names: list[int]
) -> None:
    found, next_id = succeeded(torch.tensor(group), torch.tensor(hold), torch.tensor(count), 20)
    assert found.tolist() == names
    assert next_id == max(20, *(name + 1 for name in names))
