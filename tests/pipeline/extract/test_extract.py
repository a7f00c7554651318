"""Extraction by real Ray workers, ended in every way a run can end."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray
from torch import Tensor

from models.backbones import BackboneConfig
from models.errors import ShoalError
from pipeline.extract.config import ExtractConfig
from pipeline.extract.extract import ExtractSummary, commit_groups, extract
from pipeline.extract.shard import ShardResult
from pipeline.ingest.decode import decode
from pipeline.tables.collection import Collection
from pipeline.tables.samples import embedding_matrix
from pipeline.tables.schema import TableError

ONE_BY_ONE = ExtractConfig(actors=1, batch_size=4, commit_interval_s=0)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, tar: Callable[..., str], png: Callable[..., bytes]) -> list[str]:
    """Five shards of eleven images, the last image of each damaged."""
    folder = tmp_path_factory.mktemp("shards")
    return [
        tar(folder / f"s{s}.tar", [(f"{s}-{i:02}.png", png(20 * s + i)[: 40 if i == 10 else None]) for i in range(11)])
        for s in range(5)
    ]


@pytest.fixture(scope="module")
def calls() -> list[tuple[str, int, int | None]]:
    return []


@pytest.fixture(scope="module")
def whole(
    ray_session: None,
    shards: list[str],
    pixels: BackboneConfig,
    calls: list[tuple[str, int, int | None]],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Collection, ExtractSummary]:
    """The table of a run that nothing interrupted, by two workers."""
    table = Collection.create(tmp_path_factory.mktemp("whole") / "table")
    config = ExtractConfig(actors=2, batch_size=4, commit_shards=2)
    return table, extract(shards, table, pixels, config, on_progress=lambda *call: calls.append(call))


def content(table: Collection) -> pa.Table:
    """Everything that readers see, in the order they see it."""
    samples = table.samples
    files = [file for status in ("ok", "rejected") for file in samples.files(status)]
    return pa.concat_tables([samples.read(file) for file in files])


def test_every_image_is_a_row_or_a_reject_in_the_order_of_the_shards(
    whole: tuple[Collection, ExtractSummary], shards: list[str]
) -> None:
    table, _ = whole
    rows = pa.concat_tables([table.samples.read(file) for file in table.samples.files()])
    assert rows["key"].to_pylist() == [f"{s}-{i:02}" for s in range(5) for i in range(10)]
    assert rows["shard"].to_pylist() == [shard for shard in shards for _ in range(10)]
    levels_N = np.array([20 * s + i for s in range(5) for i in range(10)], dtype=np.float32)
    np.testing.assert_allclose(embedding_matrix(rows), np.tile(levels_N[:, None] / 255, 192), rtol=1e-6)
    assert table.samples.rejects()["key"].to_pylist() == [f"{s}-10" for s in range(5)]


def test_offsets_find_the_image_in_the_shard(
    whole: tuple[Collection, ExtractSummary], png: Callable[..., bytes]
) -> None:
    table, _ = whole
    row = table.samples.read(table.samples.files()[3]).slice(7, 1).to_pylist()[0]
    assert Path(row["shard"]).read_bytes()[row["offset"] :][: row["size"]] == png(67)


def test_the_summary_and_the_shards_table_say_what_was_done(
    whole: tuple[Collection, ExtractSummary], shards: list[str]
) -> None:
    table, summary = whole
    assert (summary.images, summary.rejects) == (50, {"truncated_image": 5})
    assert (summary.shards_done, summary.shards_skipped, summary.shards_changed, summary.shards_failed) == (
        5,
        0,
        [],
        {},
    )
    assert [reject.key for reject in summary.examples] == [f"{s}-10" for s in range(5)]
    records = table.shards.records()
    assert sorted(records) == shards
    for shard, record in records.items():
        data = Path(shard).read_bytes()
        assert (record.size, record.checksum) == (len(data), "sha256:" + hashlib.sha256(data).hexdigest())
        assert (record.samples, record.rejects) == (10, 1)


def test_progress_counts_committed_shards(
    whole: tuple[Collection, ExtractSummary], calls: list[tuple[str, int, int | None]]
) -> None:
    committed = [(step.partition(",")[0], done, total) for step, done, total in calls]
    assert list(dict.fromkeys(committed)) == [
        ("extract", 0, 5),
        ("extract", 2, 5),
        ("extract", 4, 5),
        ("extract", 5, 5),
    ]


def test_a_second_run_has_nothing_to_do_and_commits_nothing(
    whole: tuple[Collection, ExtractSummary], shards: list[str], pixels: BackboneConfig
) -> None:
    table, _ = whole
    version = table.samples.version
    again = extract(shards, table, pixels, ONE_BY_ONE)
    assert (again.images, again.shards_done, again.shards_skipped) == (0, 0, 5)
    assert table.samples.version == version


def test_another_backbone_is_refused_by_name(whole: tuple[Collection, ExtractSummary], shards: list[str]) -> None:
    with pytest.raises(TableError, match=r"dimension 192 against 48"):
        extract(shards, whole[0], BackboneConfig(name="pixels", size=4), ONE_BY_ONE)


DRIVER = """
import os, signal, sys
from jobs.context import RayConfig, local_ray
from models.backbones import BackboneConfig
from pipeline.extract.extract import ExtractConfig, extract
from pipeline.tables.collection import Collection

address, table, *shards = sys.argv[1:]

def die(step, done, total):
    if done == 3:
        os.kill(os.getpid(), signal.SIGKILL)

with local_ray(RayConfig(address=address)):
    config = ExtractConfig(actors=1, batch_size=4, commit_shards=1)
    extract(shards, Collection.open(table), BackboneConfig(name="pixels", size=8), config, on_progress=die)
"""


@pytest.mark.slow
def test_runs_ended_by_an_error_by_sigkill_and_by_ctrl_c_and_then_finished_leave_what_one_run_leaves(
    whole: tuple[Collection, ExtractSummary], shards: list[str], pixels: BackboneConfig, tmp_path: Path
) -> None:
    table = Collection.create(tmp_path / "table")
    with pytest.raises(ShoalError, match="max_rejects = 1"):
        extract(shards, table, pixels, ONE_BY_ONE.model_copy(update={"max_rejects": 1}))
    assert len(table.samples.done_shards()) == 1

    address = ray.get_runtime_context().gcs_address
    driver = subprocess.run([sys.executable, "-c", DRIVER, address, str(table.path), *shards], timeout=300, check=False)
    assert driver.returncode == -signal.SIGKILL
    assert len(table.samples.done_shards()) == 3

    def interrupt(step: str, done: int, total: int | None) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(shards, table, pixels, ONE_BY_ONE, on_progress=interrupt)
    assert len(table.samples.done_shards()) == 4

    rest = extract(shards, table, pixels, ONE_BY_ONE)
    assert (rest.shards_done, rest.shards_skipped, rest.images) == (1, 4, 10)
    assert content(table).equals(content(whole[0]))
    assert table.shards.read().equals(whole[0].shards.read())


@pytest.mark.slow
def test_an_image_that_kills_its_worker_is_a_reject_and_all_others_are_rows(
    ray_session: None, tar: Callable[..., str], png: Callable[..., bytes], pixels: BackboneConfig, tmp_path: Path
) -> None:
    deaths = tmp_path / "deaths"

    def decoder(image: bytes) -> Tensor:
        if image.endswith(b"KILL"):
            with deaths.open("a") as log:
                log.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(image.removesuffix(b"KEEP"))

    images = [png(i) + b"KEEP" for i in range(12)]
    images[6] += b"KILL"
    bad = tar(tmp_path / "bad.tar", [(f"{i:02}.png", image) for i, image in enumerate(images)])
    good = tar(tmp_path / "good.tar", [("g.png", png(1))])
    gone = str(tmp_path / "gone.tar")
    table = Collection.create(tmp_path / "table")
    summary = extract([bad, good, gone], table, pixels, ONE_BY_ONE, decoder)

    keys = [key for file in table.samples.files() for key in table.samples.read(file)["key"].to_pylist()]
    assert keys == [f"{i:02}" for i in range(12) if i != 6] + ["g"]
    rejects = table.samples.rejects().select(["key", "shard", "reason"]).to_pylist()
    assert rejects == [{"key": "06", "shard": bad, "reason": "kills_decoder"}]
    assert deaths.read_text() == "xxx"  # one to notice, two to convict
    assert list(summary.shards_failed) == [gone]
    assert table.samples.done_shards() == {bad, good}


@pytest.mark.slow
def test_a_ledger_that_is_killed_stops_nothing(
    ray_session: None,
    shards: list[str],
    whole: tuple[Collection, ExtractSummary],
    pixels: BackboneConfig,
    tmp_path: Path,
) -> None:
    killed = tmp_path / "killed"

    def decoder(image: bytes) -> Tensor:
        if not killed.exists():
            siblings = Path(f"/proc/{os.getppid()}/task/{os.getppid()}/children").read_text().split()  # of one raylet
            titles = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in siblings}
            [ledger] = [pid for pid, title in titles.items() if title.startswith(b"ray::Ledger")]
            killed.write_text(ledger)
            os.kill(int(ledger), signal.SIGKILL)
        return decode(image)

    table = Collection.create(tmp_path / "table")
    extract(shards, table, pixels, ExtractConfig(actors=1, batch_size=4), decoder)
    assert killed.exists()
    assert content(table).equals(content(whole[0]))


def test_results_are_grouped_by_number_or_by_time() -> None:
    results = [ShardResult(f"{i}") for i in range(5)]
    patient, hasty = ExtractConfig(commit_shards=2), ExtractConfig(commit_shards=2, commit_interval_s=0)
    assert [len(group) for group in commit_groups(results, patient, tail=5)] == [2, 2, 1]
    assert [len(group) for group in commit_groups(results, hasty, tail=5)] == [1] * 5


def test_nothing_waits_for_a_group_to_fill_when_all_that_is_left_is_being_read() -> None:
    results = [ShardResult(f"{i}") for i in range(9)]
    assert [len(group) for group in commit_groups(results, ExtractConfig(commit_shards=4), tail=6)] == [4, 3, 1, 1]


def test_groups_grow_when_commits_take_long() -> None:
    now = [0.0]

    def results() -> Iterator[ShardResult]:
        for i in range(100):
            now[0] += 1
            yield ShardResult(f"{i}")

    sizes = []
    for group in commit_groups(results(), ExtractConfig(commit_shards=2), tail=100, clock=lambda: now[0]):
        sizes.append(len(group))
        now[0] += 2 if len(sizes) == 1 else 0
    assert sizes[:3] == [2, 18, 2]  # 18 s of results for a commit of 2 s


def test_a_fatal_result_ends_the_run_with_its_sentence_and_what_came_before_is_kept() -> None:
    kept: list[ShardResult] = []
    with pytest.raises(ShoalError, match=r"^No room left\.$"):
        results = [ShardResult("a"), ShardResult("b", fatal="No room left.")]
        for group in commit_groups(results, ExtractConfig(), tail=2):
            kept += group
    assert [result.shard for result in kept] == ["a"]
