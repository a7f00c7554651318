"""What a fit tells while it goes on is what its story says in the end."""

from __future__ import annotations

from collections import Counter as Tally
from typing import Literal

import numpy as np
import pytest
import torch

from models.clusterer import Move
from models.deepdpm.config import DeepDPMConfig
from models.dpm.config import DPMConfig
from models.kmeans import KMeansConfig
from models.registry import ClustererConfig
from pipeline.cluster.cluster import fit_array
from pipeline.cluster.config import ClusterConfig
from pipeline.cluster.metrics import CLUSTERS, MOVES, OBJECTIVE, PASSES, FitMeter, moves_of
from pipeline.metrics import Counter, Gauge
from pipeline.train.config import TrainConfig
from pipeline.train.result import Fit, Pass

Told = list[tuple[Counter | Gauge, float, dict[str, str]]]


def listen(patch: pytest.MonkeyPatch) -> Told:
    """All that is told from now on, in order: as if a session were up."""
    heard: Told = []
    patch.setattr(Gauge, "set", lambda self, value, **labels: heard.append((self, value, labels)))
    patch.setattr(Counter, "add", lambda self, value, **labels: heard.append((self, value, labels)))
    return heard


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    return listen(monkeypatch)


def move(kind: Literal["split", "merge", "birth", "death"], accepted: bool) -> Move:
    return Move(kind, (0, 1), 0.5, accepted, "")


def test_moves_of_the_last_pass_are_counted_by_kind_and_outcome() -> None:
    moves = [(0, move("birth", True)), (0, move("split", True)), (2, move("split", True)), (2, move("merge", False))]
    moves += [(2, move("split", True))]
    assert moves_of(moves, 2) == {("split", "accepted"): 2, ("merge", "refused"): 1}
    assert moves_of(moves, 3) == {}
    assert moves_of(moves[:2], 0) == {("birth", "accepted"): 1, ("split", "accepted"): 1}


def test_a_pass_by_hand(told: Told) -> None:
    meter = FitMeter("dpm")
    meter.passed([Pass(-9.0, 1), Pass(-7.5, 2)], [(0, move("birth", True)), (1, move("split", True))])
    own = {"algorithm": "dpm"}
    assert told == [
        (PASSES, 2, own),
        (CLUSTERS, 2, own),
        (OBJECTIVE, -7.5, own),
        (MOVES, 1, {**own, "kind": "split", "outcome": "accepted"}),
    ]


ALGORITHMS = [
    (KMeansConfig(clusters=3), TrainConfig()),
    (DPMConfig(), TrainConfig()),
    (DeepDPMConfig(), TrainConfig(epochs=3, batch_size=192)),
]


@pytest.mark.parametrize(("algorithm", "train"), ALGORITHMS, ids=lambda each: getattr(each, "kind", ""))
def test_every_pass_and_every_move_is_told_once(algorithm: ClustererConfig, train: TrainConfig, told: Told) -> None:
    fit = fitted(algorithm, train)
    own = [(metric, value, labels) for metric, value, labels in told if labels.get("algorithm") == algorithm.kind]
    assert [value for metric, value, _ in own if metric is PASSES] == list(range(1, len(fit.history) + 1))
    assert [value for metric, value, _ in own if metric is CLUSTERS] == [each.clusters for each in fit.history]
    assert [value for metric, value, _ in own if metric is OBJECTIVE] == [each.objective for each in fit.history]
    counted: Tally[tuple[str, str]] = Tally()
    for metric, value, labels in own:
        if metric is MOVES:
            counted[labels["kind"], labels["outcome"]] += int(value)
    assert counted == Tally((each.kind, "accepted" if each.accepted else "refused") for _, each in fit.moves)


def fitted(algorithm: ClustererConfig, train: TrainConfig) -> Fit:
    noise_ND = torch.randn(192, 2, generator=torch.Generator().manual_seed(0)).numpy()
    x_ND = noise_ND + 20 * np.eye(3, 2, dtype=np.float32)[np.arange(192) % 3]
    return fit_array(x_ND, ClusterConfig(algorithm=algorithm, train=train))[1]


def test_a_fit_comes_to_the_same_whoever_listens() -> None:
    unheard = fitted(*ALGORITHMS[1])
    with pytest.MonkeyPatch.context() as patch:
        told = listen(patch)
        heard = fitted(*ALGORITHMS[1])
    assert told
    assert (heard.history, heard.moves) == (unheard.history, unheard.moves)
    theirs = unheard.model.tensors()
    assert all(torch.equal(value, theirs[name]) for name, value in heard.model.tensors().items())
