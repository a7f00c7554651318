"""SwAV as an Objective: swapped prediction of balanced codes between views.

Source: Caron, Misra, Mairal, Goyal, Bojanowski and Joulin (2020), Unsupervised learning of visual features by
contrasting cluster assignments.
Shapes: B rows of a part, V views, A assigning views (the first bank's), D dimensions, K prototypes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from models.backbone import Backbone, assemble
from models.backbones import BackboneConfig, load_backbone
from models.batch_norm import SynchronisedBatchNorm
from models.errors import ShoalError
from models.objective import Batch, EpochEnd, ImageSummary, Loss, Passes, Plan, Reduce
from models.preprocessing import Preprocessing
from models.swav.config import PrototypesConfig, SwAVConfig
from models.swav.health import Health, Tally, unborn, warnings_of
from models.swav.network import SwAVNet, make_head, swapped_loss
from models.swav.prototypes import Prototypes
from models.swav.queue import Queue, Waiting, empty_queue, push_all
from models.swav.sinkhorn import sinkhorn
from models.views_config import ViewsConfig


class SwAVObjective:
    """Codes, the loss, the queue, and what is told of them.

    Beside the network a step costs O(B V K D) for scores and O((B + queue) K) for codes, and exchanges
    `iterations` + 2 K-vectors per assigning view and, while there is a queue, the batch's embeddings. Picklable.
    """

    def __init__(self, config: SwAVConfig, backbone: BackboneConfig, views: ViewsConfig) -> None:
        """Raises ShoalError when there is only one view, which nothing can be predicted from."""
        if views.views < 2:
            raise ShoalError(
                "SwAV compares views of an image, but train.views.banks has 1; give it at least 2, best 2 large and "
                "some small ones."
            )
        self.config, self._backbone, self._views = config, backbone, views
        self._assigning = views.banks[0].count
        self._start: tuple[str, Preprocessing] | None = None  # what the backbone began as
        self._plan = Plan(0, 0, 0)
        self._rows = 0
        self._queue = empty_queue(0, 0, 0)
        self._health = unborn(0)
        self._staged: list[tuple[Tally, Waiting]] = []  # of the losses of one step
        self._staged_step = -1

    @property
    def views(self) -> ViewsConfig:
        """What `loss` takes."""
        return self._views

    @property
    def pixels(self) -> Preprocessing:
        """How the backbone takes images; loads it, unless `build` or this was called before."""
        if self._start is None:
            loaded = load_backbone(self._backbone)
            self._start = loaded.weights, loaded.pixels
        return self._start[1]

    def build(self, data: ImageSummary, plan: Plan) -> SwAVNet:
        """The network before the first step; settles what is null in the settings. Raises what load_backbone raises."""
        self.config = self.config.resolved(data.rows, plan.batch_rows, plan.epochs)
        # load_backbone seeds its own draws: by both, so that train.loop.seed changes them, too.
        seeded = self._backbone.model_copy(update={"seed": self._backbone.seed + data.seed, "compile": False})
        loaded = load_backbone(seeded)
        self._start, self._plan, self._rows = (loaded.weights, loaded.pixels), plan, data.rows
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(data.seed)
            head = make_head(loaded.dim, self.config.hidden, self.config.dim)
            prototypes = nn.Linear(self.config.dim, _known(self.config.prototypes), bias=False)
        net = SwAVNet(loaded.net.requires_grad_(True), head, prototypes, loaded.pixels).train()
        net.normalise_prototypes()
        self._queue = empty_queue(self._assigning, _known(self.config.queue), self.config.dim)
        self._health = unborn(prototypes.out_features)
        return net

    def groups(self, net: nn.Module) -> list[dict[str, Any]]:
        """All alike: the authors decay biases and norms, too, and adapt their rates."""
        return [{"params": list(net.parameters())}]

    def loss(self, net: nn.Module, batch: Batch, step: int, reduce: Reduce) -> Loss:
        """The swapped loss; codes have no gradient. All but backbone and head is in float32 under autocast, too.

        Scalars: `gap` (ln K - loss), `perplexity` of the batch's mean code (K where no queue takes part in the
        balance), `confidence` (mean largest entry of a code; 1 / K when nothing tells rows apart), `feature_norm`
        (before normalisation), `queue` (how much is filled).
        """
        net = cast(SwAVNet, net)
        if step != self._staged_step:  # what is still there was of a step that was skipped
            self._staged, self._staged_step = [], step
        net.normalise_prototypes()
        with _norms(batch, reduce):
            seen = net(batch.views)
        with torch.autocast(seen.unit_VBD.device.type, enabled=False):
            score_VBK = net.scores(seen.unit_VBD)
            unit_ABD, score_ABK = (each[: self._assigning].detach() for each in (seen.unit_VBD, score_VBK))
            code_ABK = self._codes(net, score_ABK, batch, reduce)
            total = swapped_loss(score_VBK, code_ABK, self.config.temperature)
            tally, mean_K = _counted(score_ABK, code_ABK, total.detach(), batch, reduce)
        self._staged.append((tally, Waiting(unit_ABD, batch.begin, batch.total)))
        scalars = {
            "gap": math.log(score_VBK.shape[2]) - total.detach(),
            "perplexity": torch.special.entr(mean_K).sum().exp(),
            "confidence": code_ABK.amax(dim=2).mean(),
            "feature_norm": seen.norm,
        }
        if self.config.queue:
            scalars["queue"] = torch.tensor(self._queue.share)
        return Loss(total, scalars)

    def after_backward(self, net: nn.Module, step: int) -> None:
        """While prototypes are frozen they have no gradient at all: a zero would let momentum and decay move them."""
        if step < (self.config.freeze or 0.0) * self._plan.steps:
            cast(SwAVNet, net).prototypes.weight.grad = None

    def after_step(self, net: nn.Module, batch: Batch, step: int, reduce: Reduce) -> None:
        """Counts the step's batches; from `queue_start` on they enter the queue."""
        for tally, _ in self._staged:
            self._health = self._health.counted(tally)
        if self.config.queue and step >= (self.config.queue_start or 0.0) * self._plan.steps:
            self._queue = push_all(self._queue, [waiting for _, waiting in self._staged], reduce)
        self._staged = []

    def on_start(self, net: nn.Module, passes: Passes) -> None:
        """Nothing: `build` has drawn the prototypes."""

    def on_epoch_end(self, net: nn.Module, epoch: int, passes: Passes) -> EpochEnd:
        """How many prototypes were used, and what a user should hear."""
        before, now = self._health.before, self._health.tally.figures
        warnings = warnings_of(self.config, epoch, before, now)
        self._health, self._staged = self._health.closed(now), []
        return EpochEnd(clusters=now.used, warnings=warnings)

    def state(self) -> dict[str, Tensor]:
        """The queue, and the counts of the epoch under way."""
        parts = {"queue": self._queue.tensors(), "health": self._health.tensors()}
        return {f"{part}.{name}": value for part, tensors in parts.items() for name, value in tensors.items()}

    def load(self, state: Mapping[str, Tensor], net: nn.Module) -> None:
        """Continue from `state()`; `net` has its shapes from `build`."""
        self._queue = Queue.from_tensors(_part("queue", state))
        self._health = Health.from_tensors(_part("health", state))
        self._staged, self._staged_step = [], -1

    def clusterer(self, net: nn.Module) -> Prototypes:
        """Prototypes behind the projection head: takes features of `backbone(net)`."""
        net = cast(SwAVNet, net)
        head = {name: value.detach().cpu().clone() for name, value in net.head.state_dict().items()}
        config = PrototypesConfig(temperature=self.config.temperature)
        weight_KD = net.prototypes.weight.detach().cpu().double()
        return Prototypes(config, head, nn.functional.normalize(weight_KD))

    def backbone(self, net: nn.Module) -> Backbone:
        """A copy of the backbone on the CPU, in evaluation mode."""
        plain = copy.deepcopy(cast(SwAVNet, net).backbone).cpu()
        begun = "" if self._backbone.weights == "random" or self._start is None else f"; begun from {self._start[0]}"
        weights = f"SwAV by shoal ({self._health.epochs} epochs, {self._rows:,} images{begun})"
        return assemble(plain, weights, self.pixels, self._backbone, "cpu")

    def _codes(self, net: SwAVNet, score_ABK: Tensor, batch: Batch, reduce: Reduce) -> Tensor:
        """Codes (A, B, K) of the batch's rows, balanced together with the queue once it is full."""
        rows = score_ABK.shape[1]
        if self.config.queue and self._queue.share == 1:
            with torch.no_grad():
                past_AmK = net.scores(self._queue.part(batch).to(score_ABK))
            score_ABK = torch.cat([past_AmK, score_ABK], dim=1)
        return sinkhorn(score_ABK, self.config.epsilon, self.config.iterations, reduce)[:, -rows:]


def _norms(batch: Batch, reduce: Reduce) -> AbstractContextManager[Any]:
    """Batch norms see the whole batch; where this part is all of it they do so by themselves."""
    return nullcontext() if len(batch.row_B) == batch.total else SynchronisedBatchNorm(reduce)


@torch.no_grad()
def _counted(score_ABK: Tensor, code_ABK: Tensor, loss: Tensor, batch: Batch, reduce: Reduce) -> tuple[Tally, Tensor]:
    """What the whole batch adds to the epoch's tally, and its mean code (K,)."""
    views, rows, prototypes = code_ABK.shape
    nearest_G = score_ABK.argmax(dim=2).flatten()
    ones_G = torch.ones_like(nearest_G, dtype=code_ABK.dtype)
    count_K = code_ABK.new_zeros(prototypes).index_add_(0, nearest_G, ones_G)  # bincount would wait for a GPU
    own = (count_K, code_ABK.sum(dim=(0, 1)), rows * loss.reshape(1))
    count_K, code_K, loss_1 = reduce.sum(*own)
    return Tally(count_K.long(), loss_1[0].double(), batch.total), code_K / (views * batch.total)


def _part(name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}


def _known(value: int | None) -> int:
    assert value is not None  # noqa: S101 - `resolved` leaves no null
    return value
