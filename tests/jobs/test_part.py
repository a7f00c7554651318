"""Which images a scaled run takes: so many, always the same, of several shards, and kept once they are copied."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

import pytest

from jobs.config import RunConfig, resolve
from jobs.folder import RunFolder
from jobs.part import ENOUGH, Part, PartOfFolder, shards_of_part
from jobs.run import Run, RunOfPart, whole_job
from jobs.steps import State
from models.errors import ShoalError
from pipeline.ingest.digits import digits
from pipeline.ingest.shards import Sample, read_samples
from pipeline.ingest.write import write_samples
from pipeline.progress import silent
from pipeline.tables.collection import Collection
from pipeline.tables.samples import TableProperties
from pipeline.train.learn_folder import LearnFolder

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
        Part((str(tmp_path / "a.tar"),), str(tmp_path / "out"), settings(30, 0.5)).run(silent)


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
        for part in (0.3, 0.5)
    )
    assert (len(small), len(large)) == (18, 30) and small < large


def test_a_run_takes_the_part_whatever_it_is_given(shards: Path, tmp_path: Path) -> None:
    def job(source: Path, images: int | None, part: float) -> Run:
        found = whole_job(str(source), str(tmp_path / "run"), settings(images, part))
        return found.run_of_it if isinstance(found, RunOfPart) else found

    assert isinstance(job(shards, 20, 0.01).pack, Part)
    assert len(job(shards, None, 0.5).inputs) == 6
    assert job(shards, None, 1).inputs == (str(shards),)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(DIGITS[0].image)
    assert isinstance(job(tmp_path / "photos", None, 0.5).pack, PartOfFolder)


def test_other_images_under_the_same_names_are_another_part_and_a_moved_folder_is_the_same(
    shards: Path, tmp_path: Path
) -> None:
    def named(folder: Path | str) -> str:
        return Part((str(folder),), str(tmp_path / "out"), settings(20, 0.01)).fingerprint()

    first = named(shards)
    other = tmp_path / "other" / "shards"
    shutil.copytree(shards, other)
    assert named(other) == first
    (other / "imagenet-train-0003.tar").write_bytes((shards / "imagenet-train-0000.tar").read_bytes() + bytes(512))
    assert named(other) != first
    (other / "imagenet-train-0003.tar").unlink()
    assert named(other) != first
    assert named("s3://b/one/t-{0..3}.tar") != named("s3://b/two/t-{0..3}.tar")  # and nothing was asked of a store


def test_what_some_shards_lack_the_others_give(tmp_path: Path) -> None:
    """Of shards of 1, 1, 1 and 27 digits, a fourth of 20 each would be 8."""
    for name, begin, end in (("a", 0, 1), ("b", 1, 2), ("c", 2, 3), ("d", 3, 30)):
        write_samples(DIGITS[begin:end], tmp_path / name)
        (tmp_path / name / "shard-000000.tar").rename(tmp_path / f"{name}.tar")
    names = tuple(str(tmp_path / f"{name}.tar") for name in "abcd")
    Part(names, str(tmp_path / "out"), settings(20, 0.01)).run(silent)
    found = copied(tmp_path / "out")
    assert len(found) == 20 and not any("/" in key for key in found)


def test_of_a_folder_as_many_are_taken_as_the_settings_say_and_no_less_than_a_batch(tmp_path: Path) -> None:
    for sample in DIGITS:
        (tmp_path / f"{sample.key}.png").write_bytes(sample.image)

    def taken(images: int | None, part: float) -> int:
        return len(PartOfFolder(str(tmp_path), "out", settings(images, part)).scan.images)

    assert (taken(20, 0.001), taken(1_000, 0.001), taken(None, 0.5)) == (20, 60, 30)
    for images, part in ((15, 0.5), (None, 0.25 - 1e-2)):
        with pytest.raises(ShoalError, match=r"The part is 1[45] images, but .* 16 at least; give a larger scale"):
            taken(images, part)
    with pytest.raises(ShoalError, match="The part is 15 images"):
        Part(("s3://b/t.tar",), "out", settings(15, 0.5)).plan()


def embedded(output: Path) -> RunFolder:
    folder = RunFolder(str(output))
    folder.make()
    properties = TableProperties(dimension=1, backbone="b", backbone_digest="", l2_normalised=False, preprocessing={})
    Collection.create(folder.table).create_samples(properties)
    return folder


def test_a_part_and_the_whole_do_not_share_an_output(shards: Path, tmp_path: Path) -> None:
    def plan(source: Path, output: str, part: float) -> list[State]:
        job = whole_job(str(source), str(tmp_path / output), settings(20, part))
        return [step.state for step in job.plan()]

    folder = embedded(tmp_path / "part")
    packed = whole_job(str(shards), str(folder.path), settings(20, 0.01))
    assert isinstance(packed, RunOfPart) and isinstance(packed.run_of_it.pack, Part)
    packed.run_of_it.pack.run(silent)
    folder.record_images(packed.run_of_it.pack.fingerprint())
    with pytest.raises(ShoalError, match=r"was made of packed copies of images.*; give a new --output"):
        plan(shards, "part", 1)
    assert plan(folder.shards, "part", 1)  # its own are what it is of
    assert plan(folder.path / ".." / "part" / "shards", "part", 1)
    assert plan(shards, "part", 0.01)[0] == State.DONE
    embedded(tmp_path / "whole")
    with pytest.raises(ShoalError, match=r"was made of shards that were not packed there; give a new --output"):
        plan(shards, "whole", 0.01)


def test_images_that_change_while_a_backbone_is_learned_are_refused_before_they_are_packed(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for sample in DIGITS[:3]:
        (tmp_path / "photos" / f"{sample.key}.png").write_bytes(sample.image)
    job = whole_job(str(tmp_path / "photos"), str(tmp_path / "run"), RunConfig(learn=True))
    assert isinstance(job, Run) and job.pack is not None
    folder = RunFolder(job.output)
    folder.make()
    folder.record_images(job.pack.fingerprint())
    training = LearnFolder(folder.path / "train")
    training.mark()
    training.finish({})
    (tmp_path / "photos" / "new.png").write_bytes(DIGITS[5].image)
    with pytest.raises(ShoalError, match=r"images, or how they are packed, changed since"):
        whole_job(str(tmp_path / "photos"), job.output, job.config).run(silent)
    assert not folder.shards.exists()


def test_new_shards_of_a_learned_run_are_sent_to_the_backbone_it_learned(shards: Path, tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path / "run"))
    folder.make()
    training = LearnFolder(folder.path / "train")
    training.claim({"input": {"shards": 11, "names": "0"}}, "i")
    training.finish({})
    with pytest.raises(ShoalError, match=r"from 11 shards, and these are 12, .* with --backbone .*/run/train, or"):
        whole_job(str(shards), str(folder.path), RunConfig(learn=True)).plan()


def test_a_part_is_planned_without_a_store_and_not_copied_into_one() -> None:
    shards = "s3://bucket/imagenet-train-{0000..0146}.tar"
    job = whole_job(shards, "s3://bucket/run", resolve(Path("imagenet_full"), ["scale=0.001"]))
    first, *others = job.plan()
    assert first.step == "shards" and first.what.startswith("not looked at: Images are packed into shards on a disk")
    assert len(first.what) == len("not looked at: ") + 100 and others[0].estimate is not None
    with pytest.raises(ShoalError, match=r"--output s3://bucket/run is an object store; give a local one"):
        job.run(silent)
