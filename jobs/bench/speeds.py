"""How fast images are embedded: by the command `shoal extract`, and by the programs it is compared with.

Each side has processes of its own. A rate is of steady work: it begins when the first process has loaded its backbone,
and ends with the last image (of shoal: with the last commit). What comes before is reported as start-up.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jobs.figures import Row
from models.backbone_config import BackboneConfig
from models.errors import ShoalError
from pipeline.progress import Progress

BATCH = 16  # what shoal takes on a CPU
# A shell's limits on threads would hold for one side more than for the other.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True)
class Speed:
    """One run of a side."""

    images: int
    images_per_second: float  # without the start-up
    startup_seconds: float  # of shoal: from Ray being up to the first image embedded; else until the first is ready
    wall_seconds: float  # of the whole command


Runs = dict[str, list[Speed]]  # by side


def take_turns(sides: Mapping[str, Callable[[], Speed]], rounds: int, images: int, on_progress: Progress) -> Runs:
    """All sides one after the other, `rounds` times. Raises ShoalError where one embeds another number of images."""
    runs: Runs = {name: [] for name in sides}
    for turn in range(rounds):
        for name, measure in sides.items():
            on_progress(f"bench, {name}", turn, rounds)
            speed = measure()
            if speed.images != images:
                raise ShoalError(f"{name} embedded {speed.images} images but there are {images}; its output says why.")
            runs[name].append(speed)
    return runs


def best(runs: Sequence[Speed]) -> float:
    """Images per second of the fastest run."""
    return max(run.images_per_second for run in runs)


def table(about: str, runs: Runs) -> list[Row]:
    """Every run, in the order in which they took place."""
    rounds = max(map(len, runs.values()))
    return [{"about": about, "side": name, **asdict(runs[name][turn])} for turn in range(rounds) for name in runs]


def shoal(shards: Sequence[str], backbone: BackboneConfig, *settings: str) -> Speed:
    """`shoal extract` into a new table."""
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as name:
        figures = Path(name, "figures.json")
        command = extract_command(shards, f"{name}/table", backbone, *settings)
        began = time.time()
        outputs([[*command, "--json", str(figures)]])
        ended = time.time()
        measured = json.loads(figures.read_text())
    rate, startup = measured["images_per_second"], measured["startup_seconds"]
    return Speed(measured["new_images"], rate, startup, ended - began)


def bare(shards: Sequence[str], backbone: BackboneConfig, processes: int) -> Speed:
    """Bare processes of one thread, which share the shards out beforehand."""
    shares = [shards[first::processes] for first in range(processes)]
    return _peers([_peer("bare", backbone, BATCH, *share) for share in shares if share])


def dataloader(shards: Sequence[str], backbone: BackboneConfig, batch: int, workers: int, threads: int) -> Speed:
    """The DataLoader script with such batches, so many workers, and threads of its forward pass."""
    return _peers([_peer("dataloader", backbone, batch, str(workers), str(threads), *shards)])


def extract_command(shards: Sequence[str], table: str, backbone: BackboneConfig, *settings: str) -> list[str]:
    """`shoal extract` with these settings, on a Ray of its own."""
    sets = [f"backbone.{name}={value}" for name, value in backbone.model_dump(exclude_defaults=True).items()]
    sets += ["ray.address=local", f"extract.batch_size={BATCH}", *settings]
    options = [part for each in sets for part in ("--set", each)]
    return [sys.executable, "-m", "jobs", "extract", *shards, "--output", table, *options]


@contextmanager
def running(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that does not outlive the block."""
    environment = {name: value for name, value in os.environ.items() if name not in _THREADS}
    with subprocess.Popen(list(command), stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()  # nothing where it has ended


def outputs(commands: Sequence[Sequence[str]]) -> list[str]:
    """What each of the commands printed, all run at the same time. Raises ShoalError where one fails."""
    with ExitStack() as stack:
        processes = [stack.enter_context(running(command)) for command in commands]
        return [finished(process) for process in processes]


def finished(process: subprocess.Popen[str]) -> str:
    """What the process printed, at its end. Raises ShoalError where it fails."""
    printed, _ = process.communicate()
    if process.returncode != 0:
        raise ShoalError(
            f"A process of this benchmark ended with {process.returncode} instead of 0 (-9: killed, perhaps for want "
            "of memory); its message is above."
        )
    return printed


def _peer(program: str, backbone: BackboneConfig, batch: int, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"jobs.bench.peers.{program}", backbone.model_dump_json(), str(batch), *arguments]


def _peers(commands: Sequence[Sequence[str]]) -> Speed:
    began = time.time()
    lines: list[dict[str, Any]] = [json.loads(printed.splitlines()[-1]) for printed in outputs(commands)]
    ended = time.time()
    images, ready = sum(line["images"] for line in lines), min(line["ready"] for line in lines)
    seconds = max(line["ended"] for line in lines) - ready
    return Speed(images, images / seconds, ready - began, ended - began)
