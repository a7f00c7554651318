"""DeepDPM end to end on planted clusters, and what an epoch's end does by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from models.clusterer import DataSummary
from models.deepdpm.advance import advance
from models.deepdpm.config import DeepDPMConfig
from models.deepdpm.model import DeepDPM, load
from models.deepdpm.network import DeepDPMNet
from models.deepdpm.objective import DeepDPMObjective
from models.deepdpm.search import Search
from models.deepdpm.statistics import net_statistics
from models.dpm.moves import log_split_ratio
from models.errors import ShoalError
from models.objective import Objective, Plan, whole_batch
from pipeline.train.config import TrainConfig
from pipeline.train.result import Fit
from pipeline.train.trainer import train
from pipeline.train.world import Alone

PLAN = Plan(128, 8, 500)
FAST = DeepDPMConfig(initial_clusters=1, warmup=80, update=8, interval=40, freeze=20, axes=2)


def planted(rows: int, clusters: int = 8, dim: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Unit Gaussians at least 15 apart."""
    generator = torch.Generator().manual_seed(seed)
    centre_KD = 10 * torch.tensor([[(k >> d) & 1 for d in range(dim)] for k in range(clusters)]).float() * 2
    label_N = torch.arange(rows) % clusters
    return torch.randn(rows, dim, generator=generator) + centre_KD[label_N], label_N


def summarise(x_ND: Tensor, seed: int = 0) -> DataSummary:
    covariance_DD = torch.cov(x_ND.double().T, correction=0).reshape(x_ND.shape[1], -1)
    return DataSummary(len(x_ND), x_ND.double().mean(dim=0), covariance_DD, x_ND, seed)


def fitted(config: DeepDPMConfig, x_ND: Tensor, seed: int = 0, batch_size: int = 128, epochs: int = 400) -> Fit:
    settings = TrainConfig(batch_size=batch_size, epochs=epochs, seed=seed)
    return train(DeepDPMObjective(config), x_ND.numpy(), np.arange(len(x_ND)), settings)


def one_loss(objective: DeepDPMObjective, net: DeepDPMNet, x_BD: Tensor) -> Tensor:
    return objective.loss(net, whole_batch((x_BD,), torch.arange(len(x_BD))), 0, Alone()).total


class Held:
    """Passes over rows in memory, block by block."""

    def __init__(self, x_ND: Tensor, size: int = 100) -> None:
        self.x_ND, self.size, self.data = x_ND, size, summarise(x_ND)

    @torch.no_grad()
    def total(self, expect: Callable[[Tensor, Tensor], object]) -> object:
        first, *rest = (expect(block, torch.arange(len(block))) for block in self.x_ND.split(self.size))
        return sum(rest, start=first)


@pytest.mark.parametrize("start", [1, 20])
@pytest.mark.parametrize("divergence", ["paper", "reference"])
def test_eight_blobs_are_found_from_one_cluster_and_from_twenty(start: int, divergence: str) -> None:
    x_ND, label_N = planted(2000)
    config = DeepDPMConfig.model_validate({**FAST.model_dump(), "initial_clusters": start, "divergence": divergence})
    fit = fitted(config, x_ND)
    assert fit.settled
    assert fit.history[-1].clusters == 8
    found = fit.model.assign(x_ND).cluster_N
    assert adjusted_rand_score(label_N, found) == 1
    assert found.unique().tolist() == fit.model.id_K.sort().values.tolist()
    assert len([move for _, move in fit.moves if move.accepted]) >= abs(8 - start)


def test_one_cluster_stays_one_and_says_what_it_tried() -> None:
    x_ND = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0))
    fit = fitted(FAST, x_ND)
    assert fit.settled
    assert {each.clusters for each in fit.history} == {1}
    assert [move.kind for _, move in fit.moves] == ["split"] * FAST.axes
    assert all(not move.accepted and move.log_ratio < 0 and "likelier together" in move.why for _, move in fit.moves)


def test_the_last_accepted_move_is_followed_by_a_round_of_refused_merges() -> None:
    x_ND, _ = planted(1000, clusters=4)
    moves = fitted(FAST, x_ND).moves
    last = max(epoch for epoch, move in moves if move.accepted)
    assert [move for epoch, move in moves if epoch > last and move.kind == "merge" and not move.accepted]


def test_every_accepted_move_is_one_step_of_the_count() -> None:
    x_ND, _ = planted(1000, clusters=6)
    fit = fitted(FAST.model_copy(update={"initial_clusters": 15}), x_ND)
    change = {"split": 1, "merge": -1, "death": -1}
    accepted = sum(change[move.kind] for _, move in fit.moves if move.accepted)
    assert fit.history[-1].clusters == 15 + accepted == 6


def test_the_same_seed_gives_the_same_fit_and_blocks_do_not_matter() -> None:
    x_ND, _ = planted(600, clusters=3)
    first, again = (fitted(FAST, x_ND, epochs=40).model.tensors() for _ in range(2))
    assert all(torch.equal(again[name], value) for name, value in first.items())


def trained(x_ND: Tensor, epochs: int, config: DeepDPMConfig = FAST) -> tuple[DeepDPMObjective, DeepDPMNet]:
    """Some epochs of plain training."""
    objective, passes = DeepDPMObjective(config), Held(x_ND)
    net = objective.build(passes.data, PLAN)
    for epoch in range(epochs):
        advance_epoch(objective, net, passes, epoch)
    return objective, net


def advance_epoch(objective: DeepDPMObjective, net: DeepDPMNet, passes: Held, epoch: int) -> int:
    optimizer = torch.optim.SGD(objective.groups(net), lr=0.1)
    for step, part in enumerate(passes.x_ND.split(50)):
        optimizer.zero_grad()
        one_loss(objective, net, part).backward()
        optimizer.step()
        objective.after_step(net, whole_batch((part,), torch.arange(len(part))), step, Alone())
    return objective.on_epoch_end(net, epoch, passes).clusters


def test_a_run_goes_on_from_its_state_as_if_it_had_not_stopped() -> None:
    x_ND, _ = planted(600, clusters=8)
    objective, net = trained(x_ND, epochs=12)
    assert 1 < len(net.last.bias) < 8  # something has happened, and something will
    payload = safetensors.torch.save(objective.state())
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    resumed = DeepDPMObjective(FAST)
    fresh = resumed.build(summarise(x_ND), PLAN)
    resumed.load(safetensors.torch.load(payload), fresh)
    fresh.load_state_dict(weights)
    counts = []
    for each, its_net in ((objective, net), (resumed, fresh)):
        counts.append([advance_epoch(each, its_net, Held(x_ND), epoch) for epoch in range(12, 20)])
    assert counts[0] == counts[1]
    assert len(set(counts[0])) > 1
    assert all(torch.equal(resumed.state()[name], value) for name, value in objective.state().items())
    assert all(torch.equal(fresh.state_dict()[name], value) for name, value in net.state_dict().items())


def test_a_loss_is_a_mean_over_rows_and_trains_each_net_by_its_own_part() -> None:
    x_ND, _ = planted(200, clusters=4)
    objective, net = trained(x_ND, epochs=0, config=FAST.model_copy(update={"initial_clusters": 4}))
    whole, first, second = (one_loss(objective, net, rows).double() for rows in (x_ND, x_ND[:50], x_ND[50:]))
    torch.testing.assert_close(whole, 0.25 * first + 0.75 * second, rtol=1e-5, atol=1e-5)
    one_loss(objective, net, x_ND).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in net.parameters())


@pytest.mark.parametrize(("asked", "rows", "cells"), [(None, 70_000, 32), (None, 800, 16), (None, 3, 1), (5, 100, 2)])
def test_the_first_cells_are_no_more_than_the_rows_allow(asked: int | None, rows: int, cells: int) -> None:
    assert DeepDPMConfig(initial_clusters=asked).starts(rows) == cells


def test_is_an_objective() -> None:
    assert isinstance(DeepDPMObjective(FAST), Objective)


def test_an_m_step_is_the_posterior_mode_of_the_nets_responsibilities() -> None:
    x_ND, _ = planted(400, clusters=4)
    objective, net = trained(x_ND, 30, FAST.model_copy(update={"initial_clusters": 4, "warmup": 10**6}))
    objective.search = replace(objective.search, frozen=0)
    prior = objective.search.prior
    weight_NK = net(x_ND).logit_BK.detach().double().softmax(1)
    objective.on_epoch_end(net, 0, Held(x_ND))
    count_K = weight_NK.sum(dim=0)
    mixture = objective.search.mixture
    torch.testing.assert_close(mixture.log_weight_K.exp(), count_K / 400, rtol=1e-4, atol=1e-6)
    centred_ND = x_ND.double() - prior.mean_D
    mean_KD = weight_NK.T @ centred_ND / (count_K + prior.kappa)[:, None]
    torch.testing.assert_close(mixture.gaussians.mean_KD, mean_KD, rtol=1e-4, atol=1e-4)
    k = 1
    away_ND = centred_ND - mean_KD[k]
    scatter_DD = (weight_NK[:, k, None] * away_ND).T @ away_ND + prior.kappa * torch.outer(mean_KD[k], mean_KD[k])
    covariance_DD = (prior.psi_DD + scatter_DD) / (prior.nu + count_K[k] + prior.dim + 2)
    chol_DD = mixture.gaussians.chol_KDD[k]
    torch.testing.assert_close(chol_DD @ chol_DD.T, covariance_DD, rtol=1e-4, atol=1e-4)


def due(search: Search) -> Search:
    """The same search when a round of moves is due."""
    return replace(search, steps=1000, played=0, updates=1)


def test_a_split_is_judged_by_the_rows_of_its_halves_and_children_take_over() -> None:
    x_ND, _ = planted(400, clusters=2, dim=2)
    objective, net = trained(x_ND, epochs=0)
    search = due(objective.search)
    stats = net_statistics(net, x_ND, search.prior.mean_D, 8)
    after = advance(FAST, search, stats, torch.Generator())
    ratio = log_split_ratio(search.prior, 10.0, stats.members[torch.tensor([0])], stats.members[torch.tensor([1])])
    (move,) = after.moves
    assert (move.kind, move.clusters, move.accepted) == ("split", (0, 1), True)
    assert move.log_ratio == pytest.approx(float(ratio))
    assert after.row_L.tolist() == [0, 0]
    assert after.anew_L.all()
    assert after.log_share_L.exp().sum() == pytest.approx(1.0)
    assert after.search.frozen == 1000 + FAST.freeze
    expected_KD = search.prior.mode(stats.halves).mean_KD
    torch.testing.assert_close(after.search.mixture.gaussians.mean_KD.sort(dim=0)[0], expected_KD.sort(dim=0)[0])


def test_the_two_halves_of_a_cloud_merge_into_the_likelier_per_row() -> None:
    x_ND = torch.randn(600, 2, generator=torch.Generator().manual_seed(0))
    objective, net = trained(x_ND, epochs=0, config=FAST.model_copy(update={"initial_clusters": 2}))
    search = replace(due(objective.search), axis_K=torch.tensor([2, 2]))  # nothing left to split
    with torch.no_grad():  # the net as a cut across the first axis, 2 : 1
        net.last.weight.zero_()
        net.hidden.weight.zero_()
        net.hidden.bias.zero_()
        net.hidden.weight[0, 0], net.hidden.weight[1, 0] = 1.0, -1.0
        net.last.weight[0, 0], net.last.weight[0, 1] = 5.0, -5.0
        net.last.bias.copy_(torch.tensor([2.0, 0.0]))
    stats = net_statistics(net, x_ND, search.prior.mean_D, 8)
    after = advance(FAST, search, stats, torch.Generator())
    (move,) = after.moves
    rows = stats.members.count_K.view(2, 2).sum(dim=1)
    assert rows[0] > rows[1] > 100
    assert (move.kind, move.clusters, move.accepted) == ("merge", (0, 1), True)
    assert after.search.mixture.id_K.tolist() == [0]
    pairs = stats.members[torch.tensor([0, 2])] + stats.members[torch.tensor([1, 3])]
    assert after.row_L.tolist() == [int((search.prior.log_marginal(pairs) / pairs.count_K).argmax())]
    assert after.anew_L.tolist() == [True]
    assert after.search.mixture.log_weight_K.tolist() == pytest.approx([0.0])


def test_empty_clusters_die_at_once() -> None:
    x_ND = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    objective, net = trained(x_ND, epochs=0, config=FAST.model_copy(update={"initial_clusters": 3}))
    with torch.no_grad():
        net.last.weight.zero_()
        net.last.bias.copy_(torch.tensor([-9.0, 5.0, -9.0]))
    stats = net_statistics(net, x_ND, objective.search.prior.mean_D, 8)
    after = advance(FAST, replace(objective.search, steps=9), stats, torch.Generator())
    assert [(move.kind, move.clusters, move.accepted) for move in after.moves] == [
        ("death", (0,), True),
        ("death", (2,), True),
    ]
    assert after.row_L.tolist() == [1]
    assert after.search.mixture.id_K.tolist() == [1]


def test_a_search_does_not_end_with_a_cluster_that_labels_no_row() -> None:
    x_ND, _ = planted(300, clusters=3)
    objective, net = trained(x_ND, 8, FAST.model_copy(update={"initial_clusters": 3, "warmup": 10**6}))
    kept = (FAST.axes,) * 3
    search = replace(due(objective.search), frozen=0, stalled=99, best=1e12, axis_K=torch.tensor(kept))
    mixture = search.mixture
    objective.search = replace(search, mixture=mixture, frozen=0)
    ending = objective.on_epoch_end(net, 8, Held(x_ND))
    assert (ending.settled, ending.clusters) == (True, 3)

    class Elsewhere(Held):
        """The networks see three clusters, the mixture's labels leave one of them empty."""

        def total(self, expect: Callable[[Tensor, Tensor], object]) -> object:
            stats = super().total(expect)
            return (
                replace(stats, count_K=stats.count_K * torch.tensor([1, 0, 1])) if hasattr(stats, "count_K") else stats
            )

    objective.search = replace(search, mixture=mixture)
    ending = objective.on_epoch_end(net, 8, Elsewhere(x_ND))
    assert (ending.settled, ending.clusters) == (False, 2)
    assert [(move.kind, move.clusters) for move in ending.moves if move.accepted] == [("death", (1,))]
    assert len(net.last.bias) == len(objective.search.mixture.id_K) == 2
    assert ending.surgery is not None
    assert ending.surgery.source["last.weight"].tolist() == [0, 2]


def test_metropolis_takes_a_losing_move_at_the_rate_it_deserves() -> None:
    x_ND = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    objective, net = trained(x_ND, epochs=0)
    search = due(objective.search)
    stats = net_statistics(net, x_ND, search.prior.mean_D, 8)
    (greedy,) = advance(FAST, search, stats, torch.Generator()).moves
    # The ratio is proportional to the concentration: bring it to e^-2.
    concentration = FAST.concentration * math.exp(-2 - greedy.log_ratio)
    config = FAST.model_copy(update={"metropolis": True, "concentration": concentration})
    rounds = [advance(config, search, stats, torch.Generator().manual_seed(seed)).moves[0] for seed in range(400)]
    assert rounds[0].log_ratio == pytest.approx(-2)
    rate = sum(move.accepted for move in rounds) / 400
    assert abs(rate - math.exp(-2)) < 4 * math.sqrt(math.exp(-2) / 400)
    assert not greedy.accepted


@pytest.mark.parametrize(
    "x_ND",
    [
        torch.full((60, 3), 2.5),
        torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).repeat(30, 1),
        torch.cat([torch.randn(100, 2, generator=torch.Generator().manual_seed(0)), torch.full((100, 1), 7.0)], dim=1),
        torch.randn(12, 30, generator=torch.Generator().manual_seed(0)),
        planted(200, clusters=4)[0] + 1e5,
        planted(200, clusters=4)[0] * 1e12,
        planted(200, clusters=4)[0] * 1e-12,
        torch.tensor([[1.0, -2.0, 3.0]]),
    ],
    ids=["equal", "duplicates", "constant dimension", "D > N", "far from zero", "huge", "tiny", "one row"],
)
@pytest.mark.parametrize("start", [1, 5])
def test_hard_rows_stay_finite(x_ND: Tensor, start: int) -> None:
    config = FAST.model_copy(update={"initial_clusters": start, "warmup": 4, "update": 2, "interval": 8, "freeze": 4})
    fit = fitted(config, x_ND, epochs=50)
    assert not any(value.double().isnan().any() for value in fit.model.tensors().values())
    found = fit.model.assign(x_ND)
    assert found.score_N.isfinite().all()
    assert {*found.cluster_N.tolist()} <= {*fit.model.id_K.tolist()}


def test_the_unit_of_the_data_does_not_matter() -> None:
    x_ND, _ = planted(400, clusters=4)
    first, scaled = (fitted(FAST, rows_ND, epochs=60) for rows_ND in (x_ND, x_ND * 1024))
    assert [each.clusters for each in first.history] == [each.clusters for each in scaled.history]
    assert torch.equal(first.model.assign(x_ND).cluster_N, scaled.model.assign(x_ND * 1024).cluster_N)


def test_an_impossible_prior_is_refused_with_both_numbers() -> None:
    x_ND, _ = planted(100, clusters=2)
    with pytest.raises(ShoalError, match=r"prior_degrees is 2 .* 3"):
        DeepDPMObjective(DeepDPMConfig(prior_degrees=2.0)).build(summarise(x_ND), PLAN)


def test_a_saved_model_assigns_as_before() -> None:
    x_ND, _ = planted(300, clusters=3)
    objective, net = trained(x_ND, epochs=12)
    model: DeepDPM = objective.clusterer(net)
    again = load(FAST, safetensors.torch.load(safetensors.torch.save(model.tensors())))
    for name, value in vars(model.assign(x_ND)).items():
        assert torch.equal(vars(again.assign(x_ND))[name], value), name
    other = DeepDPMNet(4, len(model.id_K), FAST.hidden, FAST.sub_hidden)
    other.load_state_dict(dict(again.net))
    assert torch.equal(other(x_ND).logit_BK, net(x_ND).logit_BK)
