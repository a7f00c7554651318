"""After a take-down no byte on the disk names a sample, and every version is still a version."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from object_store import ObjectStore

from pipeline.tables.clusterings import Clustering, Generation
from pipeline.tables.collection import Collection
from pipeline.tables.delta import Change, Delta, Layout, WrittenFile
from pipeline.tables.place import Place, children, place, write_whole
from pipeline.tables.samples import SamplesTable, TableProperties
from pipeline.tables.schema import TableError
from pipeline.tables.scrub import scrub

Rows = Callable[..., pa.Table]
Publish = Callable[..., Generation]

LAYOUT = Layout(pa.schema([pa.field("key", pa.string(), False)]), statistics=("key",))
AWKWARD = 'ü"\\ %41\n'


@pytest.fixture
def table(tmp_path: Path) -> Delta:
    table = Delta(tmp_path / "t", LAYOUT)
    table.create()
    return table


def _write(table: Delta, *keys: str) -> WrittenFile:
    return table.write(pa.table({"key": list(keys)}))


def _commit(table: Delta, *added: WrittenFile, removed: tuple[WrittenFile, ...] = ()) -> int:
    return table.commit(lambda present: Change(added, removed))


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def _says(path: Path, key: str) -> bool:
    """Whether a file has a key in its bytes, escaped or not, or in what its columns decode to."""
    texts = [path.read_bytes().decode(errors="replace")]
    if path.suffix == ".parquet":
        texts += map(str, pq.read_table(path).to_pylist())
    escaped = json.dumps(key)[1:-1]
    return any(each in text for text in texts for each in (key, escaped, json.dumps(escaped)[1:-1], repr(key)[1:-1]))


def _naming(folder: Path, key: str) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in _files(folder) if _says(path, key)]


def _versions(table: Delta) -> list[set[str]]:
    return [set(DeltaTable(table.path, version=version).file_uris()) for version in range(table.version + 1)]


def _taken_down(table: Delta, key: str = "secret") -> WrittenFile:
    """Four versions, the last without a file that has `key` for its smallest key; the file itself is deleted."""
    gone, other = _write(table, key, "zz"), _write(table, "a", "b")
    _commit(table, gone)
    _commit(table, other)
    _commit(table, _write(table, "zz"), removed=(gone,))
    table.discard([gone])
    return gone


@pytest.mark.parametrize("key", ["secret", AWKWARD])
def test_bounds_of_files_that_are_gone_are_taken_out(table: Delta, key: str) -> None:
    gone = _taken_down(table, key)
    folder, before = Path(table.path), _versions(table)
    commits = {path: path.read_bytes() for path in _files(folder)}
    assert _naming(folder, key) == [f"_delta_log/{1:020d}.json"]
    scrub(table, {key, "of nobody"}, ())
    assert _naming(folder, key) == []
    assert _versions(table) == _versions(Delta(table.path, LAYOUT)) == before
    changed = [path.name for path, content in commits.items() if path.read_bytes() != content]
    assert changed == [f"{1:020d}.json"]
    (found,) = table.files(1)
    assert (found.path, found.rows, found.minimum, found.maximum) == (gone.path, 2, {"key": None}, {"key": None})


def test_what_a_version_that_counts_names_stays(table: Delta) -> None:
    _taken_down(table)
    content = [path.read_bytes() for path in _files(Path(table.path))]
    scrub(table, {"secret", "a"}, {1})
    scrub(table, {"a", "zz"}, {1})
    assert [path.read_bytes() for path in _files(Path(table.path))] == content
    scrub(table, {"a", "zz"}, ())  # "a" bounds a file of the newest version, "zz" one of it and one that is gone
    assert [(each.minimum["key"], each.maximum["key"]) for each in table.files(1)] == [(None, None)]
    assert sorted((each.minimum["key"], each.maximum["key"]) for each in table.files()) == [("a", "b"), ("zz", "zz")]


def _one_part(log: Path) -> list[Path]:
    return [log / f"{2:020d}.checkpoint.parquet"]


def _two_parts(log: Path) -> list[Path]:
    (whole,) = _one_part(log)
    rows = pq.read_table(whole)
    parts = [log / f"{2:020d}.checkpoint.{part:010d}.{2:010d}.parquet" for part in (1, 2)]
    pq.write_table(rows.slice(0, 2), parts[0])
    pq.write_table(rows.slice(2), parts[1])
    whole.unlink()
    (log / "_last_checkpoint").write_text(json.dumps({"version": 2, "size": rows.num_rows, "parts": 2}))
    return parts


def _second_kind(log: Path) -> list[Path]:
    (whole,) = _one_part(log)
    named = log / f"{2:020d}.checkpoint.80a083e8-7026-4e79-81be-64bd76c43a11.parquet"
    (log / "_sidecars").mkdir()
    side = log / "_sidecars" / "016ae953-37a9-438e-8683-9a9a4a79a395.parquet"
    shutil.copy(whole, side)
    whole.rename(named)
    (log / "_last_checkpoint").unlink()
    return [named, side]


@pytest.mark.parametrize("kind", [_one_part, _two_parts, _second_kind])
def test_checkpoints_before_are_replaced_by_one_of_now(table: Delta, kind: Callable[[Path], list[Path]]) -> None:
    gone = _write(table, "secret", "zz")
    _commit(table, gone)
    _commit(table, _write(table, "a"))
    table.checkpoint()
    log = Path(table.path, "_delta_log")
    old = kind(log)
    _commit(table, removed=(gone,))
    table.discard([gone])
    before = _versions(table)
    assert any(_says(path, "secret") for path in old)
    for _ in range(2):
        scrub(table, {"secret"}, {1, 2})
        scrub(table, {"secret"}, ())
        assert _naming(Path(table.path), "secret") == []
        assert [path for path in old if path.exists()] == []
        assert (log / f"{3:020d}.checkpoint.parquet").is_file()
        assert json.loads((log / "_last_checkpoint").read_text())["version"] == 3
        assert _versions(table) == before


def test_a_checkpoint_of_the_newest_version_is_made_again(table: Delta) -> None:
    _taken_down(table)
    table.checkpoint()
    scrub(table, {"secret"}, ())
    assert _naming(Path(table.path), "secret") == []
    assert sorted(row.minimum["key"] for row in Delta(table.path, LAYOUT).files()) == ["a", "zz"]


def test_copies_of_commits_and_what_crashes_left_of_them_go(table: Delta) -> None:
    _taken_down(table)
    log = Path(table.path, "_delta_log")
    first = (log / f"{1:020d}.json").read_bytes()
    copies = [f"{1:020d}.json#1", "_commit_0.json.tmp", f"{0:020d}.{1:020d}.compacted.json", f"{1:020d}.crc"]
    for name in copies:
        (log / name).write_bytes(first)
    (log / "_commit_1.json.tmp").write_bytes(first.replace(b"secret", b"others"))
    scrub(table, {"secret"}, ())
    assert _naming(Path(table.path), "secret") == []
    assert [path.name for path in sorted(log.iterdir())][4:] == ["_commit_1.json.tmp"]


def test_a_scrub_that_breaks_off_anywhere_is_finished_by_the_next(table: Delta, tmp_path: Path) -> None:
    gone = [_write(table, f"secret{number}", "zz") for number in range(2)]
    for file in gone:
        _commit(table, file)
    table.checkpoint()
    _commit(table, removed=tuple(gone))
    table.discard(gone)
    before = _versions(table)
    shutil.copytree(table.path, tmp_path / "as it was")
    for stop in range(5):
        shutil.rmtree(table.path)
        shutil.copytree(tmp_path / "as it was", table.path)
        again = Delta(table.path, LAYOUT)
        with pytest.MonkeyPatch.context() as patch:
            steps = _break_off(patch, stop)
            try:
                scrub(again, {"secret0", "secret1"}, ())
            except KeyboardInterrupt:
                assert len(steps) == stop
        assert _versions(again) == before
        scrub(again, {"secret0", "secret1"}, ())
        assert _naming(Path(table.path), "secret") == []
        assert _versions(again) == before
    assert steps == ["write", "write", "checkpoint", "unlink"]


def _break_off(patch: pytest.MonkeyPatch, stop: int) -> list[str]:
    """Break off before the step number `stop`."""
    steps: list[str] = []

    def breaking(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            if name != "unlink" or "checkpoint" in str(arguments[0]):  # not the scratch file of a write
                if len(steps) == stop:
                    raise KeyboardInterrupt
                steps.append(name)
            return real(*arguments, **named)

        return call

    patch.setattr("pipeline.tables.scrub.write_whole", breaking("write", write_whole))
    patch.setattr(Delta, "checkpoint", breaking("checkpoint", Delta.checkpoint))
    patch.setattr(Path, "unlink", breaking("unlink", Path.unlink))
    return steps


def test_a_log_that_another_tool_cleaned_up_is_scrubbed_if_no_earlier_version_counts(table: Delta) -> None:
    gone = _taken_down(table)
    table.checkpoint()
    kept = _write(table, "c")
    _commit(table, kept)
    log = Path(table.path, "_delta_log")
    for version in (0, 1):
        (log / f"{version:020d}.json").unlink()
    names = sorted(path.name for path in log.iterdir())
    with pytest.raises(TableError, match=r"has no commit 0, which another tool has deleted, so version 3 .* end the"):
        scrub(table, {"secret"}, {3})
    assert sorted(path.name for path in log.iterdir()) == names
    scrub(table, {"secret"}, {4})
    assert len(Delta(table.path, LAYOUT).files()) == 3
    assert gone.path not in {file.path for file in table.files()}


def test_there_is_nothing_to_scrub_where_there_is_no_table(tmp_path: Path) -> None:
    scrub(Delta(tmp_path / "t", LAYOUT), {"secret"}, ())
    assert list(tmp_path.iterdir()) == []


def _fill(samples: SamplesTable, rows: Rows) -> None:
    samples.commit(
        [samples.write(part) for part in (rows("a", range(3)), rows("a", range(3, 5)), rows("b", range(10, 12)))]
    )


def _take_down(collection: Collection, rows: Rows, publish: Publish) -> Clustering:
    """Publish two generations of all rows, take k000 and k004 away, publish a third, and end the others."""
    samples, clustering = collection.samples, collection.clustering("dpm")
    publish(clustering, 7)
    publish(clustering, 8, shards="a", parent=1)
    removed = samples.files()[:2]
    samples.replace(removed, [samples.write(rows("a", numbers)) for numbers in (range(1, 3), range(3, 4))])
    publish(clustering, 9, shards="a", parent=2)
    clustering.end([1, 2])
    samples.scrub({"k000", "k004"}, {clustering.generation(3).samples_version})
    clustering.scrub({"k000", "k004"})
    return clustering


def test_no_byte_of_a_collection_names_what_was_taken_down(
    collection: Collection, samples: SamplesTable, rows: Rows, publish: Publish
) -> None:
    _fill(samples, rows)
    clustering = _take_down(collection, rows, publish)
    folder = Path(str(collection.path))
    assert [_naming(folder, key) for key in ("k000", "k004")] == [[], []]
    assert _naming(folder, "k010") != []
    (third,) = Clustering(clustering.path).generations()
    read = [clustering.read_assignments(third, file) for file in samples.files(version=third.samples_version)]
    assert [table["cluster"].to_pylist() for table in read] == [[9, 9], [9], [7, 7]]
    assert clustering.clusters(third)["medoid_key"].to_pylist() == ["k001"]
    assert clustering.lineage()["cluster"].to_pylist() == [7, 8, 9]
    assert (samples.done_shards(), samples.count()) == ({"a", "b"}, 5)
    assert [file.rows for file in samples.files(version=1)] == [3, 2, 2]  # what it was, though no longer there
    for name in ("assignments", "clusters", "moves"):
        uris = DeltaTable(f"{clustering.path}/{name}", version=getattr(third, f"{name}_version")).file_uris()
        assert sum(pq.read_table(uri).num_rows for uri in uris) == {"assignments": 5, "clusters": 3, "moves": 1}[name]


def _objects(folder: Place) -> list[Place]:
    below = children(folder)
    return [each for each in below if each.is_file()] + [found for each in below for found in _objects(each)]


@pytest.mark.slow
def test_a_take_down_in_an_object_store(
    bucket: ObjectStore, properties: TableProperties, rows: Rows, publisher: Callable[[SamplesTable], Publish]
) -> None:
    remote = Collection.create(f"{bucket.url}/a table")
    samples = remote.create_samples(properties)
    _fill(samples, rows)
    samples._delta.checkpoint()
    clustering = _take_down(remote, rows, publisher(samples))
    content = [each.read_bytes() for each in _objects(place(str(remote.path)))]
    assert [sum(key in each for each in content) for key in (b"k000", b"k004")] == [0, 0]
    assert sum(b"k001" in each for each in content) > 0
    (third,) = Clustering(clustering.path).generations()
    assert clustering.counts(third) == {"assignments": 5, "clusters": 1, "moves": 1}
    assert [file.rows for file in samples.files(version=third.samples_version)] == [2, 1, 2]
