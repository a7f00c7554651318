from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from object_store import ObjectStore
from pyarrow.fs import copy_files
from safetensors.torch import load_file
from takedown import Rows, assigned, build, checkpoint_logs, medoids, traces, write_file

from models.errors import ShoalError
from pipeline.extract.resume import plan_shards
from pipeline.removal.journal import Journal
from pipeline.removal.remove import DELETE, RELEASE, _Removal, preview, remove
from pipeline.removal.targets import Targets
from pipeline.removal.traces import sweep_artifacts, sweep_data_files
from pipeline.tables.clusterings import Publication
from pipeline.tables.collection import Collection
from pipeline.tables.delta import conform
from pipeline.tables.imports import import_files
from pipeline.tables.place import children, place
from pipeline.tables.schema import CLUSTERS, MOVES, OK, REJECTED, REMOVED, TableError
from pipeline.tables.storage import open_filesystem
from pipeline.train.checkpoints import Checkpoint, CheckpointStore

Keys = list[str]
ASSIGNMENTS = "clusterings/kmeans/assignments"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("removal"))


@pytest.fixture
def table(built: Path, tmp_path: Path) -> Collection:
    """A copy, with all that may be beside its rows: checkpoints of logs and fits, and killed writers' files."""
    shutil.copytree(built.parent, tmp_path / "run")
    table = Collection.open(tmp_path / "run")
    checkpoint_logs(table)
    _leave_traces(table)
    return table


def _leave_traces(table: Collection) -> None:
    folder = Path(str(table.path))
    file = table.samples.files()[0]
    rows = table.samples.read(file)
    table.samples.write(rows)  # by an extraction that lost its race
    for name in table.clusterings():
        clustering = table.clustering(name)
        latest = clustering.latest()
        assert latest is not None
        clustering.write_assignments(clustering.read_assignments(latest, file), file)
        for digest in latest.digests:  # a fit that was killed before it published
            found = table.artifacts.read(digest)
            table.artifacts.write(found.kind, {**found.manifest, "by": "a fit that was killed"}, found.tensors)
        source = folder / "artifacts" / f"{table.artifacts.read(latest.artifact).kind}-{latest.artifact[:12]}"
        unfinished = folder / "artifacts" / f"{name}-0123456789ab"
        unfinished.mkdir()
        shutil.copy(source / "tensors.safetensors", unfinished / f"tensors.safetensors.{'0' * 32}")
        stopped = folder / "unfinished" / name / "0123"
        CheckpointStore(stopped, "run").save(Checkpoint(1, {}, load_file(source / "tensors.safetensors")))
    (folder.parent / "report.html").write_text("".join(rows["key"].to_pylist()))
    (folder.parent / f"report.html.{'0' * 32}").write_text("".join(rows["key"].to_pylist()))


def _taken(table: Collection, rows: Rows) -> Keys:
    """A medoid of each clustering, a cluster's only row, the first and last of a file, a reject, and its double."""
    keys = sorted(rows.x)
    chosen = {medoids(table, "kmeans")[0], medoids(table, "dpm")[-1], keys[0], keys[30], keys[-1]}
    rejects = table.samples.rejects()["key"].to_pylist()
    return sorted(chosen | set(rejects[:2]))


def _beside(table: Collection) -> list[Path]:
    return [Path(str(table.path)).parent / "report.html"]


def _check(table: Collection, before: Rows, labels: dict[str, dict[int, dict[str, int]]], keys: Keys) -> None:
    """Nothing is left of the keys; everything is left of the others."""
    assert traces(Path(str(table.path)).parent, before, keys) == []
    after = Rows.of(table)
    assert after.x == {key: x for key, x in before.x.items() if key not in keys}
    now = assigned(table)
    assert set(now) == set(labels)
    for name, generations in now.items():
        (only,) = generations.values()
        old = labels[name][max(labels[name])]
        assert only == {key: old[key] for key in after.x}
    assert not list((Path(str(table.path)) / "unfinished").rglob("*"))
    named = {digest for name in now for each in table.clustering(name).generations() for digest in each.digests}
    assert {path.name[-12:] for path in children(table.path / "artifacts")} == {digest[:12] for digest in named}
    assert table.samples.done_shards() == set(before.shard.values())


def test_nothing_on_disk_tells_of_a_removed_sample(table: Collection) -> None:
    before, labels = Rows.of(table), assigned(table)
    keys = _taken(table, before)
    tracks = traces(Path(str(table.path)).parent, before, keys)
    for kind in (
        "samples/_delta_log",
        "checkpoint.parquet",
        "report",
        "unfinished",
        "clusters/",
        "assignments/",
        "artif",
    ):
        assert any(kind in track for track in tracks), kind  # the search finds what is there
    found = preview(table, [(None, key) for key in keys])
    images = sum(key in before.x for key in keys)
    assert (found.images, found.ending) == (images, {"kmeans": [1, 2], "dpm": [1, 2]})
    summary = remove(table, [(None, key) for key in keys], beside=_beside(table))
    assert (summary.images, summary.rejects, summary.unknown) == (images, found.rejects, ())
    assert summary.ended == {"kmeans": [1, 2], "dpm": [1, 2]}
    assert summary.published == {"kmeans": 3, "dpm": 3}
    assert (summary.lost, summary.pending, summary.continued) == ({}, (), False)
    assert sum(summary.shards.values()) == len(keys)
    _check(table, before, labels, keys)
    samples = table.samples
    assert samples.count(REMOVED) == images + found.rejects
    assert samples.count() + samples.count(REJECTED) + samples.count(REMOVED) == 160
    _leave_traces(table)  # without rows that went
    again = remove(table, [(None, key) for key in keys], beside=_beside(table))
    assert (again.removed_before, again.images, again.ended, again.shards) == (len(keys), 0, {}, summary.shards)


@pytest.mark.slow
def test_what_a_fit_that_had_begun_before_leaves_behind_goes_with_the_same_command(
    table: Collection, tmp_path: Path
) -> None:
    before, labels = Rows.of(table), assigned(table)
    keys = _taken(table, before)
    folder = Path(str(table.path))
    shutil.copytree(folder / "artifacts", tmp_path / "artifacts")
    stopped = next((folder / "unfinished").rglob("*.safetensors"))
    shutil.copytree(folder / "unfinished", tmp_path / "unfinished")
    remove(table, [(None, key) for key in keys], beside=_beside(table))
    assert not stopped.exists()
    for part in ("artifacts", "unfinished"):
        shutil.copytree(tmp_path / part, folder / part, dirs_exist_ok=True)
    assert traces(folder, before, keys)
    remove(table, [(None, key) for key in keys])
    _check(table, before, labels, keys)


@pytest.mark.slow
def test_a_reject_goes_too_and_reports_can_be_made(table: Collection) -> None:
    before, labels = Rows.of(table), assigned(table)
    row = next(row for row in table.samples.rejects().to_pylist() if row["key"] not in before.x)
    summary = remove(table, [(row["shard"], row["key"])], beside=_beside(table))
    assert (summary.images, summary.rejects) == (0, 1)
    _check(table, before, labels, [row["key"]])
    for name in table.clusterings():
        for each in table.clustering(name).generations():
            assert row["key"] not in table.samples.rejects(each.samples_version)["key"].to_pylist()


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", RELEASE + DELETE)
@pytest.mark.slow
def test_killed_between_any_two_steps_it_is_completed(
    table: Collection, step: str, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, labels = Rows.of(table), assigned(table)
    keys = _taken(table, before)
    whole = getattr(_Removal, step)

    def killed(removal: _Removal) -> None:
        if after:
            whole(removal)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(_Removal, step, killed)
        remove(table, [(None, key) for key in keys], beside=_beside(table))
    assert all(assigned(table).values())  # whatever readers see is whole
    assert Journal(table).read() is not None
    summary = remove(table, [], beside=_beside(table))
    assert summary.continued
    _check(table, before, labels, keys)


def test_a_generation_whose_data_files_are_lost_ends_and_the_removal_is_completed(table: Collection) -> None:
    lost = list((Path(str(table.path)) / ASSIGNMENTS).glob("*.parquet"))
    for file in lost:
        file.unlink()
    summary = remove(table, [(None, sorted(Rows.of(table).x)[0])])
    assert any(file.name in summary.lost["kmeans"] for file in lost)
    assert summary.ended == {"kmeans": [1, 2], "dpm": [1, 2]}
    assert summary.published == {"dpm": 3}
    assert Journal(table).read() is None


def test_files_of_killed_writers_go_unless_a_log_names_them(table: Collection) -> None:
    folder = Path(str(table.path))
    for part in ("samples/status=ok", ASSIGNMENTS):
        source = next((folder / part).glob("*.parquet"))
        for suffix in (".parquet", ".parquet.partial"):
            (source.parent / f"{'0' * 32}{suffix}").write_bytes(source.read_bytes()[:-100])
    key, *others = sorted(Rows.of(table).x)
    summary = remove(table, [(None, key)])
    assert summary.files >= 4
    assert not [path for path in folder.rglob("*") if path.name.startswith("0" * 32)]
    assert sorted(Rows.of(table).x) == others
    named = next((folder / ASSIGNMENTS).rglob("*.parquet"))
    named.write_bytes(named.read_bytes()[:-100])
    with pytest.raises(TableError, match=f"{named.name} .* is damaged, and its table's log names it"):
        sweep_data_files(table, Targets.of([(None, key)]), Targets())
    assert named.exists()


@pytest.mark.slow
def test_what_cannot_be_deleted_is_told_and_the_removal_stays_unfinished(
    table: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(str(table.path)) / "unfinished"
    (folder / "linked").symlink_to(folder.parent.parent)
    key = sorted(Rows.of(table).x)[0]
    with monkeypatch.context() as patch, pytest.raises(TableError, match="cannot be deleted"):
        patch.setattr(os, "rmdir", _refuse)
        remove(table, [(None, key)])
    assert Journal(table).read() is not None
    assert remove(table, []).continued
    assert not folder.exists()
    assert Rows.of(table).x


def test_an_artifact_that_another_needs_by_a_nested_digest_stays(table: Collection) -> None:
    store, clustering = table.artifacts, table.clustering("kmeans")
    latest = clustering.latest()
    assert latest is not None
    tensors = {"x": np.zeros(2)}
    inner = store.write("statistics", {"samples_version": 0}, tensors)
    outer = store.write("statistics", {"samples_version": 0, "inputs": {"base": [inner.digest]}}, tensors)
    free = store.write("statistics", {"samples_version": 0, "alone": True}, tensors)
    number = clustering.begin()
    said = {name: getattr(latest, name) for name in Publication.model_fields if name != "parent"}
    record = Publication(**{**said, "statistics": outer.digest})
    clusters = pa.table({"generation": [number], "cluster": [0], "size": [1], "event": ["kept"]})
    assert clustering.publish(number, [], conform(clusters, CLUSTERS), MOVES.empty_table(), record)
    bare = store.write("statistics", {"samples_version": 0, "bare": True}, tensors)
    (store.path("statistics", bare.digest) / "tensors.safetensors").unlink()  # no reason to stop
    sweep_artifacts(table, lambda version: version == 0)
    held = {path.name[-12:] for path in children(store.root)}
    assert {inner.digest[:12], outer.digest[:12]} <= held
    assert free.digest[:12] not in held


def _refuse(path: str, **_: int) -> None:
    raise PermissionError(1, "Operation not permitted", path)


def test_unknown_keys_are_told_and_alone_refused(table: Collection) -> None:
    (version, key) = table.samples.version, sorted(Rows.of(table).x)[0]
    for wanted in ([(None, "no-such-key")], [("b.npz", key)]):
        with pytest.raises(ShoalError, match="None of the 1 keys is in the table"):
            remove(table, wanted)
    with pytest.raises(ShoalError, match="no key was given"):
        remove(table, [])
    assert (table.samples.version, Journal(table).read()) == (version, None)
    assert preview(table, [("a.npz", key), (None, "stranger")]).unknown == ((None, "stranger"),)


@pytest.mark.slow
def test_rows_that_arrive_meanwhile_go_too(table: Collection, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    late = write_file(tmp_path, "a", 60, 0)  # the keys of file a, under another name
    key = sorted(Rows.of(table).x)[0]
    publish = _Removal.publish_without

    def interrupted(removal: _Removal) -> None:
        import_files([late], table.path)
        publish(removal)

    monkeypatch.setattr(_Removal, "publish_without", interrupted)
    summary = remove(table, [(None, key)])
    assert summary.images == 2
    assert set(summary.shards) == {str(late), *(shard for shard in summary.shards if shard.endswith("/a.npz"))}
    assert key not in Rows.of(table).x
    assert table.samples.count(REMOVED) == 2


@pytest.mark.slow
def test_a_generation_of_the_rows_as_they_were_is_ended_when_it_comes_late(
    table: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, labels = Rows.of(table), assigned(table)
    key = sorted(before.x)[0]
    clustering = table.clustering("kmeans")
    latest = clustering.latest()
    assert latest is not None
    files = table.samples.files(version=latest.samples_version)
    old = [clustering.read_assignments(latest, file) for file in files]
    end = _Removal.end_generations

    def overtaken(removal: _Removal) -> None:
        end(removal)
        monkeypatch.setattr(_Removal, "end_generations", end)
        number = clustering.begin()
        written = [clustering.write_assignments(rows, file) for rows, file in zip(old, files, strict=True)]
        said = {name: getattr(latest, name) for name in Publication.model_fields if name != "parent"}
        record = Publication(**said)  # of a fit that began before the removal
        clusters = pa.table({"generation": [number], "cluster": [0], "size": [1], "event": ["kept"]})
        assert clustering.publish(number, written, conform(clusters, CLUSTERS), MOVES.empty_table(), record)

    monkeypatch.setattr(_Removal, "end_generations", overtaken)
    summary = remove(table, [(None, key)], beside=_beside(table))
    assert summary.ended["kmeans"] == [1, 2, 4]
    _check(table, before, labels, [key])


@pytest.mark.slow
def test_a_shard_whose_every_row_went_is_not_read_again(table: Collection) -> None:
    rows = Rows.of(table)
    (shard,) = {each for each in rows.shard.values() if each.endswith("c.npz")}
    keys = [key for key, each in rows.shard.items() if each == shard]
    rejects = [row["key"] for row in table.samples.rejects().to_pylist() if row["shard"] == shard]
    remove(table, [(shard, key) for key in [*keys, *rejects]])
    assert import_files([shard], table.path).skipped == 1
    assert plan_shards([shard], table, verify="never").skipped == [shard]  # as an extraction sees it
    assert {file.shard for file in table.samples.files(OK)} == set(rows.shard.values()) - {shard}


@pytest.mark.slow
def test_a_table_may_lose_every_row(table: Collection) -> None:
    rows = Rows.of(table)
    summary = remove(table, [(None, key) for key in rows.x], beside=_beside(table))
    assert (summary.images, table.samples.count(), table.clusterings()) == (len(rows.x), 0, [])
    assert traces(Path(str(table.path)).parent, rows, sorted(rows.x)) == []


CHILD = """
import os, signal, sys
from pipeline.removal.remove import remove
from pipeline.tables.collection import Collection

table, last, calls = Collection.open(sys.argv[1]), int(sys.argv[2]), 0

def count(frame, event, argument):
    global calls
    if event == "call" and "/pipeline/" in frame.f_code.co_filename:
        calls += 1
        if calls == last:
            os.kill(os.getpid(), signal.SIGKILL)

sys.setprofile(count)
remove(table, [(None, key) for key in sys.argv[3:]])
sys.setprofile(None)
print(calls)
"""


def _removed_elsewhere(table: Collection, keys: Keys, last: int) -> subprocess.CompletedProcess[bytes]:
    """Remove in another process, which is killed at the call number `last` of a function of ours."""
    command = [sys.executable, "-c", CHILD, str(table.path), str(last), *keys]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, env=environment, check=False, timeout=300)


@pytest.mark.slow
def test_a_process_killed_at_any_moment_leaves_whole_generations_and_is_completed(built: Path, tmp_path: Path) -> None:
    kills, calls = 6, 0
    for attempt in range(kills + 1):
        shutil.copytree(built.parent, tmp_path / f"{attempt}")
        table = Collection.open(tmp_path / f"{attempt}")
        before, labels = Rows.of(table), assigned(table)
        keys = _taken(table, before)
        done = _removed_elsewhere(table, keys, last=calls * attempt // (kills + 1))
        if attempt == 0:
            assert done.returncode == 0, done.stderr
            calls = int(done.stdout)
        else:
            assert done.returncode == -signal.SIGKILL
            seen = assigned(table)
            assert all(
                labels[name][number] == each for name in seen for number, each in seen[name].items() if number < 3
            )
            remove(table, [(None, key) for key in keys])
        _check(table, before, labels, keys)
        shutil.rmtree(tmp_path / f"{attempt}")


@pytest.mark.slow
def test_in_an_object_store_too_nothing_is_left(bucket: ObjectStore, built: Path, tmp_path: Path) -> None:
    filesystem, remote = open_filesystem(f"{bucket.url}/run")
    copy_files(str(built.parent), remote, destination_filesystem=filesystem)
    table = Collection.open(f"{bucket.url}/run")
    before, labels = Rows.of(table), assigned(table)
    keys = _taken(table, before)
    report = place(f"{bucket.url}/run/report.html")
    report.write_bytes(keys[0].encode())
    remove(table, [(None, key) for key in keys], beside=[report])
    copy_files(remote, str(tmp_path / "run"), source_filesystem=filesystem)
    assert len(list((tmp_path / "run").rglob("*.json"))) > 10
    _check(Collection.open(tmp_path / "run"), before, labels, keys)
