"""Folders to shards and back: byte for byte, the same every time, and resumable."""

from __future__ import annotations

import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import webdataset.tariterators as reference
from hypothesis import given
from hypothesis import strategies as st

from models.errors import ShoalError
from pipeline.ingest.folder import scan_folder
from pipeline.ingest.shards import Sample, list_shards, read_samples
from pipeline.ingest.write import JOURNAL, NewSample, ShardConfig, write_samples, write_shards

FILES = {
    "cats/IMG.v2.JPG": b"1",
    "cats/IMG_v2.jpg": b"22",
    "dogs/deep/é 日本.png": b"333",
    "root.gif": b"4444",
    "dogs/zero.webp": b"",
}


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def samples_of(shards: list[Path]) -> list[Sample]:
    rows = [row for shard in shards for row in read_samples(str(shard))]
    assert all(isinstance(row, Sample) for row in rows), rows
    return [row for row in rows if isinstance(row, Sample)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_comes_back_byte_for_byte_with_labels_and_paths(tmp_path: Path) -> None:
    shards = write_shards(fill(tmp_path / "in", FILES), tmp_path / "out")
    assert shards == [tmp_path / "out/shard-000000.tar"]
    assert [(sample.key, sample.extension, sample.image, sample.label) for sample in samples_of(shards)] == [
        ("cats/IMG_v2", "jpg", b"1", "cats"),
        ("cats/IMG_v2-1", "jpg", b"22", "cats"),
        ("dogs/deep/é 日本", "png", b"333", "dogs"),
        ("dogs/zero", "webp", b"", "dogs"),
        ("root", "gif", b"4444", None),
    ]
    with tarfile.open(shards[0]) as tar:
        metas = [json.loads(tar.extractfile(info).read()) for info in tar if info.name.endswith(".json")]
        assert {(info.mtime, info.uid, info.gid, info.uname) for info in tar.getmembers()} == {(0, 0, 0, "")}
    assert [meta["path"] for meta in metas] == sorted(FILES)


def test_webdataset_reads_the_same_keys(tmp_path: Path) -> None:
    (shard,) = write_shards(fill(tmp_path / "in", FILES), tmp_path / "out")
    with shard.open("rb") as stream:
        files = reference.tar_file_expander([{"url": str(shard), "stream": stream}])
        keys = [sample["__key__"] for sample in reference.group_by_keys(files)]
    assert keys == [sample.key for sample in samples_of([shard])]


def test_two_writes_are_identical_whatever_the_times_of_the_files(tmp_path: Path) -> None:
    first = write_shards(fill(tmp_path / "a", FILES), tmp_path / "x", ShardConfig(images_per_shard=2))
    for name in reversed(FILES):
        fill(tmp_path / "b", {name: FILES[name]})
        os.utime(tmp_path / "b" / name, (1, 1))
    second = write_shards(tmp_path / "b", tmp_path / "y", ShardConfig(images_per_shard=2))
    assert [shard.read_bytes() for shard in first] == [shard.read_bytes() for shard in second]
    assert [shard.name for shard in first] == ["shard-000000.tar", "shard-000001.tar", "shard-000002.tar"]


def test_a_shard_is_full_with_the_image_that_reaches_either_limit(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", {f"{index}.jpg": bytes(10) for index in range(7)})
    sizes = {
        (config.images_per_shard, config.bytes_per_shard): [
            len(samples_of([shard])) for shard in write_shards(folder, tmp_path / f"out{number}", config)
        ]
        for number, config in enumerate(
            [ShardConfig(images_per_shard=3), ShardConfig(bytes_per_shard=20), ShardConfig(bytes_per_shard=1)]
        )
    }
    assert list(sizes.values()) == [[3, 3, 1], [2, 2, 2, 1], [1] * 7]


def test_progress_counts_images(tmp_path: Path) -> None:
    folder, steps = fill(tmp_path / "in", FILES), []
    write_shards(folder, tmp_path / "out", ShardConfig(images_per_shard=2), lambda *step: steps.append(step))
    assert [done for _, done, _ in steps] == [1, 2, 2, 3, 4, 4, 5, 5]
    assert {(step, total) for step, _, total in steps} == {("shards", 5)}
    steps.clear()
    write_shards(folder, tmp_path / "out", ShardConfig(images_per_shard=2), lambda *step: steps.append(step))
    assert [done for _, done, _ in steps] == [2, 4, 5]


def test_what_is_finished_is_not_written_again(tmp_path: Path) -> None:
    folder, out, config = fill(tmp_path / "in", FILES), tmp_path / "out", ShardConfig(images_per_shard=2)
    shards = write_shards(folder, out, config)
    written = [shard.stat().st_ino for shard in shards]
    assert write_shards(folder, out, config) == shards
    assert [shard.stat().st_ino for shard in shards] == written
    (folder / "dogs/deep/é 日本.png").write_bytes(b"changed")
    write_shards(folder, out, config)
    again = [shard.stat().st_ino for shard in shards]
    assert [old == new for old, new in zip(written, again, strict=True)] == [True, False, True]
    assert samples_of(shards)[2].image == b"changed"


@pytest.mark.parametrize("torn", [b"", b'\n{"shard": "shard-0000', b"\n[]\nnull\n\xff"])
def test_a_run_that_was_killed_goes_on(tmp_path: Path, torn: bytes) -> None:
    """Killed in the middle of the second of three shards, or of the journal's line about it."""
    folder, config = fill(tmp_path / "in", FILES), ShardConfig(images_per_shard=2)
    whole = write_shards(folder, tmp_path / "whole", config)
    out = tmp_path / "out"

    def killed(step: str, done: int, total: int | None) -> None:
        assert (step, total) == ("shards", 5)
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(folder, out, config, killed)
    assert sorted(contents(out)) == [".shard-000001.tar.part", "shard-000000.tar", JOURNAL]
    with (out / JOURNAL).open("ab") as journal:
        journal.write(torn)
    (out / ".shard-000007.tar.part").write_bytes(b"half a shard of a larger run")
    first = (out / "shard-000000.tar").stat().st_ino
    shards = write_shards(folder, out, config)
    assert [shard.read_bytes() for shard in shards] == [shard.read_bytes() for shard in whole]
    assert (out / "shard-000000.tar").stat().st_ino == first
    assert list_shards([str(out)]) == [str(shard) for shard in shards]
    assert sorted(contents(out)) == [*sorted(shard.name for shard in shards), JOURNAL]


def test_a_run_that_was_killed_between_the_journal_and_the_name_goes_on(tmp_path: Path) -> None:
    folder, out, config = fill(tmp_path / "in", FILES), tmp_path / "out", ShardConfig(images_per_shard=2)
    whole = {shard.name: shard.read_bytes() for shard in write_shards(folder, out, config)}
    (out / "shard-000001.tar").rename(out / ".shard-000001.tar.part")
    assert {shard.name: shard.read_bytes() for shard in write_shards(folder, out, config)} == whole


def test_a_shard_that_lost_bytes_is_written_again(tmp_path: Path) -> None:
    folder, out = fill(tmp_path / "in", FILES), tmp_path / "out"
    (shard,) = write_shards(folder, out)
    whole = shard.read_bytes()
    shard.write_bytes(whole[:1000])
    write_shards(folder, out)
    assert shard.read_bytes() == whole


def test_shards_that_a_smaller_folder_no_longer_fills_are_removed(tmp_path: Path) -> None:
    folder, out, config = fill(tmp_path / "in", FILES), tmp_path / "out", ShardConfig(images_per_shard=2)
    write_shards(folder, out, config)
    (folder / "root.gif").unlink()
    assert [shard.name for shard in write_shards(folder, out, config)] == ["shard-000000.tar", "shard-000001.tar"]
    assert list_shards([str(out)]) == [str(out / "shard-000000.tar"), str(out / "shard-000001.tar")]


def test_shards_of_somebody_else_are_neither_kept_nor_overwritten(tmp_path: Path) -> None:
    folder, out = fill(tmp_path / "in", FILES), fill(tmp_path / "out", {"shard-000000.tar": b"precious"})
    with pytest.raises(ShoalError, match=r"already holds shard-000000\.tar, which was not written here"):
        write_shards(folder, out)
    assert contents(out) == {"shard-000000.tar": b"precious"}


def test_the_scan_counts_what_it_passes_over(tmp_path: Path) -> None:
    folder = fill(
        tmp_path, {**FILES, ".DS_Store": b"", ".git/a.jpg": b"", "d/._a.jpg": b"", "notes.txt": b"", "d/noext": b""}
    )
    (folder / "broken.jpg").symlink_to(folder / "nowhere.jpg")
    (folder / "link.jpg").symlink_to(folder / "root.gif")
    (folder / "folder.jpg").mkdir()
    scan = scan_folder(folder)
    assert [image.path for image in scan.images] == sorted([*FILES, "link.jpg"])
    assert (scan.hidden, scan.others) == (3, 3)
    assert len(samples_of(write_shards(scan, tmp_path / "out"))) == 6


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", r"empty holds no images \(1 other files, 1 hidden ones\)"),
        ("none", "is not a folder"),
        ("a.jpg", "is not a folder"),
    ],
)
def test_a_folder_without_images_is_said_in_a_sentence(tmp_path: Path, name: str, message: str) -> None:
    fill(tmp_path, {"empty/a.txt": b"", "empty/.a.jpg": b"", "a.jpg": b""})
    with pytest.raises(ShoalError, match=message):
        write_shards(tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_image_that_vanishes_is_named(tmp_path: Path) -> None:
    scan = scan_folder(fill(tmp_path / "in", FILES))
    (tmp_path / "in/root.gif").unlink()
    with pytest.raises(ShoalError, match=r"root\.gif cannot be read \(No such file or directory\)"):
        write_shards(scan, tmp_path / "out")
    assert list((tmp_path / "out").glob("*.tar")) == []


def generated(count: int) -> Iterator[NewSample]:
    for index in range(count):
        yield NewSample(f"d/{index}", "png", bytes([index]), str(index), {"b": 1, "a": index})


def test_generated_samples_are_written_in_order_and_the_same_every_time(tmp_path: Path) -> None:
    config, steps = ShardConfig(images_per_shard=3), []
    shards = write_samples(generated(7), tmp_path / "x", config, lambda *step: steps.append(step))
    assert [(sample.key, sample.label, sample.image) for sample in samples_of(shards)] == [
        (f"d/{index}", str(index), bytes([index])) for index in range(7)
    ]
    assert steps == [("shards", done, None) for done in range(1, 8)]
    again = write_samples(generated(7), tmp_path / "y", config)
    assert [shard.read_bytes() for shard in shards] == [shard.read_bytes() for shard in again]
    assert len(write_samples(generated(2), tmp_path / "x", config)) == 1
    assert len(list_shards([str(tmp_path / "x")])) == 1


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (NewSample("a.b", "png", b""), "without dots"),
        (NewSample("../a", "png", b""), "relative key"),
        (NewSample("/a", "png", b""), "relative key"),
        (NewSample("", "png", b""), "cannot be a member"),
        (NewSample("a", "PNG", b""), "cannot be a member"),
        (NewSample("a", "txt", b""), "no image extension"),
        (NewSample("d/0", "jpg", b""), "'d/0' is there twice"),
    ],
)
def test_samples_that_would_not_come_back_are_refused(tmp_path: Path, sample: NewSample, message: str) -> None:
    with pytest.raises(ShoalError, match=message):
        write_samples([*generated(1), sample], tmp_path)
    with pytest.raises(ShoalError, match="There are no samples"):
        write_samples([], tmp_path)


PARTS = st.text(st.sampled_from("ab._-Ä日 %'{}"), min_size=1, max_size=6).filter(lambda part: part[0] != ".")
PATHS = st.lists(PARTS, min_size=1, max_size=3).map("/".join)


@given(
    files=st.dictionaries(PATHS, st.binary(max_size=1200), min_size=1, max_size=8),
    extension=st.sampled_from(["jpg", "PNG", "tiff"]),
    per_shard=st.integers(1, 4),
)
def test_any_folder_comes_back(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], extension: str, per_shard: int
) -> None:
    folder = tmp_path_factory.mktemp("any")
    named = {f"{path}.{extension}": content for path, content in files.items()}
    shards = write_shards(fill(folder / "in", named), folder / "out", ShardConfig(images_per_shard=per_shard))
    samples = samples_of(shards)
    assert [sample.image for sample in samples] == [named[path] for path in sorted(named)]
    assert max(Counter(sample.key for sample in samples).values()) == 1
    for sample, path in zip(samples, sorted(named), strict=True):
        label, slash, _ = path.partition("/")
        assert sample.label == (label.strip() or None if slash else None)
