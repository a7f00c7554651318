"""Where tuning begins, and statistics of rows that stand for several."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.deepdpm.config import DeepDPMConfig
from models.deepdpm.mixture import Mixture
from models.deepdpm.model import DeepDPM
from models.deepdpm.network import DeepDPMNet
from models.deepdpm.statistics import net_statistics
from models.deepdpm.tuning import TuningObjective, begin, remembered
from models.dpm.prior import NIW
from models.gaussians import Gaussians
from models.increment import Held
from models.objective import Plan
from pipeline.train.passes import WorkerRows
from pipeline.train.rows import Rows
from pipeline.train.world import Alone

CONFIG = DeepDPMConfig(hidden=8, sub_hidden=4)
CENTRE = torch.tensor([[0.0, 0.0], [30.0, 0.0], [0.0, 30.0]])


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def known(weight: tuple[float, ...] = (0.5, 0.3, 0.2)) -> DeepDPM:
    """Three unit Gaussians far from each other, with random networks and ids that are no indices."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = DeepDPMNet(2, 3, CONFIG.hidden, CONFIG.sub_hidden)
    prior = NIW(torch.tensor([10.0, 10.0]).double(), 1.0, 4.0, 100 * torch.eye(2).double())
    gaussians = Gaussians(prior.mean_D, CENTRE.double() - prior.mean_D, torch.eye(2).double().repeat(3, 1, 1))
    mixture = Mixture(torch.tensor([4, 0, 7]), torch.tensor(weight).double().log(), gaussians)
    return DeepDPM(CONFIG, prior, mixture, net.state_dict(), floor=20)


def rows(model: DeepDPM, count: tuple[int, ...], weight: float, *, new: bool, away: float = 0.0) -> Held:
    """Rows of the three clusters, or as far from them as one says."""
    centre_ND = CENTRE.repeat_interleave(torch.tensor(count), dim=0) + away
    x_ND = centre_ND + torch.randn(len(centre_ND), 2, generator=rng(int(new) + len(centre_ND)))
    row_N = torch.arange(len(x_ND)) * 1001 + int(new) - 10**15
    one_N = torch.ones(len(x_ND), dtype=torch.float64)
    return Held(x_ND, row_N, model.assign(x_ND).component_N, weight * one_N, one_N.bool() & new)


def both(one: Held, other: Held) -> Held:
    return Held(*(torch.cat(pair) for pair in zip(vars(one).values(), vars(other).values(), strict=True)))


def test_a_row_that_stands_for_two_counts_as_two() -> None:
    model, net = known(), DeepDPMNet(2, 3, CONFIG.hidden, CONFIG.sub_hidden)
    net.load_state_dict(dict(model.net))
    x_ND = rows(model, (30, 30, 30), 1.0, new=True).x_ND
    weight_N = 1.0 + torch.arange(90).double() % 2
    with torch.no_grad():
        weighted = net_statistics(net, x_ND, model.prior.mean_D, 3, weight_N)
        repeated = net_statistics(net, x_ND.repeat_interleave(weight_N.long(), dim=0), model.prior.mean_D, 3)
    for name, value in repeated.tensors().items():
        torch.testing.assert_close(weighted.tensors()[name], value, rtol=1e-9, atol=1e-6)


def test_clusters_that_the_sample_lacks_are_remembered() -> None:
    model = known()
    held = rows(model, (100, 5, 0), 10.0, new=False)
    found = remembered(model, held, rng())
    drawn = found[torch.arange(len(held), len(found))]
    assert torch.bincount(drawn.component_N).tolist() == [0, 27, 32]
    weight_K = torch.bincount(found.component_N, found.weight_N)
    assert weight_K.tolist() == pytest.approx([1000, 0.3 * 1050, 0.2 * 1050])
    assert torch.equal(model.assign(drawn.x_ND).component_N, drawn.component_N)
    assert not drawn.new_N.any()
    assert len(found.row_N.unique()) == len(found)
    assert torch.equal(found.x_ND, remembered(model, held, rng()).x_ND)


def test_rows_of_clusters_that_are_there_beget_none() -> None:
    model = known()
    held = both(rows(model, (40, 40, 40), 10.0, new=False), rows(model, (50, 30, 20), 1.0, new=True))
    beginning = begin(model, held, rng())
    assert beginning.model.id_K.tolist() == [4, 0, 7]
    assert len(beginning.parent_B) == 0
    assert beginning.model.next_id == 20


def test_a_group_of_arrivals_far_from_all_is_born_in_the_cluster_that_had_it() -> None:
    model = known()
    strangers = rows(model, (0, 0, 25), 1.0, new=True, away=8.0)
    held = both(rows(model, (40, 40, 40), 10.0, new=False), strangers)
    beginning = begin(model, held, rng())
    assert beginning.model.id_K.tolist() == [4, 0, 7, 20]
    assert beginning.model.next_id == 21
    assert beginning.parent_B.tolist() == [2]
    assert beginning.rows_K.tolist() == pytest.approx([400, 400, 400, 25])
    born = [move for move in beginning.moves if move.accepted]
    assert [(move.kind, move.clusters) for move in born] == [("birth", (7, 20))]
    assert beginning.model.assign(strangers.x_ND).cluster_N.tolist() == [20] * 25
    mean_D = model.prior.mean_D + beginning.model.mixture.gaussians.mean_KD[3]
    assert mean_D.tolist() == pytest.approx(strangers.x_ND.mean(dim=0).tolist(), abs=2)  # drawn to the prior's


def test_old_rows_that_nobody_expects_beget_none() -> None:
    model = known()
    held = both(rows(model, (0, 0, 25), 10.0, new=False, away=8.0), rows(model, (9, 9, 9), 1.0, new=True))
    assert len(begin(model, held, rng()).parent_B) == 0


def begun(held: Held, model: DeepDPM) -> tuple[TuningObjective, DeepDPMNet]:
    objective = TuningObjective(begin(model, held, rng()), held.row_N, held.weight_N)
    data = WorkerRows(Rows(held.x_ND.numpy(), held.row_N.numpy()), Alone(), 1000).summarize(1000, seed=3)
    return objective, objective.build(data, Plan(128, 8, 5))


def outputs(net: DeepDPMNet, x_ND: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.softmax(net(x_ND).logit_BK, dim=1)


def test_networks_go_on_and_what_was_born_takes_its_share_of_its_parent() -> None:
    model = known()
    strangers = rows(model, (0, 0, 25), 1.0, new=True, away=8.0)
    held = both(rows(model, (40, 40, 40), 10.0, new=False), strangers)
    objective, net = begun(held, model)
    before = DeepDPMNet(2, 3, CONFIG.hidden, CONFIG.sub_hidden)
    before.load_state_dict(dict(model.net))
    old_NK, new_NK = (outputs(each, held.x_ND) for each in (before, net))
    torch.testing.assert_close(new_NK[:, :2], old_NK[:, :2])
    torch.testing.assert_close(new_NK[:, 2] + new_NK[:, 3], old_NK[:, 2])
    torch.testing.assert_close(new_NK[:, 3] / old_NK[:, 2], torch.full((len(held),), 25 / 425))
    search = objective.search
    assert search.mixture.id_K.tolist() == [4, 0, 7, 20]
    assert search.axis_K.tolist() == [3, 3, 3, 0]  # only what is new is to be cut
    assert search.tried_K.tolist() == [400, 400, 400, 0]  # so that an old one is, too, once it has grown
    assert (search.next_id, search.frozen) == (21, CONFIG.warmup)
    assert objective.clusterer(net).next_id == 21


def test_nothing_born_is_nothing_frozen() -> None:
    model = known()
    objective, net = begun(rows(model, (40, 40, 40), 10.0, new=False), model)
    assert objective.search.frozen == 0
    assert all(torch.equal(value, model.net[name]) for name, value in net.state_dict().items())
