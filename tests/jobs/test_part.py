"""Which images a scaled run takes: so many, always the same, of several shards, and kept once they are copied."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from jobs.config import RunConfig
from jobs.part import ENOUGH, Part, PartOfFolder, shards_of_part
from jobs.run import Run, whole_job
from jobs.steps import State
from models.errors import ShoalError
from pipeline.ingest.digits import digits
from pipeline.ingest.shards import Sample, read_samples
from pipeline.progress import silent

DIGITS = list(digits())[:60]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Twelve shards of five digits each."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(12):
        with tarfile.open(folder / f"imagenet-train-{number:04d}.tar", "w") as tar:
            for sample in DIGITS[number * 5 : number * 5 + 5]:
                for extension, data in (("png", sample.image), ("cls", (sample.label or "").encode())):
                    info = tarfile.TarInfo(f"{sample.key}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return folder


def settings(images: int | None, part: float) -> RunConfig:
    return RunConfig.model_validate({"collection": {"images": images, "part": part}, "shards": {"images_per_shard": 8}})


def copied(output: Path) -> dict[str, tuple[str | None, bytes]]:
    found = [item for shard in sorted(output.glob("*.tar")) for item in read_samples(str(shard))]
    return {item.key: (item.label, item.image) for item in found if isinstance(item, Sample)}


def test_so_many_images_of_several_shards_are_copied_with_their_labels(shards: Path, tmp_path: Path) -> None:
    part = Part((str(shards),), str(tmp_path / "out"), settings(20, 0.01))
    assert part.plan()[0].state == State.TO_DO
    assert part.run(silent).values["shards"] == 3  # of eight images each
    found, whole = copied(tmp_path / "out"), {each.key: (each.label, each.image) for each in DIGITS}
    assert len(found) == 20 and found.items() <= whole.items()
    by_shard = [sum(each.key in found for each in DIGITS[begin : begin + 5]) for begin in range(0, 60, 5)]
    assert max(by_shard) == 3  # an eighth of twenty, rounded up


def test_where_there_are_no_more_all_are_taken(shards: Path, tmp_path: Path) -> None:
    Part((str(shards),), str(tmp_path / "out"), settings(60, 0.001)).run(silent)
    assert len(copied(tmp_path / "out")) == 60


def test_what_is_copied_is_kept_and_what_is_damaged_is_copied_again(shards: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    part = Part((str(shards),), str(output), settings(20, 0.01))
    part.run(silent)
    before, times = copied(output), [shard.stat().st_mtime_ns for shard in sorted(output.glob("*.tar"))]
    assert part.plan()[0].state == State.DONE
    part.run(silent)
    assert [shard.stat().st_mtime_ns for shard in sorted(output.glob("*.tar"))] == times
    next(iter(sorted(output.glob("*.tar")))).write_bytes(b"torn")
    part.run(silent)
    assert copied(output) == before


def test_the_same_shards_in_another_folder_give_the_same_images(shards: Path, tmp_path: Path) -> None:
    first, second = (Part((str(shards),), str(tmp_path / name), settings(20, 0.01)) for name in ("a", "b"))
    first.run(silent)
    moved = shards.rename(tmp_path / "elsewhere")
    second = Part((str(moved),), second.output, second.config)
    second.run(silent)
    assert copied(tmp_path / "a") == copied(tmp_path / "b")


def test_equal_keys_of_two_shards_are_told_apart(shards: Path, tmp_path: Path) -> None:
    (shards / "twin.tar").write_bytes((shards / "imagenet-train-0000.tar").read_bytes())
    Part((str(shards),), str(tmp_path / "out"), settings(65, 0.01)).run(silent)
    keys = copied(tmp_path / "out")
    assert len(keys) == 65 and sum("/" in key for key in keys) == 5


def test_shards_without_images_are_one_sentence(tmp_path: Path) -> None:
    tarfile.open(tmp_path / "a.tar", "w").close()
    with pytest.raises(ShoalError, match="no samples to write"):
        Part((str(tmp_path / "a.tar"),), str(tmp_path / "out"), settings(3, 0.5)).run(silent)


def test_many_shards_stand_for_all_and_are_not_copied() -> None:
    names = [f"s3://b/train-{number:04d}.tar" for number in range(160)]
    tenth, fifth = (shards_of_part(names, settings(1_000, part)) for part in (0.1, 0.2))
    assert tenth is not None and fifth is not None
    assert (len(tenth), len(fifth)) == (16, 32) and set(tenth) < set(fifth) < set(names)
    assert shards_of_part(names, settings(1_000, (ENOUGH - 1) / 160)) is None  # images are taken one by one
    assert len(shards_of_part(names, settings(None, 0.001)) or []) == 1  # nobody said how many they would be


def test_a_folder_gives_a_part_that_a_larger_part_has_too(tmp_path: Path) -> None:
    for sample in DIGITS:
        (tmp_path / f"{sample.key}.png").write_bytes(sample.image)
    small, large = (
        {image.path for image in PartOfFolder(str(tmp_path), "out", settings(None, part)).scan.images}
        for part in (0.25, 0.5)
    )
    assert (len(small), len(large)) == (15, 30) and small < large


def test_a_run_takes_the_part_whatever_it_is_given(shards: Path, tmp_path: Path) -> None:
    def job(source: Path, images: int | None, part: float) -> Run:
        return whole_job(str(source), str(tmp_path / "run"), settings(images, part))

    assert isinstance(job(shards, 20, 0.01).pack, Part)
    assert len(job(shards, None, 0.5).inputs) == 6
    assert job(shards, None, 1).inputs == (str(shards),)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(DIGITS[0].image)
    assert isinstance(job(tmp_path / "photos", None, 0.5).pack, PartOfFolder)
