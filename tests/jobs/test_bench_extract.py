"""Benchmarks of extraction: their images, both sides on a few of them, and what judges a killed run."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jobs.bench import extract, extract_dataloader, extract_kills, extract_memory, images, speeds
from jobs.bench.extract_kills import Sample, not_once, samples_of
from jobs.bench.images import LABELS_FILE, PIXELS_FILE, Size, fashion, folder_for, linked, photos
from jobs.bench.killer import DRIVER, Killer, Pace, commit_seconds, count_commits, in_commit
from jobs.bench.peers import bare, dataloader
from jobs.bench.processes import family
from jobs.bench.registry import BENCHMARKS
from jobs.bench.speeds import Speed
from models.backbones import BackboneConfig, load_backbone
from models.errors import ShoalError
from pipeline.extract.rows import ok_rows, rejected_rows
from pipeline.ingest.shards import Reject, read_samples
from pipeline.ingest.shards import Sample as Read
from pipeline.progress import silent
from pipeline.tables.collection import Collection
from pipeline.tables.samples import SamplesTable, TableProperties
from pipeline.tables.schema import REJECTED, Reason

RESNET18 = BackboneConfig(name="torchvision/resnet18", weights="random", size=64)
PIXELS = BackboneConfig(name="pixels", size=4)
INK = np.arange(3 * 28 * 28, dtype=np.uint8).reshape(3, 28, 28)


@pytest.fixture
def three_images(tmp_path: Path) -> Path:
    """A folder with a Fashion-MNIST of three images, of classes 7, 8 and 9."""
    for name, code, array in ((PIXELS_FILE, 3, INK), (LABELS_FILE, 1, np.array([7, 8, 9], np.uint8))):
        header = np.array([0x800 + code, *array.shape], ">i4").tobytes()
        (tmp_path / name).write_bytes(gzip.compress(header + array.tobytes()))
    return tmp_path


def samples(shards: list[str]) -> list[Read]:
    return [item for shard in shards for item in read_samples(shard) if isinstance(item, Read)]


def test_fashion_images_are_those_of_the_files_and_begin_again(three_images: Path) -> None:
    found = samples(fashion(three_images, Size(shards=2, images=2)))
    assert [(sample.key, sample.label) for sample in found] == [
        ("fashion-000000", "7"),
        ("fashion-000001", "8"),
        ("fashion-000002", "9"),
        ("fashion-000003", "7"),
    ]
    decoded = [np.asarray(Image.open(io.BytesIO(sample.image))) for sample in found]
    np.testing.assert_array_equal(decoded, INK[[0, 1, 2, 0]])


def test_photos_are_jpegs_of_short_side_256_and_never_the_same_twice(tmp_path: Path) -> None:
    found = samples(photos(tmp_path, Size(shards=1, images=6)))
    pictures = [Image.open(io.BytesIO(sample.image)) for sample in found]
    assert {(picture.format, min(picture.size)) for picture in pictures} == {("JPEG", 256)}
    assert all(3 / 4 - 0.01 <= picture.width / picture.height <= 4 / 3 + 0.01 for picture in pictures)
    assert [sample.label for sample in found] == ["china", "flower"] * 3
    assert len({sample.image for sample in found}) == 6


@pytest.mark.parametrize("make", images.SETS.values())
def test_images_are_made_once_and_the_same_in_every_folder(make: Callable[..., list[str]], three_images: Path) -> None:
    size = Size(shards=2, images=3)
    first = make(three_images, size)
    before = {shard: (Path(shard).stat().st_mtime_ns, Path(shard).read_bytes()) for shard in first}
    assert len(before) == 2
    assert make(three_images, size) == first
    assert {shard: (Path(shard).stat().st_mtime_ns, Path(shard).read_bytes()) for shard in first} == before
    for shard in first:
        Path(shard).rename(f"{shard}.away")
    Path(first[0]).parent.rename(three_images / "away")
    assert [Path(shard).read_bytes() for shard in make(three_images, size)] == [each[1] for each in before.values()]


def test_a_missing_fashion_mnist_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "FASHION_FOLDER", tmp_path / "nowhere")
    with pytest.raises(ShoalError, match="install the Debian package dataset-fashion-mnist, or give a folder"):
        fashion(tmp_path, Size(1, 1))
    assert list(tmp_path.iterdir()) == []


def test_images_go_into_the_folder_given_or_one_that_is_gone_afterwards(tmp_path: Path) -> None:
    with folder_for(tmp_path) as folder:
        assert folder == tmp_path
    with folder_for(None) as folder:
        assert folder.is_dir()
    assert not folder.exists()
    with pytest.raises(ShoalError, match="There is no data at /nowhere"), folder_for(Path("/nowhere")):
        pass


def test_linked_shards_are_the_same_under_other_names(three_images: Path) -> None:
    shards = fashion(three_images, Size(shards=2, images=1))
    links = linked(shards, three_images / "links", 3)
    assert len(set(links)) == 6
    assert [Path(link).read_bytes() for link in links] == [Path(shard).read_bytes() for shard in shards] * 3


@pytest.mark.parametrize("kind", images.SETS)
def test_both_other_sides_do_the_same_work(kind: str, three_images: Path) -> None:
    """The bare loop, whose parts are shoal's, and the script, whose parts are torch's, give the same embeddings."""
    shards = images.SETS[kind](three_images, Size(shards=2, images=3))
    backbone = load_backbone(RESNET18)
    ours = torch.cat(list(bare.embeddings(backbone, shards, 4)))
    theirs = torch.cat(list(dataloader.embeddings(backbone, dataloader.loader(backbone.pixels, shards, 4, 0))))
    assert ours.shape == (6, 512)
    assert ours.std() > 0
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_bare_processes_share_out_the_images_and_are_timed_together(three_images: Path) -> None:
    speed = speeds.bare(fashion(three_images, Size(shards=3, images=5)), PIXELS, 2)
    assert speed.images == 15
    assert 0 < speed.images / speed.images_per_second < speed.wall_seconds
    assert 0 < speed.startup_seconds < speed.wall_seconds


def test_the_script_says_what_it_did(three_images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = fashion(three_images, Size(shards=2, images=5))
    dataloader.main(PIXELS.model_dump_json(), "4", "1", "1", *shards)
    line = json.loads(capsys.readouterr().out)
    assert line["images"] == 10
    assert line["ready"] < line["ended"]


def test_a_process_that_fails_is_said_to_have_failed() -> None:
    with pytest.raises(ShoalError, match="ended with 3 instead of 0"):
        speeds.outputs([[sys.executable, "-c", ""], [sys.executable, "-c", "raise SystemExit(3)"]])


def test_settings_become_those_of_the_command() -> None:
    command = speeds.extract_command(["a.tar"], "table", RESNET18, "extract.commit_shards=2")
    assert command[1:6] == ["-m", "jobs", "extract", "a.tar", "--output"]
    assert [value for option, value in pairwise(command) if option == "--set"] == [
        "backbone.name=torchvision/resnet18",
        "backbone.weights=random",
        "backbone.size=64",
        "ray.address=local",
        "extract.batch_size=16",
        "extract.commit_shards=2",
    ]


def speed(rate: float, count: int = 10) -> Speed:
    return Speed(count, rate, 1.0, 2.0)


def test_sides_take_turns_and_the_best_run_counts() -> None:
    rates = iter([5.0, 1.0, 4.0, 2.0])
    turn = lambda: speed(next(rates))  # noqa: E731
    runs = speeds.take_turns({"a": turn, "b": turn}, rounds=2, images=10, on_progress=silent)
    assert [(row["side"], row["images_per_second"]) for row in speeds.table("x", runs)] == [
        ("a", 5.0),
        ("b", 1.0),
        ("a", 4.0),
        ("b", 2.0),
    ]
    assert (speeds.best(runs["a"]), speeds.best(runs["b"])) == (5.0, 2.0)


def test_a_side_that_loses_images_has_no_speed() -> None:
    with pytest.raises(ShoalError, match="a embedded 9 images but there are 10"):
        speeds.take_turns({"a": lambda: speed(1.0, 9)}, 1, 10, silent)


def test_bars_of_extract_by_hand(three_images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shoal: 90, then 96 images a second; bare: 100, then 80. The best are compared."""
    ours, bares = iter([90.0, 96.0] * 2), iter([100.0, 80.0] * 2)
    monkeypatch.setattr(extract, "shoal", lambda *_: Speed(6, next(ours), 9.0, 20.0))
    monkeypatch.setattr(extract, "bare", lambda *_: Speed(6, next(bares), 1.0, 20.0))
    result = extract.run(three_images, silent, size=Size(2, 3), backbones=[PIXELS])
    assert [(bar.name, bar.value, bar.holds) for bar in result.bars] == [
        ("times the bare rate, fashion, pixels", 0.96, True),
        ("times the bare rate, photos, pixels", 0.96, True),
        ("startup_seconds, slowest of these", 9.0, False),
    ]
    assert len(result.figures.tables["runs"]) == 8


def test_bars_of_the_script_by_hand(three_images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script reaches 50 with batches of 64, 1 worker and 1 thread, and less otherwise; shoal 60, and 64 in bf16."""

    def script(shards: list[str], backbone: BackboneConfig, *setting: int) -> Speed:
        return Speed(3 * len(shards), 50.0 if setting == (64, 1, 1) else 40.0, 1.0, 2.0)

    def ours(shards: list[str], backbone: BackboneConfig) -> Speed:
        return Speed(3 * len(shards), 64.0 if backbone.precision == "bf16" else 60.0, 1.0, 2.0)

    monkeypatch.setattr(extract_dataloader, "dataloader", script)
    monkeypatch.setattr(extract_dataloader, "shoal", ours)
    sizes = (Size(2, 3), Size(1, 3))
    result = extract_dataloader.run(three_images, silent, images="fashion", sizes=sizes, backbones=[PIXELS])
    assert [(bar.name, bar.value, bar.holds) for bar in result.bars] == [
        ("times the script's rate, pixels", 1.2, True),
        ("bf16, times the script's rate in fp32, pixels", 1.28, False),
    ]
    assert {row["side"] for row in result.figures.tables["runs"]} == {"shoal", "script", "shoal, bf16"}


def test_bars_of_memory_by_hand(three_images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two shards, then eight; the driver takes 300 MB and 330 MB, the largest worker 400 MB and 500 MB."""
    peaks = {2: extract_memory.Peak(300, 400), 8: extract_memory.Peak(330, 500)}
    monkeypatch.setattr(extract_memory, "_extract", lambda shards, _: peaks[len(set(shards))])
    result = extract_memory.run(three_images, silent, size=Size(2, 1))
    assert [(bar.value, bar.holds) for bar in result.bars] == [(1.1, True), (1.25, False)]


def test_what_is_tried_on_two_cores_and_on_eight() -> None:
    with_two = [(0, 1), (0, 2), (1, 1), (1, 2), (2, 1), (2, 2)]
    assert extract_dataloader.settings(2) == [(batch, *rest) for batch in (16, 64) for rest in with_two]
    with_eight = [(0, 1), (0, 8), (1, 1), (1, 7), (1, 8), (2, 1), (2, 6), (2, 8)]
    assert extract_dataloader.settings(8) == [(batch, *rest) for batch in (16, 64) for rest in with_eight]


def test_a_family_is_a_process_and_all_below_it() -> None:
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'], stdin=sys.stdin)"
    with subprocess.Popen([sys.executable, "-c", child], stdin=subprocess.PIPE) as process:
        while len(found := family(process.pid)) < 2:
            assert process.poll() is None
            time.sleep(0.01)
        assert process.stdin is not None
        process.stdin.close()
    assert found[0].pid == process.pid
    assert found[1].parent == process.pid
    assert "input()" in found[1].title
    assert not any(each.is_worker for each in found)
    assert all(2**20 < each.peak_bytes < 2**30 for each in found)
    assert family(process.pid) == []


def table_of(path: Path, embeddings: list[float], rejects: int = 0) -> SamplesTable:
    """A samples table with one shard: 1-d embeddings under the keys 0, 1, ..., then rejects."""
    properties = TableProperties(dimension=1, backbone="x", backbone_digest="x", l2_normalised=False, preprocessing={})
    table = Collection.create(path).create_samples(properties)
    read = [Read(str(n), "s.tar", 512 * n, 9, "label", b"", "png") for n in range(len(embeddings))]
    lost = [Reject(f"r{n}", "s.tar", None, None, None, Reason.no_image, "") for n in range(rejects)]
    files = [table.write(ok_rows(read, np.array(embeddings, np.float32)[:, None]))]
    files += [table.write(rejected_rows(lost), REJECTED)] if lost else []
    table.commit(files)
    return table


def test_tables_differ_in_rows_and_not_in_what_holds_them(tmp_path: Path) -> None:
    one, same, other = (tmp_path / name for name in ("one", "same", "other"))
    table_of(one, [1.0, 2.0], rejects=1)
    table_of(same, [1.0, 2.0], rejects=1)
    table_of(other, [1.0, np.nextafter(np.float32(2), np.float32(3))], rejects=1)
    assert samples_of(one) == samples_of(same)
    assert samples_of(one).total() == 3
    assert [sample.key for sample in samples_of(one) - samples_of(other)] == ["1"]
    assert {sample.status for sample in samples_of(one)} == {"ok", "rejected"}


def test_samples_that_are_there_twice_or_not_at_all_are_counted() -> None:
    def sample(key: str, embedding: str) -> Sample:
        return Sample(key, "s.tar", 0, 0, None, "ok", embedding)

    assert not_once(Counter([sample("a", "x"), sample("b", "x")]), 2) == 0
    assert not_once(Counter({sample("a", "x"): 2, sample("b", "x"): 1}), 2) == 1
    assert not_once(Counter([sample("a", "x"), sample("a", "y")]), 3) == 3  # `a` twice, two not at all


RESUMABLE = """
import subprocess, sys, time
from pathlib import Path
log, shards = Path(sys.argv[1], "samples", "_delta_log"), Path(sys.argv[1], "shards")
for folder in (log, shards):
    folder.mkdir(parents=True, exist_ok=True)
worker = [sys.executable, "-c", "input()"]
subprocess.Popen(["ray::Fake(x)", *worker[1:]], executable=worker[0], stdin=subprocess.PIPE)  # ends with its parent
for number in range(len(list(log.iterdir())), int(sys.argv[2]) + 1):
    time.sleep(0.02)
    (shards / f"{number}.parquet").touch()
    time.sleep(0.02)
    (log / f"{number:020d}.json").touch()
"""
QUICK = Pace(startup_seconds=0.3, work_seconds=0.3, commit_seconds=0.02)


def resumable(table: Path, commits: int) -> list[str]:
    """A command that commits as an extraction does, has one worker, and goes on where it was killed."""
    return [sys.executable, "-c", RESUMABLE, str(table), str(commits)]


def test_a_command_is_killed_as_often_as_planned_and_can_go_on(tmp_path: Path) -> None:
    command = resumable(tmp_path, 200)
    killer = Killer(command, tmp_path, QUICK, kills=6)
    killer.run(silent)
    assert Counter(kill.aimed for kill in killer.kills) == {"start-up": 2, "work": 2, "commit": 2}
    assert {kill.victim for kill in killer.kills} <= {DRIVER, "ray::Fake"}
    runs = [kill.run for kill in killer.kills]
    for kill, run in zip(killer.kills, runs[1:], strict=False):
        assert run == kill.run + (kill.victim == DRIVER)
    assert not any(kill.stalled for kill in killer.kills)
    assert 0 < count_commits(tmp_path) < 200
    speeds.outputs([resumable(tmp_path, count_commits(tmp_path) + 1)])


def test_work_that_is_done_is_not_begun_again_and_again(tmp_path: Path) -> None:
    killer = Killer(resumable(tmp_path, 1), tmp_path, Pace(60, 60, 1), kills=6)
    killer.run(silent)
    assert killer.kills == []
    assert killer.starts == 1


def test_a_command_that_fails_before_it_is_killed_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ShoalError, match="ended with 3 instead of 0"):
        Killer([sys.executable, "-c", "raise SystemExit(3)"], tmp_path, Pace(60, 60, 1), kills=6).run(silent)


def write_at(path: Path, seconds: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, ns=(round(seconds * 1e9),) * 2)


def test_a_commit_is_open_between_the_shards_and_the_samples(tmp_path: Path) -> None:
    assert not in_commit(tmp_path, 0)
    for age, name in enumerate(("samples/_delta_log/2.json", "shards/a.parquet", "samples/_delta_log/1.json"), start=1):
        write_at(tmp_path / name, age * 1e-9)
        assert in_commit(tmp_path, 0) == (name == "shards/a.parquet")
        assert not in_commit(tmp_path, 2)  # begun before that


def test_a_commit_takes_from_its_row_of_the_shards_to_the_log_of_the_samples(tmp_path: Path) -> None:
    """Two commits of 2 and of 4 seconds."""
    for second, name in ((10, "shards/a.parquet"), (12, "samples/_delta_log/1.json"), (20, "shards/b.parquet")):
        write_at(tmp_path / name, second)
    write_at(tmp_path / "samples/_delta_log/2.json", 24)
    assert commit_seconds(tmp_path) == 3.0


@pytest.mark.slow
def test_an_extraction_that_was_killed_has_the_rows_of_one_that_was_not(three_images: Path) -> None:
    result = extract_kills.run(three_images, silent, size=Size(40, 96), kills=6)
    assert {bar.name: bar.holds for bar in result.bars} == dict.fromkeys((bar.name for bar in result.bars), True)


def test_benchmarks_of_extraction_are_listed() -> None:
    names = {"extract", "extract-dataloader", "extract-dataloader-fashion", "extract-kills", "extract-memory"}
    assert names <= set(BENCHMARKS)
