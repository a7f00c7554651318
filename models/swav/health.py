"""How SwAV fares: what is counted in an epoch, and what a user should be told of it.

Shapes: K prototypes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.swav.config import SwAVConfig

_AT_LEAST = 0.05  # nats below ln K, else nothing has been learned
_SETTLING = 2.0  # epochs after the freeze before anything is expected
_RISE, _RISE_SHARE = 0.1, 0.25  # nats, and part of what had been gained
_FEW = 0.25  # of the prototypes


@dataclass(frozen=True)
class Figures:
    """Of one epoch."""

    loss: float
    used: int  # prototypes that are some embedding's nearest


@dataclass(frozen=True)
class Tally:
    """Sums over the batches of all workers; the same on each of them. Adds."""

    count_K: Tensor  # int64: assigning views whose nearest prototype it is
    loss: Tensor  # float64, times rows
    rows: int

    def __add__(self, other: Tally) -> Tally:
        device = other.count_K.device
        count_K, loss = self.count_K.to(device) + other.count_K, self.loss.to(device) + other.loss
        return Tally(count_K, loss, self.rows + other.rows)

    @property
    def figures(self) -> Figures:
        """The mean loss is nan where there were no rows."""
        return Figures(float(self.loss) / self.rows if self.rows else math.nan, int((self.count_K > 0).sum()))


@dataclass(frozen=True)
class Health:
    """The tally of the epoch under way, and the figures of the one before."""

    tally: Tally
    before: Figures
    epochs: int  # finished

    def counted(self, tally: Tally) -> Health:
        """With another batch."""
        return replace(self, tally=self.tally + tally)

    def closed(self, figures: Figures) -> Health:
        """At the end of an epoch."""
        return Health(_nothing(len(self.tally.count_K)), figures, self.epochs + 1)

    def tensors(self) -> dict[str, Tensor]:
        """For safetensors."""
        return {
            "count_K": self.tally.count_K.cpu(),
            "loss": self.tally.loss.cpu(),
            "whole": torch.tensor([self.tally.rows, self.before.used, self.epochs]),
            "before_loss": torch.tensor(self.before.loss, dtype=torch.float64),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Health:
        """The inverse of `tensors`."""
        rows, used, epochs = tensors["whole"].tolist()
        before = Figures(float(tensors["before_loss"]), used)
        return cls(Tally(tensors["count_K"], tensors["loss"], rows), before, epochs)


def unborn(prototypes: int) -> Health:
    """Before the first step."""
    return Health(_nothing(prototypes), Figures(math.nan, 0), 0)


def doubts(config: SwAVConfig, batch_rows: int, epochs: int) -> tuple[str, ...]:
    """What can be said before the first step, of settings that are resolved."""
    prototypes, queue, start = _known(config.prototypes), _known(config.queue), config.queue_start
    found = []
    if prototypes > batch_rows + queue:
        found.append(
            f"There are {prototypes} prototypes but only {batch_rows + queue} rows (batch + queue) to be spread over "
            f"them, so most codes are noise; set train.objective.prototypes to at most {batch_rows + queue}, or "
            "enlarge train.objective.queue or train.loop.batch_size."
        )
    if queue and start is not None and start >= epochs:
        found.append(
            f"The queue starts after {start:g} epochs, but there are {epochs}; lower train.objective.queue_start, or "
            "set train.objective.queue to 0."
        )
    return tuple(found)


def warnings_of(config: SwAVConfig, epoch: int, before: Figures, now: Figures) -> tuple[str, ...]:
    """Sentences for the end of `epoch` (from 0), of settings that are resolved. A state is told of when it begins."""
    prototypes = _known(config.prototypes)
    settled = epoch + 1 - (config.freeze or 0.0)  # epochs since the prototypes were freed
    new = settled < _SETTLING + 1  # the first epoch that is judged; the one before may have been as bad
    found = []
    if settled >= _SETTLING:
        if _stuck(now, prototypes) and (new or not _stuck(before, prototypes)):
            found.append(_stuck_sentence(config, epoch, now))
        if now.used < _FEW * prototypes and (new or before.used >= _FEW * prototypes):
            found.append(
                f"{now.used} of {prototypes} prototypes were the nearest of any embedding in epoch {epoch + 1}, at "
                f"least {math.ceil(_FEW * prototypes)} are expected; lower train.objective.prototypes, set "
                "train.objective.freeze longer, or lower train.loop.lr."
            )
    start = config.queue_start
    if _known(config.queue) and start is not None and int(start) <= epoch <= int(start) + 1:
        found += _rise_sentence(epoch, before, now, math.log(prototypes))
    return tuple(found)


def _stuck(figures: Figures, prototypes: int) -> bool:
    return figures.loss > math.log(prototypes) - _AT_LEAST


def _stuck_sentence(config: SwAVConfig, epoch: int, now: Figures) -> str:
    largest = math.log(_known(config.prototypes))
    return (
        f"The loss of epoch {epoch + 1} is {now.loss:.3f}, no better than knowing nothing (ln {config.prototypes} = "
        f"{largest:.3f}); below {largest - _AT_LEAST:.3f} is expected {_SETTLING:g} epochs after the freeze. Set "
        f"train.objective.epsilon to .03 (it is {config.epsilon:g}), train.objective.freeze longer (it is "
        f"{config.freeze:g}), train.objective.prototypes lower, train.loop.lr lower; or take fewer or larger crops "
        "(train.views.banks)."
    )


def _rise_sentence(epoch: int, before: Figures, now: Figures, largest: float) -> list[str]:
    allowed = max(_RISE, _RISE_SHARE * (largest - before.loss))
    if not now.loss - before.loss > allowed:  # also where there was no epoch before
        return []
    return [
        f"The loss rose from {before.loss:.3f} to {now.loss:.3f} in epoch {epoch + 1}, where the queue started; a rise "
        f"of at most {allowed:.2f} is expected. Set train.objective.queue_start later, train.objective.queue smaller, "
        "or train.loop.lr lower."
    ]


def _known(value: int | None) -> int:
    assert value is not None  # noqa: S101 - settings are resolved before they come here
    return value


def _nothing(prototypes: int) -> Tally:
    return Tally(torch.zeros(prototypes, dtype=torch.int64), torch.zeros((), dtype=torch.float64), 0)
