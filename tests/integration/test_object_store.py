"""Shards, tables and artifacts on a real S3 server: the same results as on a disk, whatever fails or races."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from object_store import DROPPED, FORBIDDEN, REFUSED, ObjectStore
from typer.testing import CliRunner, Result

from jobs.cli import app
from models.errors import ShoalError
from pipeline.cluster.published import published
from pipeline.ingest.digits import digits
from pipeline.ingest.shards import Sample, ShardSummary, read_samples
from pipeline.ingest.write import ShardConfig, write_samples
from pipeline.tables.artifacts import MANIFEST, TENSORS
from pipeline.tables.collection import Collection
from pipeline.tables.imports import import_files
from pipeline.tables.place import children, place
from pipeline.tables.samples import TableProperties, embedding_matrix
from pipeline.tables.schema import REJECTED, TableError
from pipeline.train.checkpoints import Checkpoint, CheckpointStore

SETTINGS = (
    "backbone.name=pixels",
    "backbone.size=8",
    "backbone.grey=true",
    "cluster.reduce.kind=pca",
    "cluster.reduce.n_components=8",
    "extract.actors=1",
    "extract.commit_shards=2",
    "baseline=false",
    "report.map_rows=0",
    "report.typical=2",
    "report.uncertain=0",
)
SETS = [part for setting in SETTINGS for part in ("--set", setting)]
PROPERTIES = TableProperties(
    dimension=2, backbone="imported", backbone_digest="", l2_normalised=False, preprocessing={}
)
ONE_RAY = """
import json, sys
from typer.testing import CliRunner
from jobs.cli import app
from jobs.context import RayConfig, local_ray
with local_ray(RayConfig(num_cpus=2)):
    for command in json.loads(sys.argv[1]):
        result = CliRunner().invoke(app, command)
        print(result.output)
        assert result.exit_code == 0, (command, result.exception)
"""


def shoal(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def done(*arguments: object) -> str:
    """Run a command in process; what it printed, having checked that it ended well."""
    result = shoal(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def labels(table: object) -> dict[str, int]:
    """Cluster by key, of the last generation."""
    assigned = published(Collection.open(str(table)), "dpm").assigned()
    return dict(zip(assigned["key"].to_pylist(), assigned["cluster"].to_pylist(), strict=True))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """160 handwritten digits in four shards."""
    folder = tmp_path_factory.mktemp("digits") / "shards"
    return write_samples(islice(digits(), 160), folder, ShardConfig(images_per_shard=40))


def upload(paths: list[Path], folder: str) -> None:
    for path in paths:
        (place(folder) / path.name).write_bytes(path.read_bytes())


def in_a_ray(*arguments: object) -> None:
    """Run a command in a process whose Ray has this test's environment, and check that it ended well."""
    commands = json.dumps([[str(argument) for argument in arguments]])
    child = subprocess.run(
        [sys.executable, "-c", ONE_RAY, commands], capture_output=True, text=True, check=False, timeout=500
    )
    assert child.returncode == 0, child.stdout + child.stderr


@pytest.mark.slow
def test_shards_of_a_store_are_extracted_into_a_table_there(bucket: ObjectStore, shards: list[Path]) -> None:
    upload(shards[:2], f"{bucket.url}/shards")
    remote = f"{bucket.url}/a table"
    in_a_ray("extract", f"{bucket.url}/shards", "--output", remote, *SETS)
    table = Collection.open(remote)
    names = {f"{bucket.url}/shards/{shard.name}" for shard in shards[:2]}
    assert (table.samples.done_shards(), table.samples.count(), table.samples.count(REJECTED)) == (names, 80, 0)
    assert set(table.shards.records()) == names
    keys = [key for file in table.samples.files() for key in table.samples.read(file)["key"].to_pylist()]
    expected = [each.key for shard in shards[:2] for each in read_samples(str(shard)) if isinstance(each, Sample)]
    assert keys == expected
    assert "done, skipped" in done("extract", f"{bucket.url}/shards", "--output", remote, "--dry-run", *SETS)


@pytest.mark.slow
def test_images_to_report_is_the_same_as_on_a_disk(
    bucket: ObjectStore, shards: list[Path], tmp_path: Path, ray_session: None
) -> None:
    upload(shards, f"{bucket.url}/shards")
    remote, local = f"{bucket.url}/a run", tmp_path / "run"
    in_a_ray("run", f"{bucket.url}/shards", "--output", remote, *SETS)
    done("run", shards[0].parent, "--output", local, *SETS)
    assert labels(remote) == labels(local)
    assert len(labels(remote)) == 160
    assert len(set(labels(remote).values())) > 1
    names = {each.name for each in children(place(remote))}
    assert names == {"config.yaml", "metrics.json", "report.html", "run.json", "table"}
    assert not (place(remote) / "table/unfinished/dpm").exists()
    assert (place(remote) / "report.html").read_text().count('src="data:image/png') > 4
    scores = [json.loads((folder / "metrics.json").read_text())["scores"] for folder in (place(remote), local)]
    assert scores[0] == scores[1]
    assert f"{remote}/table" in done("show", remote)
    plan = done("run", f"{bucket.url}/shards", "--output", remote, "--dry-run", *SETS)
    assert plan.count("done, skipped") == 3, plan


@pytest.mark.slow
def test_several_workers_fit_a_table_in_a_store(bucket: ObjectStore, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(
        tmp_path / "a.npy", (9 * np.eye(4, 3)[np.arange(400) % 4] + rng.normal(0, 0.3, (400, 3))).astype(np.float32)
    )
    tables = [f"{bucket.url}/one", f"{bucket.url}/two"]
    for table in tables:
        done("import", tmp_path / "a.npy", "--output", table)
    done("cluster", tables[0])
    in_a_ray("cluster", tables[1], "--set", "cluster.fit.workers=2")
    assert labels(tables[1]) == labels(tables[0])
    assert bucket.count(r"^PUT .*/two/unfinished/dpm/.*/\d{9}\.json") > 0
    assert not (place(tables[1]) / "unfinished/dpm").exists()


@pytest.mark.slow
def test_embeddings_to_report_without_a_ray(bucket: ObjectStore, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    label_N = np.repeat(np.arange(4), 50)
    x_ND = (9 * np.eye(4, 3)[label_N] + rng.normal(0, 0.3, (200, 3))).astype(np.float32)
    np.savez(tmp_path / "a.npz", embedding=x_ND, label=label_N.astype(str))
    np.savez(tmp_path / "b.npz", embedding=x_ND[::5], label=label_N[::5].astype(str))
    remote, local = f"{bucket.url}/t", f"{tmp_path}/t"
    for table in (remote, local):
        done("import", tmp_path / "a.npz", "--output", table)
        done("cluster", table)
        done("import", tmp_path / "b.npz", "--output", table)
        assert "40 new rows of 240" in done("assign", table, "--dry-run")
        done("assign", table)
    assert labels(remote) == labels(local)
    assert len(set(labels(remote).values())) == 4
    assert "done, skipped" in done("assign", remote, "--dry-run")
    shown = done("show", remote)
    assert [word in shown for word in (remote, "assign only", "240")] == [True] * 3
    (artifact,) = Collection.open(remote).artifacts.list()
    assert "artifact: dpm" in done("show", artifact)
    other = f"{bucket.url}/other"
    done("import", tmp_path / "b.npz", "--output", other)
    done("assign", other, "--artifact", artifact)
    assert "nmi" in done("evaluate", other)
    done("report", other, "--set", "report.map_rows=0", "--output", f"{bucket.url}/page.html")
    assert "40 images" in (place(bucket.url) / "page.html").read_text()


@pytest.mark.parametrize("kind", [REFUSED, DROPPED])
def test_reads_of_a_shard_that_fail_twice_lose_nothing(bucket: ObjectStore, shards: list[Path], kind: str) -> None:
    def read(shard: str) -> tuple[list[Any], ShardSummary]:
        reader = read_samples(shard)
        samples = list(reader)
        return [(each.key, each.image) for each in samples if isinstance(each, Sample)], reader.summary

    upload(shards[:1], bucket.url)
    bucket.fail("^HEAD .*tar", kind)
    bucket.fail("^GET .*tar", kind)
    samples, summary = read(f"{bucket.url}/{shards[0].name}")
    expected, on_disk = read(str(shards[0]))
    assert samples == expected
    assert (len(samples), summary.rejects, summary.checksum) == (40, 0, on_disk.checksum)
    assert len(bucket.failed) == 4


@pytest.mark.slow
@pytest.mark.parametrize("kind", [REFUSED, DROPPED])
def test_an_import_of_which_every_kind_of_request_fails_twice_loses_nothing(
    bucket: ObjectStore, tmp_path: Path, kind: str
) -> None:
    x_ND = np.arange(20, dtype=np.float32).reshape(10, 2)
    np.save(tmp_path / "a.npy", x_ND)
    lines = [
        r"^PUT .*/shoal\.json",
        "^PUT .*parquet",
        r"^PUT .*samples/_delta_log/0+\.json",
        r"^PUT .*samples/_delta_log/0+1\.json",
        "^GET .*samples.*list-type|^GET .*list-type.*samples",
        "^GET .*parquet",
        r"^GET .*_delta_log/.*\.json",
    ]
    for line in lines:
        bucket.fail(line, kind)
    import_files([tmp_path / "a.npy"], f"{bucket.url}/t")
    there = Collection.open(f"{bucket.url}/t").samples
    (file,) = there.files()
    np.testing.assert_array_equal(embedding_matrix(there.read(file)), x_ND)
    assert len(bucket.failed) == 2 * len(lines)


def race(bucket: ObjectStore, folder: Path, *writers: str) -> list[int | str]:
    """Imports of these files, whose commits of rows reach the store together: rows of each, or its error."""

    def write(name: str) -> int | str:
        try:
            return import_files([folder / f"{name}.npy"], f"{bucket.url}/t").rows
        except TableError as error:
            return str(error)

    for name in set(writers):
        np.save(folder / f"{name}.npy", np.ones((4, 2), np.float32))
    Collection.create(f"{bucket.url}/t").create_samples(PROPERTIES)
    bucket.race(r"^PUT .*samples/_delta_log/0+1\.json", len(writers))
    with ThreadPoolExecutor(len(writers)) as threads:
        outcome = sorted(threads.map(write, writers), key=str)
    assert not any(meeting.left for meeting in bucket.meetings), "the writers did not meet"
    return outcome


def test_of_two_writers_of_one_shard_exactly_one_wins(bucket: ObjectStore, tmp_path: Path) -> None:
    rows, refusal = race(bucket, tmp_path, "a", "a")
    assert rows == 4
    assert str(refusal).startswith("This writer lost a race: 1 of 1 shards were committed by another one, first ")
    there = Collection.open(f"{bucket.url}/t").samples
    assert (there.version, there.count()) == (1, 4)


@pytest.mark.slow
def test_writers_of_different_shards_all_end_up_in_the_table(bucket: ObjectStore, tmp_path: Path) -> None:
    assert race(bucket, tmp_path, "a", "b", "c") == [4, 4, 4]
    table = Collection.open(f"{bucket.url}/t")
    shards = {str(tmp_path / f"{name}.npy") for name in "abc"}
    assert (table.samples.done_shards(), table.samples.count(), table.samples.version) == (shards, 12, 3)
    assert set(table.shards.records()) == shards


def test_an_artifact_is_there_when_its_manifest_is(bucket: ObjectStore) -> None:
    artifacts = Collection.create(f"{bucket.url}/t").artifacts
    tensors = {"x": np.arange(3.0)}
    bucket.fail(f"^PUT .*/{MANIFEST}", FORBIDDEN, times=1)
    with pytest.raises(TableError, match=f"Artifact {bucket.url}/t/artifacts/dpm-.* cannot be written"):
        artifacts.write("dpm", {"k": 1}, tensors)
    assert bucket.count(f"^PUT .*/{TENSORS}") == 1
    assert artifacts.list() == []
    written = artifacts.write("dpm", {"k": 1}, tensors)
    assert [each.name for each in artifacts.list()] == [f"dpm-{written.digest[:12]}"]
    puts = bucket.count("^PUT")
    assert artifacts.write("dpm", {"k": 1}, tensors).digest == written.digest
    assert bucket.count("^PUT") == puts
    for which in (written.digest[:8], artifacts.list()[0].name, artifacts.list()[0]):
        np.testing.assert_array_equal(artifacts.read(which).tensors["x"], tensors["x"])
    (artifacts.list()[0] / TENSORS).write_bytes(b"other")
    with pytest.raises(TableError, match="its content changed"):
        artifacts.read(written.digest)


def test_a_checkpoint_is_there_when_its_manifest_is(bucket: ObjectStore) -> None:
    store = CheckpointStore(f"{bucket.url}/run", "mine")
    assert (store.latest(), store.newest) == (None, -1)
    for number in range(4):
        store.save(Checkpoint(number, {"n": number}, {"x": torch.full((3,), float(number))}))
    assert sorted(each.name[:9] for each in children(store.folder)) == [f"{n:09d}" for n in (0, 0, 2, 2, 3, 3)]
    bucket.fail(r"^PUT .*/000000004\.json", FORBIDDEN, times=1)
    with pytest.raises(ShoalError, match="A checkpoint cannot be written to s3://"):
        store.save(Checkpoint(4, {}, {"x": torch.zeros(3)}))
    assert bucket.count(r"^PUT .*/000000004-.*safetensors") == 1
    found = CheckpointStore(f"{bucket.url}/run", "mine").latest()
    assert found is not None
    assert (found.number, found.record, found.tensors["x"].tolist()) == (3, {"n": 3}, [3.0] * 3)
    with pytest.raises(ShoalError, match=f"The checkpoints in {bucket.url}/run are of another run"):
        CheckpointStore(f"{bucket.url}/run", "yours").latest()


def test_what_belongs_to_somebody_else_is_left_alone(bucket: ObjectStore, tmp_path: Path) -> None:
    (place(bucket.url) / "theirs/thesis.tex").write_text("words")
    before = bucket.count("^(PUT|POST|DELETE)")
    for command, sentence in (
        (("extract", bucket.url, "--output", f"{bucket.url}/theirs"), "holds no *.tar"),
        (("run", bucket.url, "--output", f"{bucket.url}/theirs"), "belongs to something else: it holds thesis.tex;"),
        (("cluster", f"{bucket.url}/theirs"), "is no shoal table but a folder that holds thesis.tex;"),
        (("cluster", f"{bucket.url}/theirs/thesis.tex"), "is no shoal table but a file;"),
        (("cluster", f"{bucket.url}/none"), "There is nothing at s3://"),
        (("show", f"{bucket.url}/none"), "There is nothing at s3://"),
        (("cluster", "s3://no-such-bucket/t"), "There is nothing at s3://no-such-bucket/t;"),
        (("run", tmp_path, "--output", f"{bucket.url}/new"), "packed into shards on a disk, but --output s3://"),
        (("shards", tmp_path, "--output", f"{bucket.url}/new"), "packed into shards on a disk, but --output s3://"),
        (("demo", "--output", f"{bucket.url}/new"), "packed into shards on a disk, but --output s3://"),
        (("import", f"{bucket.url}/a.npz", "--output", f"{bucket.url}/new"), "is a URL; download the file first"),
        (
            ("import", f"{bucket.url}/a.npz", "--output", f"{bucket.url}/new", "--dry-run"),
            "is a URL; download the file first",
        ),
    ):
        result = shoal(*command)
        assert (result.exit_code, sentence in result.output) == (2, True), (command, result.output)
    with pytest.raises(TableError, match=r"not empty: it holds thesis\.tex; give an empty folder"):
        Collection.create(f"{bucket.url}/theirs")
    assert bucket.count("^(PUT|POST|DELETE)") == before


@pytest.mark.slow
def test_no_credential_is_written_or_told(bucket: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((4, 2), np.float32))
    import_files([tmp_path / "a.npy"], f"{bucket.url}/t")
    Collection.open(f"{bucket.url}/t").artifacts.write("dpm", {}, {})
    names = [place(bucket.url)]
    content = b""
    while names:
        each = names.pop()
        names += children(each) if each.is_dir() else []
        content += each.read_bytes() if each.is_file() else b""
    assert b"shoal-table" in content
    assert b"of-tests" not in content  # neither key nor secret
    for line in ("/_delta_log/", "^PUT .*artifact"):
        bucket.fail(line, FORBIDDEN, times=100)
        told = shoal("cluster", f"{bucket.url}/t")
        assert told.exit_code == 2, told.output
        assert "*** may not" in told.output
        assert "the-secret" not in told.output
        bucket.faults.clear()
