"""Benchmarks of SwAV: their programs on a few images, that both sides do the same, and bars by hand."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.bench import swav_data, swav_one, swav_step
from jobs.bench.images import LABELS_FILE, PIXELS_FILE, Size, fashion
from jobs.bench.registry import BENCHMARKS
from jobs.bench.swav_one import Cached, Clock, Timed, Work, sourced, timed
from jobs.bench.swav_step import Epochs
from models.objective import Plan
from pipeline.progress import silent
from pipeline.train.world import Alone

IMAGES = 40


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One with a Fashion-MNIST of 40 random images."""
    ink = np.random.default_rng(0).integers(0, 256, (IMAGES, 28, 28), dtype=np.uint8)
    for name, code, array in ((PIXELS_FILE, 3, ink), (LABELS_FILE, 1, np.zeros(IMAGES, np.uint8))):
        header = np.array([0x800 + code, *array.shape], ">i4").tobytes()
        (tmp_path / name).write_bytes(gzip.compress(header + array.tobytes()))
    return tmp_path


@pytest.fixture
def work(folder: Path) -> Work:
    """The shipped recipe, small."""
    whole = swav_step.recipe(fashion(folder, Size(shards=2, images=IMAGES // 2)), folder)
    small = whole.train.objective.model_copy(update={"prototypes": 6, "hidden": 16, "dim": 8})
    images = whole.train.images.model_copy(update={"lanes": 2})
    train = whole.train.model_copy(update={"objective": small, "images": images})
    return whole.model_copy(update={"train": train}).trained(batch_size=10, epochs=3, cpus_per_worker=1)


@pytest.mark.parametrize("cached", [True, False])
def test_shoal_trains_for_all_epochs_in_memory_and_as_it_reads(work: Work, cached: bool) -> None:
    measured = timed(work, cached)
    assert measured.images == IMAGES
    assert len(measured.rates) == 2
    assert min(measured.first, *measured.rates) > 0


def test_batches_in_memory_are_those_that_are_read(work: Work) -> None:
    _, source = sourced(work)
    loop = work.train.loop
    cached = Cached.of(source, loop)
    assert (cached.rows, cached.steps) == (IMAGES, 4)
    read = source.open(loop, loop.batch_rows, Alone(), None).draw(0, 1)
    for ours, theirs in zip(cached.open().draw(7, 1), read, strict=True):
        assert torch.equal(ours.row_B, theirs.row_B)
        assert all(torch.equal(a, b) for a, b in zip(ours.views, theirs.views, strict=True))


def test_a_program_prints_its_measurement(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    swav_one.main("cached", work.model_dump_json())
    assert Timed.model_validate_json(capsys.readouterr().out.splitlines()[-1]).images == IMAGES


def test_lightly_trains_as_long_and_prints_likewise(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lightly", reason="the extra `bench`")
    from jobs.bench.peers import lightly_swav  # noqa: PLC0415

    lightly_swav.main("channels_last", swav_step.comparable(work, IMAGES, epochs=3).model_dump_json())
    measured = Timed.model_validate_json(capsys.readouterr().out.splitlines()[-1])
    assert (measured.images, len(measured.rates)) == (IMAGES, 2)


def test_both_sides_have_the_same_loss_and_gradients(work: Work) -> None:
    """With equal weights, and batch norms that know nothing of the batch: lightly's take each view for itself."""
    pytest.importorskip("lightly", reason="the extra `bench`")
    from lightly.loss import SwaVLoss  # noqa: PLC0415

    from jobs.bench.peers.lightly_swav import SwaV  # noqa: PLC0415
    from models.backbones import load_backbone  # noqa: PLC0415

    work = swav_step.comparable(work, IMAGES, epochs=1)
    objective, source = sourced(work)
    cached = Cached.of(source, work.train.loop)
    net = objective.build(cached.data, Plan(10, 4, 1))
    net.head[0].bias.data.zero_()  # lightly's has none before its norm
    theirs = SwaV(load_backbone(work.backbone), work)
    theirs.backbone.load_state_dict(net.backbone.state_dict())
    ours_head = [value for name, value in net.head.state_dict().items() if name != "0.bias"]
    names = theirs.projection_head.state_dict().keys()
    theirs.projection_head.load_state_dict(dict(zip(names, ours_head, strict=True)))
    theirs.prototypes.heads[0].weight.data.copy_(net.prototypes.weight)
    theirs.prototypes.heads[0].bias.data.zero_()  # shoal's has none, and the paper's neither

    batch = cached.batches[0]
    loss = objective.loss(net.eval(), batch, 0, Alone()).total
    scores = [theirs.eval()(net.pixels.normalise(view)) for view in batch.views]
    expected = SwaVLoss()(scores[:2], scores[2:])
    torch.testing.assert_close(loss, expected.squeeze(), rtol=1e-5, atol=1e-6)

    loss.backward()
    expected.backward()
    gradients = zip(net.backbone.parameters(), theirs.backbone.parameters(), strict=True)
    for ours, other in [*((a.grad, b.grad) for a, b in gradients), (net.prototypes.weight.grad, _weight_grad(theirs))]:
        assert ours is not None and other is not None and ours.abs().max() > 0
        torch.testing.assert_close(ours, other, rtol=1e-3, atol=1e-5)


def _weight_grad(model: torch.nn.Module) -> torch.Tensor | None:
    gradient: torch.Tensor | None = model.get_parameter("prototypes.heads.0.weight").grad
    return gradient


def test_the_first_epoch_is_told_apart() -> None:
    measured = Clock(100, [10.0, 20.0, 24.0, 29.0]).timed
    assert (measured.first, measured.rates, measured.ready) == (10.0, (25.0, 20.0), 10.0)


def rates(of: dict[str, float]) -> Callable[..., Epochs]:
    """A side that is as fast as the first entry whose name is in its arguments; half as fast in its first epoch."""

    def side(*arguments: object) -> Epochs:
        told = [
            f"{each.train.loop.precision} keeps {each.train.images.cache_bytes}" if isinstance(each, Work) else each
            for each in arguments
        ]
        rate = next(rate for name, rate in of.items() if name in " ".join(map(str, told)))
        return Epochs(IMAGES, rate, 1.0, 2.0, rate / 2)

    return side


def test_bars_of_the_step_by_hand(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightly counts in the faster of its two layouts."""
    pytest.importorskip("lightly", reason="the extra `bench`")
    ours = {"fp32": 110.0, "bf16": 150.0}
    theirs = {
        "contiguous fp32": 90.0,
        "channels_last fp32": 100.0,
        "contiguous bf16": 150.0,
        "channels_last bf16": 80.0,
    }
    monkeypatch.setattr(swav_step, "shoal", rates(ours))
    monkeypatch.setattr(swav_step, "lightly", rates(theirs))
    result = swav_step.run(folder, silent, size=Size(2, IMAGES // 2), rounds=2)
    assert [(bar.name, bar.holds) for bar in result.bars] == [
        ("times lightly's rate, fp32", True),
        ("times lightly's rate, bf16", False),
        ("bf16, times shoal's rate in fp32", False),
    ]
    assert [bar.value for bar in result.bars] == pytest.approx([1.1, 1.0, 150 / 110])
    assert len(result.figures.tables["runs"]) == 12


def test_the_bar_of_the_data_by_hand(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swav_data, "shoal", rates({"cached": 200.0, "keeps 0": 140.0, "fed": 170.0}))
    result = swav_data.run(folder, silent, size=Size(2, IMAGES // 2))
    assert [(bar.value, bar.holds) for bar in result.bars] == [(0.85, False)]
    assert result.figures.values["first_epoch, times that"] == 0.425
    assert result.figures.values["nothing_kept, times that"] == 0.7


def test_benchmarks_of_swav_are_listed() -> None:
    assert {"swav-step", "swav-data"} <= set(BENCHMARKS)
