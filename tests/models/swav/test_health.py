"""Sentences come when they should, once, with the number seen, the number expected, and what to set."""

from __future__ import annotations

import math

import pytest
import torch

from models.swav.config import SwAVConfig
from models.swav.health import Figures, Health, Tally, doubts, unborn, warnings_of

LN_K = math.log(300)
CONFIG = SwAVConfig(prototypes=300, queue=512, queue_start=5.0, freeze=1.0)
GOOD = Figures(LN_K - 1.0, 250)
STUCK = Figures(LN_K - 0.04, 250)
FEW = Figures(LN_K - 1.0, 74)


def heard(epoch: int, before: Figures, now: Figures, config: SwAVConfig = CONFIG) -> str:
    return " ".join(warnings_of(config, epoch, before, now))


@pytest.mark.parametrize("epoch", range(20))
def test_healthy_epochs_are_passed_over(epoch: int) -> None:
    before = Figures(math.nan, 0) if epoch == 0 else GOOD
    assert heard(epoch, before, GOOD) == ""
    assert heard(epoch, before, Figures(LN_K - 1.2, 300)) == ""


def test_a_loss_at_ln_k_is_told_two_epochs_after_the_freeze_and_once() -> None:
    assert [epoch for epoch in range(10) if heard(epoch, STUCK, STUCK)] == [2]
    longer = CONFIG.model_copy(update={"freeze": 2.5})
    assert [epoch for epoch in range(10) if heard(epoch, STUCK, STUCK, longer)] == [4]
    sentence = heard(2, STUCK, STUCK)
    for part in ("5.664", "5.704", "5.654", "train.objective.epsilon", "train.objective.freeze", "train.loop.lr"):
        assert part in sentence


def test_a_loss_that_returns_to_ln_k_is_told_when_it_does() -> None:
    assert "no better than knowing nothing" in heard(8, GOOD, STUCK)
    assert heard(9, STUCK, STUCK) == ""
    assert heard(8, GOOD, Figures(LN_K - 0.06, 250)) == ""


def test_few_prototypes_are_told_when_they_become_few() -> None:
    assert [epoch for epoch in range(10) if heard(epoch, FEW, FEW)] == [2]
    assert heard(8, GOOD, FEW).startswith("74 of 300 prototypes")
    assert "at least 75 are expected" in heard(8, GOOD, FEW)
    assert heard(8, GOOD, Figures(LN_K - 1.0, 75)) == ""


def test_a_rise_is_told_where_the_queue_starts_and_nowhere_else() -> None:
    risen = Figures(LN_K - 0.7, 250)  # a quarter of what was gained would be .25
    assert [epoch for epoch in range(10) if heard(epoch, GOOD, risen)] == [5, 6]
    sentence = heard(5, GOOD, risen)
    for part in ("4.704 to 5.004", "at most 0.25", "train.objective.queue_start", "train.objective.queue "):
        assert part in sentence
    assert heard(5, GOOD, Figures(LN_K - 0.8, 250)) == ""
    assert heard(5, GOOD, risen, CONFIG.model_copy(update={"queue": 0})) == ""
    early = CONFIG.model_copy(update={"queue_start": 0.0})
    assert heard(0, Figures(math.nan, 0), risen, early) == ""


def test_prototypes_beyond_batch_and_queue_are_told_before_anything_else() -> None:
    assert doubts(CONFIG, 256, 10) == ()
    assert doubts(CONFIG.model_copy(update={"prototypes": 768}), 256, 10) == ()
    (sentence,) = doubts(CONFIG.model_copy(update={"prototypes": 769}), 256, 10)
    for part in ("769", "768", "train.objective.prototypes", "train.objective.queue", "train.loop.batch_size"):
        assert part in sentence


def test_a_queue_that_never_starts_is_told() -> None:
    (sentence,) = doubts(CONFIG, 256, 5)
    assert "starts after 5 epochs, but there are 5" in sentence
    assert doubts(CONFIG.model_copy(update={"queue": 0}), 300, 5) == ()


def test_tallies_add_and_an_epoch_begins_from_nothing() -> None:
    def tally(count: list[int], loss: float, rows: int) -> Tally:
        return Tally(torch.tensor(count), torch.tensor(loss * rows, dtype=torch.float64), rows)

    health = unborn(3).counted(tally([4, 0, 2], 2.0, 3)).counted(tally([1, 0, 1], 5.0, 1))
    assert health.tally.count_K.tolist() == [5, 0, 3]
    assert health.tally.figures == Figures(2.75, 2)
    again = Health.from_tensors(health.tensors())
    assert again.tensors().keys() == health.tensors().keys()
    assert all(torch.equal(again.tensors()[name], value) for name, value in health.tensors().items() if value.ndim)
    closed = again.closed(again.tally.figures)
    assert (closed.before, closed.epochs, closed.tally.rows) == (Figures(2.75, 2), 1, 0)
    assert closed.tally.count_K.tolist() == [0, 0, 0]
    assert math.isnan(closed.tally.figures.loss)
