"""Benchmark `swav-step`: a step of shoal's SwAV against one of lightly's, with the same network, crops and batch.

Network, crops, batch and threads are those of the config `swav_fashion_cpu`; prototypes learn from the first step and
there is no queue, as in lightly's documentation, and both sides take plain SGD. Shoal's side is the whole loop of
`shoal train` but for reading and checkpoints; as in the authors' code, crops of one size pass the network together.
Lightly's side is the loop of its documentation, where each view passes by itself (so do its batch norms); it runs as it
stands there, and again with all tensors in channels-last order, of which the documentation says nothing: the faster of
both counts. Bars: at least 1.05 times lightly's rate, in fp32 and in bf16; bf16 at least 1.5 times shoal's own fp32.
Sides take turns, and of each the best epoch counts, since other work on the machine only ever slows a side. Needs 2
free cores, and takes 4 minutes on them.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from jobs.bench.bars import Bar, Result, judged
from jobs.bench.images import Size, fashion, folder_for
from jobs.bench.speeds import Speed, best, outputs, table, take_turns
from jobs.bench.swav_one import Timed, Work
from jobs.config import resolve
from models.errors import ShoalError
from pipeline.progress import Progress

CONFIG = Path("swav_fashion_cpu")
SIZE = Size(shards=2, images=1280)  # 20 steps of 128
DTYPES = ("fp32", "bf16")
LAYOUTS = ("contiguous", "channels_last")


@dataclass(frozen=True)
class Epochs(Speed):
    """The rate is that of the best epoch but the first, in which libraries warm up (and images are decoded)."""

    first_epoch: float  # images per second


def run(data: Path | None, on_progress: Progress, size: Size = SIZE, rounds: int = 3, epochs: int = 4) -> Result:
    """`data`: a folder where images are made and kept. Raises ShoalError without lightly, or where a process fails."""
    if find_spec("lightly") is None:
        raise ShoalError("There is no lightly here to compare with; install it by `pip install shoal[bench]`.")
    with folder_for(data) as folder:
        work = comparable(recipe(fashion(folder, size), folder), size.total, epochs)
        sides: dict[str, Callable[[], Speed]] = {}
        for dtype in DTYPES:
            precise = work.trained(precision=dtype)
            sides[f"shoal, {dtype}"] = partial(shoal, "cached", precise)
            for layout in LAYOUTS:
                sides[f"lightly, {layout}, {dtype}"] = partial(lightly, layout, precise)
        runs = take_turns(sides, rounds, size.total, on_progress)
    rates = {side: best(speeds) for side, speeds in runs.items()}
    values = {"images": size.total, "batch": work.train.loop.batch_size, "rounds": rounds, **rates}
    return judged("swav-step", _bars(rates), values, {"runs": table("step", runs)})


def _bars(rates: Mapping[str, float]) -> list[Bar]:
    ours = {dtype: rates[f"shoal, {dtype}"] for dtype in DTYPES}
    theirs = {dtype: max(rates[f"lightly, {layout}, {dtype}"] for layout in LAYOUTS) for dtype in DTYPES}
    bars = [Bar(f"times lightly's rate, {dtype}", ours[dtype] / theirs[dtype], least=1.05) for dtype in DTYPES]
    return [*bars, Bar("bf16, times shoal's rate in fp32", ours["bf16"] / ours["fp32"], least=1.5)]


def recipe(shards: Sequence[str], folder: Path) -> Work:
    """The shipped config on these shards; their index is kept in `folder`."""
    config = resolve(CONFIG)
    work = Work(
        shards=tuple(shards),
        index=str(folder / f"index-{Path(shards[0]).parent.name}"),
        train=config.train,
        backbone=config.backbone.model_copy(update={"weights": "random"}),
    )
    return work.trained(log_every=10**9)  # nothing is logged but ends of epochs


def comparable(work: Work, images: int, epochs: int) -> Work:
    """The same as both sides can do it, for so many epochs."""
    work = work.trained(optimizer="sgd", nesterov=False, accumulate=1, epochs=epochs)
    objective = work.train.objective.model_copy(update={"queue": 0, "freeze": 0.0})
    objective = objective.resolved(images, work.train.loop.batch_rows, epochs)
    return work.model_copy(update={"train": work.train.model_copy(update={"objective": objective})})


def shoal(side: str, work: Work) -> Speed:
    """Shoal on batches in memory (`cached`), or as it reads them (`fed`)."""
    return _measured("jobs.bench.swav_one", side, work.model_dump_json())


def lightly(layout: str, work: Work) -> Speed:
    """Lightly on batches in memory."""
    return _measured("jobs.bench.peers.lightly_swav", layout, work.model_dump_json())


def _measured(module: str, *arguments: str) -> Epochs:
    began = time.time()
    (printed,) = outputs([[sys.executable, "-m", module, *arguments]])
    timed = Timed.model_validate(json.loads(printed.splitlines()[-1]))
    return Epochs(timed.images, max(timed.rates), timed.ready - began, time.time() - began, timed.first)
