"""Training on a GPU: the same loop, the same batches, what a CPU learns."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "pipeline" / "train"))

from swav_run import LOOP, Double, Held

from models.swav.objective import SwAVObjective
from pipeline.train.trainer import run_worker
from pipeline.train.world import Alone

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
GPU = torch.device("cuda")


def test_swav_learns_there_what_it_learns_on_a_cpu() -> None:
    here, there = (run_worker(Double(), Held(), LOOP, Alone(device)) for device in (torch.device("cpu"), GPU))
    for name, value in here.net.state_dict().items():
        torch.testing.assert_close(there.net.state_dict()[name].cpu(), value, rtol=0, atol=1e-6, msg=name)
    for name, value in here.objective.state().items():
        torch.testing.assert_close(
            there.objective.state()[name].cpu(), value, rtol=0, atol=1e-6, equal_nan=True, msg=name
        )


def test_bf16_trains_there_and_gives_a_backbone_on_the_cpu() -> None:
    config = LOOP.model_copy(update={"precision": "bf16"})
    run = run_worker(Single(), Held(), config, Alone(GPU))
    assert run.skipped == 0
    backbone = run.objective.backbone(run.net)
    assert {value.device.type for value in backbone.net.state_dict().values()} == {"cpu"}
    assert run.objective.clusterer(run.net).assign(torch.randn(5, backbone.dim)).cluster_N.shape == (5,)


class Single(Double):
    """In float32, as users train."""

    build = SwAVObjective.build
