"""Contract B: what is trained by gradient. The trainer (pipeline/train) owns everything that is not in here.

The network is in training mode during an epoch's batches and in evaluation mode otherwise. torch's generators are
seeded before `build`, `on_start`, each step (differently on each worker) and each `on_epoch_end`; randomness that must
not depend on the number of workers is keyed by row. Rows arrive on the network's device, summaries on the CPU.

Shapes: N rows over all workers, B rows of this worker's part of a batch, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from torch import Tensor, nn

from models.clusterer import Clusterer, Move, Stats

if TYPE_CHECKING:  # contract A's algorithms need no backbone
    from models.backbone import Backbone
    from models.preprocessing import Preprocessing
    from models.views_config import ViewsConfig

S = TypeVar("S", bound=Stats)


class Reduce(Protocol):
    """Joins tensors over workers; with one worker it returns them. Every worker calls it alike, in the same order."""

    def sum(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The sums, in the same order; float64 stays float64."""
        ...

    def max(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The element-wise maxima, in the same order."""
        ...


class Passes(Protocol):
    """Contract A over all current rows of all workers, between epochs."""

    @property
    def data(self) -> Any:
        """The summary of all rows that `build` was given; the same on every worker."""
        ...

    def total(self, expect: Callable[[Tensor, Tensor], S]) -> S:
        """`expect(x_ND, row_N)` on every block of rows without gradient, summed over blocks and workers."""
        ...


@dataclass(frozen=True)
class Plan:
    """How it will be trained, as far as an objective may know."""

    batch_rows: int  # rows that one loss sees, over all workers
    steps: int  # of the optimizer, in an epoch
    epochs: int


@dataclass(frozen=True)
class ImageSummary:
    """What an objective may know of images before its first step."""

    rows: int
    seed: int


@dataclass(frozen=True)
class Batch:
    """This worker's part of one batch: rows `begin` to `begin + B` of `total`, in an order that knows no workers.

    So what belongs to a whole batch can be cut or put together by place, without knowing of workers either.
    """

    views: tuple[Tensor, ...]  # (B, ...) each: of embeddings one (B, D), of images uint8 crops (B, C, S, S)
    row_B: Tensor  # int64, stable row hashes
    begin: int
    total: int

    @property
    def x_BD(self) -> Tensor:
        """Of embeddings."""
        (x_BD,) = self.views
        return x_BD

    @property
    def share(self) -> float:
        """The part of the batch that this is."""
        return len(self.row_B) / self.total


def whole_batch(views: tuple[Tensor, ...], row_B: Tensor) -> Batch:
    """The batch of an only worker."""
    return Batch(views, row_B, 0, len(row_B))


@dataclass(frozen=True)
class Loss:
    """`total` is a mean over the rows of the batch part (the trainer weights parts by rows); `scalars` are logged."""

    total: Tensor
    scalars: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Surgery:
    """Which parameters were replaced by others of another length, and where their optimizer state comes from.

    Parameter name -> for each row (first dimension) of the new parameter the row of the old one whose optimizer state
    it continues, or -1 for fresh state (zeros). A parameter all of whose rows are fresh starts as if the optimizer had
    never stepped. A parameter that is not named keeps its shape and its state.
    """

    source: Mapping[str, Tensor]


@dataclass(frozen=True)
class EpochEnd:
    """What an objective decides when an epoch is over.

    `objective` is a figure of merit, larger is better; where it is nan, minus the epoch's mean loss stands for it.
    """

    surgery: Surgery | None = None
    moves: tuple[Move, ...] = ()
    clusters: int = 0
    objective: float = float("nan")
    settled: bool = False
    warnings: tuple[str, ...] = ()  # sentences for whoever watches


@runtime_checkable
class Objective(Protocol):
    """A loss with memory. Everything it remembers is in `state`, and equal on every worker."""

    def build(self, data: Any, plan: Plan) -> nn.Module:
        """The network before the first step, seeded by `data.seed`; `data` is a DataSummary or an ImageSummary."""
        ...

    def groups(self, net: nn.Module) -> list[dict[str, Any]]:
        """Parameter groups for the optimizer: `params`, and `lr` where it is not the trainer's."""
        ...

    def loss(self, net: nn.Module, batch: Batch, step: int, reduce: Reduce) -> Loss:
        """Loss of one batch part, which is never empty. A parameter that it does not use gets no gradient.

        `step` counts the optimizer's steps before, made or skipped; gradients that accumulate have the same one.
        """
        ...

    def after_backward(self, net: nn.Module, step: int) -> None:
        """Last word on gradients, already averaged over the rows of the whole batch."""
        ...

    def after_step(self, net: nn.Module, batch: Batch, step: int, reduce: Reduce) -> None:
        """What follows every optimizer step; not one that was skipped because loss or gradient was not finite."""
        ...

    def on_start(self, net: nn.Module, passes: Passes) -> None:
        """Before the first epoch of a fresh run (not of a resumed one)."""
        ...

    def on_epoch_end(self, net: nn.Module, epoch: int, passes: Passes) -> EpochEnd:
        """Between epochs: may replace parameters of `net` in place, and says so; the same on every worker."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Everything remembered beside the network, for safetensors; independent of the number of workers."""
        ...

    def load(self, state: Mapping[str, Tensor], net: nn.Module) -> None:
        """Continue from `state()`; gives `net`, freshly built, the shapes that it had then. Its values come after."""
        ...

    def clusterer(self, net: nn.Module) -> Clusterer:
        """What labels rows from now on."""
        ...


@runtime_checkable
class ImageObjective(Objective, Protocol):
    """One that learns a backbone from views of images."""

    @property
    def views(self) -> ViewsConfig:
        """What `loss` takes."""
        ...

    @property
    def pixels(self) -> Preprocessing:
        """How the backbone takes images: channels above all."""
        ...

    def backbone(self, net: nn.Module) -> Backbone:
        """What embeds images from now on."""
        ...
