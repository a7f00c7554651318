"""What is null follows from images, batch and epochs."""

from __future__ import annotations

import pytest

from models.swav.config import SwAVConfig


@pytest.mark.parametrize(
    ("rows", "batch", "epochs", "expected"),
    [
        (1_281_167, 4096, 800, (3000, 0, 15.0)),  # the paper's large batches
        (1_281_167, 256, 200, (3000, 3840, 15.0)),  # and its small ones
        (20_000, 256, 10, (375, 3840, 1.5)),
        (20_000, 512, 10, (375, 0, 1.5)),  # the batch alone has more rows than prototypes
        (1_797, 64, 100, (112, 960, 15.0)),
        (1_797, 256, 100, (112, 0, 15.0)),
        (500, 40, 10, (59, 480, 1.5)),  # 12 batches: never more than there are images
        (40, 4, 10, (17, 40, 1.5)),
        (1, 1, 1, (2, 1, 0.15)),
    ],
)
def test_nulls_are_derived(rows: int, batch: int, epochs: int, expected: tuple[int, int, float]) -> None:
    found = SwAVConfig().resolved(rows, batch, epochs)
    assert (found.prototypes, found.queue, found.queue_start) == expected
    assert found.freeze == 1.0
    assert found.queue is not None
    assert found.queue % batch == 0


def test_prototypes_are_at_most_batch_and_queue() -> None:
    assert SwAVConfig(queue=0).resolved(1_000_000, 128, 100).prototypes == 128
    assert SwAVConfig(queue=256).resolved(1_000_000, 128, 100).prototypes == 384


def test_what_is_given_stays_but_for_queues_that_are_no_whole_batches() -> None:
    given = SwAVConfig(prototypes=5000, queue=1000, queue_start=0.0, freeze=0.0)
    assert given.resolved(1000, 256, 5) == given.model_copy(update={"queue": 768})


def test_a_queue_is_derived_from_the_prototypes_that_are_given() -> None:
    assert SwAVConfig(prototypes=50).resolved(1_000_000, 64, 100).queue == 0
    assert SwAVConfig(prototypes=500).resolved(1_000_000, 64, 100).queue == 960


def test_settling_twice_changes_nothing() -> None:
    once = SwAVConfig().resolved(20_000, 256, 10)
    assert once.resolved(20_000, 256, 10) == once
