"""SwAV's loss, gradients, queue and memory, on one worker and on several."""

from __future__ import annotations

import itertools
import math
import pickle
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from worlds import run_workers

from models.backbones import BackboneConfig, load_stored
from models.errors import ShoalError
from models.objective import Batch, ImageObjective, ImageSummary, Loss, Objective, Passes, Plan, Reduce, whole_batch
from models.swav.config import SwAVConfig
from models.swav.network import SwAVNet, swapped_loss
from models.swav.objective import SwAVObjective
from models.swav.sinkhorn import sinkhorn
from models.views_config import Bank, ViewsConfig
from pipeline.train.world import Alone

BACKBONE = BackboneConfig(name="shoal/conv4_grey", weights="random")
CONFIG = SwAVConfig(prototypes=10, queue=0, freeze=0.0, hidden=12, dim=6)
QUEUED = CONFIG.model_copy(update={"queue": 24, "queue_start": 0.0})
ROWS, PLAN = 12, Plan(12, 4, 10)
BANKS = {
    2: (Bank(size=12, count=2, area=(0.2, 1.0)),),
    3: (Bank(size=12, count=2, area=(0.2, 1.0)), Bank(size=8, count=1, area=(0.1, 0.2))),
    6: (
        Bank(size=12, count=2, area=(0.2, 1.0)),
        Bank(size=10, count=3, area=(0.1, 0.2)),
        Bank(size=8, count=1, area=(0.1, 0.2)),
    ),
}
ONE_AT_A_TIME = threading.Lock()  # workers that are threads share the generator that weights are drawn from
PASSES = cast(Passes, None)  # nothing is asked of them


def made(config: SwAVConfig = CONFIG, views: int = 3, seed: int = 0) -> tuple[SwAVObjective, SwAVNet]:
    objective = SwAVObjective(config, BACKBONE, ViewsConfig(policy="digits", banks=BANKS[views]))
    return objective, objective.build(ImageSummary(120, seed), PLAN)


def crops(seed: int, views: int = 3, rows: int = ROWS) -> tuple[Tensor, ...]:
    """Of images that differ in their mean level and their grain."""
    rng = torch.Generator().manual_seed(seed)
    level_B111 = torch.rand(rows, 1, 1, 1, generator=rng)
    grain_B111 = torch.rand(rows, 1, 1, 1, generator=rng)
    sizes = [bank.size for bank in BANKS[views] for _ in range(bank.count)]
    noise = [torch.rand(rows, 1, size, size, generator=rng) for size in sizes]
    return tuple((255 * (0.5 * level_B111 + 0.5 * grain_B111 * each)).to(torch.uint8) for each in noise)


def batch_of(seed: int, views: int = 3) -> Batch:
    return whole_batch(crops(seed, views), torch.arange(ROWS))


# The paper's equations, written again: float64, prototypes by rows, one image and one view after another.


def codes_by_the_paper(score_BK: Tensor, past_MK: Tensor, config: SwAVConfig) -> Tensor:
    q_KB = torch.exp(torch.cat([past_MK, score_BK]).T / config.epsilon)
    q_KB = q_KB / q_KB.sum()
    prototypes, samples = q_KB.shape
    for _ in range(config.iterations):
        for k in range(prototypes):
            q_KB[k] /= prototypes * q_KB[k].sum()
        for b in range(samples):
            q_KB[:, b] /= samples * q_KB[:, b].sum()
    return (samples * q_KB).T[len(past_MK) :]


def loss_by_the_paper(
    net: SwAVNet, views: Sequence[Tensor], past: Sequence[Tensor], config: SwAVConfig
) -> tuple[Tensor, list[Tensor]]:
    """The loss, and the unit vectors of the two assigning views; `past` are those of batches before, newest first."""
    features, start = [], 0
    while start < len(views):
        alike = [view for view in views[start:] if view.shape == views[start].shape]
        features.append(net.backbone(net.pixels.normalise(torch.cat(alike), torch.float64)))
        start += len(alike)
    z_GD = net.head(torch.cat(features))
    z = (z_GD / z_GD.norm(dim=1, keepdim=True)).split(len(views[0]))
    prototype_KD = net.prototypes.weight
    terms = []
    for s in range(2):
        queue_MD = torch.cat([each[s] for each in past]) if past else z[s].new_zeros(0, z[s].shape[1])
        with torch.no_grad():
            q_BK = codes_by_the_paper(z[s] @ prototype_KD.T, queue_MD @ prototype_KD.T, config)
        for t in range(len(views)):
            if t != s:
                for b in range(len(z[t])):
                    exponent_K = torch.exp(prototype_KD @ z[t][b] / config.temperature)
                    terms.append(-(q_BK[b] * torch.log(exponent_K / exponent_K.sum())).sum())
    return torch.stack(terms).mean(), [each.detach() for each in z[:2]]


@pytest.mark.parametrize("queue", [False, True])
@pytest.mark.parametrize("views", BANKS)
def test_loss_and_gradients_are_those_of_the_papers_equations(views: int, queue: bool) -> None:
    config = QUEUED if queue else CONFIG
    (objective, net), (_, reference) = made(config, views), made(config, views)
    net, reference, past = net.double(), reference.double(), []
    for step in range(3):  # two batches fill the queue
        batch = batch_of(step, views)
        net.zero_grad()
        found = objective.loss(net, batch, step, Alone()).total
        found.backward()
        objective.after_step(net, batch, step, Alone())
        reference.zero_grad()
        expected, z = loss_by_the_paper(reference, batch.views, past if len(past) == 2 else [], config)
        expected.backward()
        past = [z, *past][:2] if queue else []
        assert found.dtype == torch.float64
        assert abs(float((found - expected).detach())) <= 1e-6
        for name, parameter in reference.named_parameters():
            grad = net.get_parameter(name).grad
            assert grad is not None
            assert parameter.grad is not None
            assert (grad - parameter.grad).abs().max() <= 1e-6, name
    assert abs(float(expected.detach()) - math.log(10)) > 0.01  # something to compare
    assert float(reference.head[0].weight.grad.abs().max()) > 1e-3


def test_in_float32_loss_and_gradients_of_scores_are_those_of_float64() -> None:
    rng = torch.Generator().manual_seed(0)
    unit_VBD, unit_KD = (
        nn.functional.normalize(torch.randn(*size, 16, generator=rng), dim=-1) for size in ((6, 96), (40,))
    )
    score_VBK = unit_VBD @ unit_KD.T
    results = []
    for dtype in (torch.float32, torch.float64):
        own_VBK = score_VBK.clone().to(dtype).requires_grad_()
        code_ABK = sinkhorn(own_VBK[:2].detach(), 0.05, 3, Alone())
        loss = swapped_loss(own_VBK, code_ABK, 0.1)
        loss.backward()
        assert own_VBK.grad is not None
        results.append((float(loss.detach()), own_VBK.grad.double()))
    (found, found_VBK), (expected, expected_VBK) = results
    assert abs(found - expected) <= 1e-6
    assert (found_VBK - expected_VBK).abs().max() <= 1e-6 * expected_VBK.abs().max()


# Training in small.


@dataclass
class Run:
    """What one worker ends with."""

    net: SwAVNet
    objective: SwAVObjective
    losses: list[Loss]


def train(
    rank: int,
    reduce: Reduce,
    bounds: Sequence[int],
    steps: range,
    *,
    config: SwAVConfig = QUEUED,
    begun: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None,
    accumulate: int = 1,
) -> Run:
    """Plain gradient descent on this worker's rows, [bounds[rank], bounds[rank + 1]) of each batch."""
    with ONE_AT_A_TIME:
        objective, net = made(config)
    net = net.double()
    if begun is not None:
        objective.load(begun[0], net)
        net.load_state_dict(begun[1])
    optimizer = torch.optim.SGD(objective.groups(net), lr=0.1)
    begin, end = bounds[rank], bounds[rank + 1]
    losses = []
    for step in steps:
        optimizer.zero_grad()
        for micro in range(accumulate):
            views = tuple(view[begin:end] for view in crops(step * accumulate + micro))
            batch = Batch(views, torch.arange(begin, end), begin, ROWS)
            loss = objective.loss(net, batch, step, reduce)
            loss.total.backward(torch.full_like(loss.total, batch.share / accumulate))
            losses.append(loss)
        parameters = [parameter for parameter in net.parameters() if parameter.grad is not None]
        for parameter, grad in zip(parameters, reduce.sum(*(each.grad for each in parameters)), strict=True):
            parameter.grad = grad
        objective.after_backward(net, step)
        optimizer.step()
        objective.after_step(net, batch, step, reduce)
    return Run(net, objective, losses)


def assert_same_state(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name].double(), value.double(), rtol=tolerance, atol=tolerance, equal_nan=True, msg=name
        )


@pytest.mark.parametrize("bounds", [(0, 6, 12), (0, 5, 6, 12)], ids=["2 workers", "3, one of a single row"])
def test_workers_train_as_one(bounds: tuple[int, ...]) -> None:
    alone = train(0, Alone(), (0, ROWS), range(5))
    together = run_workers(len(bounds) - 1, partial(train, bounds=bounds, steps=range(5)))
    assert alone.objective.state()["queue.filled"] == 24
    for worker in together:
        assert_same_state(dict(worker.net.state_dict()), dict(alone.net.state_dict()), 1e-9)
        assert_same_state(worker.objective.state(), alone.objective.state(), 1e-9)
    for number, expected in enumerate(alone.losses):
        parts = [worker.losses[number] for worker in together]
        assert parts[0].scalars.keys() == expected.scalars.keys()
        for name, value in {**expected.scalars, "total": expected.total.detach()}.items():
            shares = [(end - begin) / ROWS for begin, end in itertools.pairwise(bounds)]
            whole = sum(
                share * float({**part.scalars, "total": part.total.detach()}[name])
                for share, part in zip(shares, parts, strict=True)
            )
            assert whole == pytest.approx(float(value), rel=1e-6), name


def test_a_run_goes_on_with_another_number_of_workers() -> None:
    whole = train(0, Alone(), (0, ROWS), range(6))
    first, _ = run_workers(2, partial(train, bounds=(0, 7, 12), steps=range(3)))
    saved = safetensors.torch.load(safetensors.torch.save(first.objective.state()))
    begun = saved, {name: value.clone() for name, value in first.net.state_dict().items()}
    for worker in run_workers(3, partial(train, bounds=(0, 2, 3, 12), steps=range(3, 6), begun=begun)):
        assert_same_state(dict(worker.net.state_dict()), dict(whole.net.state_dict()), 1e-9)
        assert_same_state(worker.objective.state(), whole.objective.state(), 1e-9)


def test_micro_batches_enter_the_queue_in_their_order() -> None:
    run = train(0, Alone(), (0, ROWS), range(1), accumulate=2)
    apart = train(0, Alone(), (0, ROWS), range(2), config=QUEUED)
    queue_AMD = run.objective.state()["queue.row_AMD"]
    assert torch.equal(queue_AMD[:, ROWS:], apart.objective.state()["queue.row_AMD"][:, ROWS:])  # the first, older
    assert not torch.equal(queue_AMD[:, :ROWS], queue_AMD[:, ROWS:])
    assert run.objective.state()["health.whole"].tolist()[0] == 2 * ROWS


def test_what_was_staged_in_a_step_that_was_skipped_is_dropped() -> None:
    (objective, net), (plain, same) = made(QUEUED), made(QUEUED)
    objective.loss(net, batch_of(8), 0, Alone())  # and no after_step
    for each, network in ((objective, net), (plain, same)):
        network.load_state_dict(same.state_dict())
        each.loss(network, batch_of(9), 1, Alone())
        each.after_step(network, batch_of(9), 1, Alone())
    assert objective.state()["queue.filled"] == ROWS
    assert_same_state(objective.state(), plain.state(), 0.0)


def test_the_queue_starts_to_fill_when_it_should_and_is_used_when_full() -> None:
    run = train(0, Alone(), (0, ROWS), range(8), config=QUEUED.model_copy(update={"queue_start": 0.75}))
    fill = [float(loss.scalars["queue"]) for loss in run.losses]
    assert fill == [0, 0, 0, 0, 0.5, 1, 1, 1]  # .75 of 4 steps; what step 3 pushed is seen in step 4
    without = train(0, Alone(), (0, ROWS), range(8), config=CONFIG)
    assert "queue" not in without.losses[0].scalars
    same = [torch.equal(a.total, b.total) for a, b in zip(run.losses, without.losses, strict=True)]
    assert same == [True] * 5 + [False] * 3


# Prototypes.


def test_frozen_prototypes_have_no_gradient_and_stay_where_they_are() -> None:
    config = CONFIG.model_copy(update={"freeze": 0.5})
    objective, net = made(config)
    drawn_KD = net.prototypes.weight.detach().clone()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9, weight_decay=0.1)
    moved = []
    for step in range(4):
        optimizer.zero_grad()
        objective.loss(net, batch_of(step), step, Alone()).total.backward()
        assert net.prototypes.weight.grad is not None
        objective.after_backward(net, step)
        assert (net.prototypes.weight.grad is None) == (step < 2)
        optimizer.step()
        objective.after_step(net, batch_of(step), step, Alone())
        moved.append(float((net.prototypes.weight.detach() - drawn_KD).abs().max()))
    assert max(moved[:2]) <= 1e-6
    assert min(moved[2:]) > 1e-3


def test_prototypes_have_length_one_before_each_loss() -> None:
    objective, net = made()
    with torch.no_grad():
        net.prototypes.weight *= torch.linspace(0.5, 3, 10)[:, None]
    expected = objective.loss(made()[1], batch_of(0), 0, Alone()).total
    torch.testing.assert_close(objective.loss(net, batch_of(0), 0, Alone()).total, expected)
    torch.testing.assert_close(net.prototypes.weight.norm(dim=1), torch.ones(10))
    assert net.prototypes.bias is None


def test_the_optimizer_treats_all_parameters_alike_as_the_authors_does() -> None:
    objective, net = made()
    (group,) = objective.groups(net)
    assert set(group) == {"params"}
    assert {id(each) for each in group["params"]} == {id(each) for each in net.parameters()}


# What comes in and goes out.


def test_it_is_an_objective_of_images_and_can_be_sent() -> None:
    objective = SwAVObjective(CONFIG, BACKBONE, ViewsConfig(banks=BANKS[3]))
    assert isinstance(objective, Objective)
    assert isinstance(objective, ImageObjective)
    assert objective.pixels.channels == 1
    again = pickle.loads(pickle.dumps(objective))  # noqa: S301
    assert again.pixels == objective.pixels
    assert again.views.banks == BANKS[3]
    assert isinstance(again.build(ImageSummary(120, 0), PLAN), SwAVNet)


def test_one_view_is_refused() -> None:
    with pytest.raises(ShoalError, match=r"train\.views\.banks has 1"):
        SwAVObjective(CONFIG, BACKBONE, ViewsConfig(banks=(Bank(size=12, count=1, area=(0.2, 1.0)),)))


def test_nulls_are_settled_when_the_data_is_known() -> None:
    objective, net = made(SwAVConfig(hidden=0, dim=4))
    assert (objective.config.prototypes, objective.config.queue) == (29, 120)  # of 120 images in batches of 12
    assert objective.config.queue_start == 1.5
    assert [name for name, _ in net.head.named_parameters()] == ["0.weight", "0.bias"]
    assert objective.state()["queue.row_AMD"].shape == (2, 120, 4)
    assert net.training


def test_seeds_change_all_weights_and_nothing_else_does() -> None:
    def weights(seed: int) -> dict[str, Tensor]:
        return {name: each for name, each in made(seed=seed)[1].named_parameters() if each.ndim > 1}

    first = weights(3)
    torch.manual_seed(99)
    assert_same_state(weights(3), first, 0.0)
    assert all(not torch.equal(value, first[name]) for name, value in weights(4).items())


def test_the_backbone_is_a_plain_one_that_can_be_stored() -> None:
    run = train(0, Alone(), (0, ROWS), range(3))
    run.objective.on_epoch_end(run.net.eval(), 0, PASSES)
    net = run.net.float()
    backbone = run.objective.backbone(net)
    assert backbone.weights == "SwAV by shoal (1 epochs, 120 images)"
    image_BCHW = torch.randint(0, 256, (3, 1, 28, 28), dtype=torch.uint8)
    with torch.no_grad():
        expected = net.backbone.eval()(net.pixels.normalise(image_BCHW))
    torch.testing.assert_close(backbone.embed(image_BCHW), expected, rtol=1e-4, atol=1e-5)
    stored = load_stored(backbone.manifest, backbone.tensors())
    assert stored.digest == backbone.digest
    assert all(parameter.requires_grad for parameter in net.parameters())  # training may go on


def test_the_clusterer_takes_what_the_backbone_gives() -> None:
    run = train(0, Alone(), (0, ROWS), range(3))
    net = run.net.float().eval()
    model, backbone = run.objective.clusterer(net), run.objective.backbone(net)
    image_BCHW = crops(50)[0].repeat_interleave(3, 2).repeat_interleave(3, 3)[:, :, :28, :28].contiguous()
    with torch.no_grad():
        feature_BF = backbone.embed(image_BCHW)
        score_BK = nn.functional.normalize(net.head(feature_BF)) @ nn.functional.normalize(net.prototypes.weight).T
    found = model.assign(feature_BF)
    assert model.dim == backbone.dim
    assert torch.equal(found.cluster_N, score_BK.argmax(dim=1))
    torch.testing.assert_close(found.score_N, score_BK.amax(dim=1))
    torch.testing.assert_close(found.probability_N, (score_BK / 0.1).softmax(dim=1).amax(dim=1))


# Health.


def test_scalars_say_how_it_fares() -> None:
    objective, net = made()
    seen: dict[str, Any] = {}
    net.head.register_forward_hook(lambda module, inputs, output: seen.update(z=output.detach()))
    loss = objective.loss(net, batch_of(0), 0, Alone())
    assert loss.scalars.keys() == {"gap", "perplexity", "confidence", "feature_norm"}
    torch.testing.assert_close(loss.scalars["gap"], math.log(10) - loss.total.detach())
    torch.testing.assert_close(loss.scalars["feature_norm"], seen["z"].norm(dim=1).mean())
    assert 9.5 < loss.scalars["perplexity"] <= 10.0001  # Sinkhorn spreads 12 rows over 10 prototypes
    assert 0.1 <= loss.scalars["confidence"] <= 1
    assert not any(value.requires_grad for value in loss.scalars.values())


def test_an_epochs_end_counts_prototypes() -> None:
    objective, net = made(QUEUED)
    used: set[int] = set()
    for step in range(2):
        with torch.no_grad():
            score_GK = net.scores(net(batch_of(step).views).unit_VBD[:2])
        used |= set(score_GK.argmax(dim=2).flatten().tolist())
        made_loss = objective.loss(net, batch_of(step), step, Alone())
        objective.after_step(net, batch_of(step), step, Alone())
    end = objective.on_epoch_end(net, 0, PASSES)
    assert end.clusters == len(used)
    assert made_loss.total.isfinite()
    assert end.surgery is None
    assert not end.settled
    assert end.warnings == ()
    assert objective.state()["health.count_K"].sum() == 0
    assert objective.on_epoch_end(net, 1, PASSES).clusters == 0


def test_a_loss_that_learns_nothing_is_told() -> None:
    objective, net = made()
    with torch.no_grad():
        net.head[3].weight.zero_()  # every embedding is the same
    for epoch in range(3):
        objective.loss(net, batch_of(epoch), epoch, Alone())
        objective.after_step(net, batch_of(epoch), epoch, Alone())
        warnings = objective.on_epoch_end(net, epoch, PASSES).warnings
        assert any("knowing nothing" in sentence for sentence in warnings) == (epoch == 1)


def test_half_precision_reaches_backbone_and_head_only() -> None:
    (objective, net), (again, same) = made(), made()
    expected = again.loss(same, batch_of(0), 0, Alone()).total
    seen: list[torch.dtype] = []
    net.head.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective.loss(net, batch_of(0), 0, Alone())
        assert net.scores(torch.eye(6)).dtype == torch.float32
    loss.total.backward()
    assert seen == [torch.bfloat16]
    assert loss.total.dtype == torch.float32
    assert abs(float(loss.total) - float(expected)) < 0.1
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in net.parameters())
