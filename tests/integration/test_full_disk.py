"""Every command that writes, on a disk without room for what it writes: a sentence, nothing half done, and then on.

One page after the other is taken away (slow); some of these moments are tried every time.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import shoal
from PIL import Image
from small_disk import SmallDisk, small_disk
from typer.testing import Result
from whole import visible

KMEANS = ("cluster.reduce.kind=none", "cluster.algorithm.kind=kmeans", "cluster.algorithm.clusters=3")
PIXELS = (
    *("backbone.name=pixels", "backbone.size=4", "backbone.grey=true"),
    *("extract.actors=1", "extract.commit_shards=1"),
)
TINY = """
backbone: {name: shoal/conv4_grey, size: 8}
shards: {images_per_shard: 10}
train:
  objective: {prototypes: 5, hidden: 16, dim: 8}
  views: {policy: digits, base: 8, banks: [{size: 8, count: 2, area: [0.4, 1.0]}]}
  images: {lanes: 2}
  loop: {batch_size: 12, epochs: 2, checkpoint_minutes: 1.0e-6}
"""
LABELS = {"above": np.s_[:4, :], "below": np.s_[4:, :], "left": np.s_[:, :4]}
EACH = 12


def sets(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


@dataclass
class World:
    """What commands read, and the folders that they find when they begin."""

    folder: Path
    finished: dict[str, dict[str, Any]] = field(default_factory=dict)  # by command: what it leaves where there is room

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def copy(self, old: str, new: str) -> Path:
        shutil.copytree(self / old, self / new)
        return self / new / "table"


Command = Callable[[World, Path], list[str | Path]]
COMMANDS: dict[str, tuple[str, Command]] = {
    "shards": (
        "empty",
        lambda world, home: [
            *("shards", world / "photos", "--output", home / "shards", *sets("shards.images_per_shard=10"))
        ],
    ),
    "import": ("empty", lambda world, home: ["import", world / "first.npy", "--output", home / "table"]),
    "cluster": ("imported", lambda _, home: ["cluster", home / "table", *sets(*KMEANS)]),
    "assign": ("grown", lambda _, home: ["assign", home / "table", *sets(*KMEANS)]),
    "recluster": ("grown", lambda _, home: ["recluster", home / "table", *sets(*KMEANS)]),
    "rollback": ("followed", lambda _, home: ["rollback", home / "table", "1"]),
    "remove": ("followed", lambda world, home: ["remove", home / "table", "--keys", world / "keys.txt"]),
    "report": ("clustered", lambda _, home: ["report", home / "table", *sets(*KMEANS)]),
    "train": ("empty", lambda world, home: ["train", world / "photos", "--output", home / "run", "-c", world / "tiny"]),
    "extract": (
        "empty",
        lambda world, home: ["extract", world / "shards", "--output", home / "table", *sets(*PIXELS)],
    ),
    "run": (
        "empty",
        lambda world, home: [
            *("run", world / "photos", "--output", home / "run"),
            *sets(*PIXELS, *KMEANS, "shards.images_per_shard=10"),
        ],
    ),
}


def done(*arguments: str | Path) -> None:
    result = shoal(*arguments)
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Photos of three labels, rows about three centres, and tables that are ever further."""
    made = World(tmp_path_factory.mktemp("world"))
    rng = np.random.default_rng(0)
    for label, bright in LABELS.items():
        (made / "photos" / label).mkdir(parents=True)
        for number in range(EACH):
            pixels = rng.integers(0, 60, (8, 8))
            pixels[bright] += 180
            Image.fromarray(pixels.astype(np.uint8)).save(made / "photos" / label / f"{number:02d}.png")
    centre_KD = rng.normal(0, 10, (3, 4))
    for name, rows in (("first", 90), ("second", 30)):
        np.save(made / f"{name}.npy", (centre_KD[np.arange(rows) % 3] + rng.normal(size=(rows, 4))).astype(np.float32))
    (made / "tiny").write_text(TINY)
    (made / "keys.txt").write_text(f"{0:012d}\n{1:012d}\n")
    (made / "empty").mkdir()
    done("shards", made / "photos", "--output", made / "shards", *sets("shards.images_per_shard=10"))
    done("import", made / "first.npy", "--output", made / "imported" / "table")
    done("cluster", made.copy("imported", "clustered"), *sets(*KMEANS))
    done("import", made / "second.npy", "--output", made.copy("clustered", "grown"))
    done("recluster", made.copy("grown", "followed"), *sets(*KMEANS))
    return made


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDisk]:
    with small_disk(tmp_path_factory.mktemp("disks") / "small", 64) as mounted:
        yield mounted


def begin(name: str, world: World, disk: SmallDisk) -> list[str | Path]:
    """The command, and the folders as it is to find them."""
    start, command = COMMANDS[name]
    disk.empty()
    shutil.rmtree(disk.home)
    shutil.copytree(world / start, disk.home)
    return command(world, disk.home)


def left_by(name: str, world: World, disk: SmallDisk) -> dict[str, Any]:
    """What is seen after the command had all the room that it wanted."""
    if name not in world.finished:
        done(*begin(name, world, disk))
        world.finished[name] = visible(disk.home)
    return world.finished[name]


def fills(name: str, pages: int, world: World, disk: SmallDisk) -> bool:
    """Run the command with so little room; whether that was too little. Then once more, with room."""
    wanted = left_by(name, world, disk)
    command = begin(name, world, disk)
    before = visible(disk.home)
    disk.fill(pages)
    result = shoal(*command)
    if result.exit_code == 0:
        return False
    check_sentence(result)
    seen = visible(disk.home)
    if name in ("cluster", "assign", "recluster", "rollback", "report"):  # which publish once; others do step by step
        assert seen == before
    disk.empty()
    again = shoal(*command)
    assert again.exit_code == 0, again.output
    assert visible(disk.home) == wanted
    return True


def check_sentence(result: Result) -> None:
    """One that says what is wrong; the lines before it are warnings."""
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    sentence = result.stderr.splitlines()[-1]
    assert "disk is full" in sentence or "No space left on device" in sentence, sentence
    assert sentence.endswith(".")


@pytest.mark.parametrize(
    ("name", "pages"),
    [
        ("shards", 10),
        ("import", 1),
        ("import", 4),
        ("cluster", 13),
        ("recluster", 6),
        ("remove", 6),
    ],
)
def test_a_full_disk_is_a_sentence_and_the_same_command_goes_on(
    name: str, pages: int, world: World, disk: SmallDisk
) -> None:
    assert fills(name, pages, world, disk), f"{pages} pages were enough; test with fewer"


def test_rows_that_are_mapped_to_a_full_disk_are_a_sentence_and_no_dead_process(
    world: World, disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*begin("cluster", world, disk), *sets("cluster.memory_ceiling_bytes=1")]
    room = shutil.copytree(disk.home, world / "elsewhere") / "table"
    monkeypatch.setattr(tempfile, "tempdir", str(disk.home))
    disk.fill(0)
    check_sentence(shoal("cluster", room, *command[2:]))
    disk.empty()
    done("cluster", room, *command[2:])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("extract", "run", "train")])
def test_wherever_a_disk_becomes_full(name: str, world: World, disk: SmallDisk) -> None:
    assert sum(1 for _ in _levels(name, count(), world, disk)) > 4


@pytest.mark.slow
@pytest.mark.parametrize(("name", "step"), [("train", 97), ("extract", 3), ("run", 7)])
def test_wherever_a_disk_becomes_full_in_steps(
    name: str, step: int, world: World, disk: SmallDisk, ray_session: None
) -> None:
    assert sum(1 for _ in _levels(name, count(0, step), world, disk)) > 4


def _levels(name: str, pages: Iterator[int], world: World, disk: SmallDisk) -> Iterator[int]:
    """The levels that were too little, up to the first that was enough."""
    for level in pages:
        if not fills(name, level, world, disk):
            return
        yield level
