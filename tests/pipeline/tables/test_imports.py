"""Imported files become rows, once; bad rows become counted rejects, bad files a sentence."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.tables import formats
from pipeline.tables.collection import Collection
from pipeline.tables.imports import ImportSummary, import_files
from pipeline.tables.samples import SamplesTable, embedding_matrix
from pipeline.tables.schema import TableError
from pipeline.tables.shards import ShardRecord

NAN, INF = float("nan"), float("inf")


def _npy(path: Path, rows: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.array(rows, dtype=np.float32))
    return path


def _rows(table: SamplesTable) -> list[tuple[str, str, str | None, list[float]]]:
    read = [row for file in table.files() for row in table.read(file).to_pylist()]
    return [(Path(row["shard"]).name, row["key"], row["label"], row["embedding"]) for row in read]


def _rejects(table: SamplesTable) -> list[tuple[str, str, str | None]]:
    return [(row["key"], row["reason"], row["detail"]) for row in table.rejects().to_pylist()]


def test_rows_of_a_file_become_samples(tmp_path: Path) -> None:
    file = _npy(tmp_path / "x.npy", [[1, 2], [3, 4]])
    summary = import_files([file], tmp_path / "t")
    table = Collection.open(tmp_path / "t").samples
    assert summary == ImportSummary(files=1, skipped=0, rows=2, rejects={}, dimension=2, version=table.version)
    assert _rows(table) == [("x.npy", "000000000000", None, [1, 2]), ("x.npy", "000000000001", None, [3, 4])]
    (read,) = [table.read(file) for file in table.files()]
    assert read["shard"].to_pylist() == [str(file.resolve())] * 2
    assert read["offset"].null_count == read["size"].null_count == 2
    assert table.properties.backbone == "imported"
    assert table.properties.l2_normalised is False


def test_bad_rows_are_rejected_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    vectors = [[1.0, 2.0], [NAN, INF], None, [5.0, -INF], [6.0, 6.0], [7.0, 7.0], [NAN, 0.0]]
    keys = ["a", "b", "c", "d", "a", "b", "a"]
    pq.write_table(pa.table({"embedding": vectors, "key": keys, "label": list("0123456")}), path)
    summary = import_files([path], tmp_path / "t")
    table = Collection.open(tmp_path / "t").samples
    assert summary.rejects == {"non_finite_embedding": 3, "duplicate_key": 3}
    assert _rows(table) == [("x.parquet", "a", "0", [1.0, 2.0])]
    assert _rejects(table) == [
        ("b", "non_finite_embedding", "2 of 2 values are NaN or infinite"),
        ("c", "non_finite_embedding", "2 of 2 values are NaN or infinite"),
        ("d", "non_finite_embedding", "1 of 2 values are NaN or infinite"),
        ("a", "duplicate_key", None),
        ("b", "duplicate_key", None),  # also of a row that was itself rejected
        ("a", "duplicate_key", None),
    ]
    assert table.rejects()["label"].to_pylist() == list("123456")


def test_a_float64_beyond_float32_is_not_finite(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([[1e300, 1.0], [1.0, 1.0]]))
    assert import_files([tmp_path / "x.npy"], tmp_path / "t").rejects == {"non_finite_embedding": 1}


def test_rows_are_normalised_when_asked(tmp_path: Path) -> None:
    file = _npy(tmp_path / "x.npy", [[3, 4], [0, 0], [0, -1e-30]])
    summary = import_files([file], tmp_path / "t", l2_normalise=True)
    table = Collection.open(tmp_path / "t").samples
    np.testing.assert_allclose([row[3] for row in _rows(table)], [[0.6, 0.8], [0, -1]], rtol=1e-6)
    assert _rejects(table) == [("000000000001", "non_finite_embedding", "its norm is 0, so it cannot be normalised")]
    assert summary.rows == 2
    assert table.properties.l2_normalised is True
    assert import_files([_npy(tmp_path / "y.npy", [[0, 0]])], tmp_path / "u").rows == 1


def test_duplicates_are_found_across_blocks_and_every_block_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "BLOCK_BYTES", 2 * 4)
    pq.write_table(
        pa.table({"embedding": [[float(n)] for n in range(5)], "key": list("edcbe")}), tmp_path / "x.parquet"
    )
    summary = import_files([tmp_path / "x.parquet"], tmp_path / "t")
    samples = Collection.open(tmp_path / "t").samples
    assert (summary.rows, summary.rejects, summary.version) == (4, {"duplicate_key": 1}, 1)
    assert [file.first_key for file in samples.files()] == ["b", "d"]
    assert sorted(row[1] for row in _rows(samples)) == list("bcde")


def test_the_order_of_paths_does_not_matter(tmp_path: Path) -> None:
    files = [_npy(tmp_path / name, [[n, n]]) for n, name in enumerate(("b.npy", "a.npy", "sub/c.npy"))]
    import_files(files, tmp_path / "one")
    import_files([*reversed(files), files[0]], tmp_path / "two")
    _npy(tmp_path / ".trash" / "d.npy", [[9, 9]])
    _npy(tmp_path / ".d.npy", [[9, 9]])
    (tmp_path / "notes.txt").write_text("")
    import_files([tmp_path], tmp_path / "three")  # all that is in the folder, but not in its tables
    one, two, three = (Collection.open(tmp_path / name).samples for name in ("one", "two", "three"))
    assert [row[0] for row in _rows(one)] == ["a.npy", "b.npy", "c.npy"]
    assert _rows(one) == _rows(two) == _rows(three)


def test_what_was_imported_is_skipped(tmp_path: Path) -> None:
    first = _npy(tmp_path / "a.npy", [[1, 2]])
    import_files([first], tmp_path / "t")
    second = _npy(tmp_path / "b.npy", [[3, 4], [NAN, 0]])
    summary = import_files([first, second], tmp_path / "t")
    assert (summary.files, summary.skipped, summary.rows, summary.rejects) == (1, 1, 1, {"non_finite_embedding": 1})
    again = import_files([first, second], tmp_path / "t")
    assert (again.files, again.skipped, again.rows, again.rejects) == (0, 2, 0, {})
    assert again.version == summary.version


def test_a_file_is_remembered_by_its_checksum(tmp_path: Path) -> None:
    file = _npy(tmp_path / "a.npy", [[1, 2], [NAN, 4]])
    import_files([file], tmp_path / "t")
    content = file.read_bytes()
    expected = ShardRecord(str(file), len(content), "sha256:" + hashlib.sha256(content).hexdigest(), 1, 1)
    assert Collection.open(tmp_path / "t").shards.records() == {str(file): expected}
    _npy(file, [[1, 2], [3, 4]])  # same size
    with pytest.raises(TableError, match=r"a\.npy was imported with checksum sha256:.* but has sha256:"):
        import_files([file], tmp_path / "t")


def test_an_import_that_was_killed_before_it_recorded_the_file_does_so_later(tmp_path: Path) -> None:
    file = _npy(tmp_path / "a.npy", [[1, 2], [NAN, 4]])
    import_files([file], tmp_path / "t")
    shards = Collection.open(tmp_path / "t").shards
    before = shards.records()
    for path in sorted(Path(shards.path).rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    assert shards.count() == 0
    assert import_files([file], tmp_path / "t").skipped == 1
    assert Collection.open(tmp_path / "t").shards.records() == before


def test_an_import_that_is_killed_continues_where_it_stopped(tmp_path: Path) -> None:
    files = [_npy(tmp_path / f"{n}.npy", [[n, n]] * 2) for n in range(3)]
    program = (
        "import os, signal, sys\n"
        "from pipeline.tables.imports import import_files\n"
        "def kill(step, done, total): done == 2 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "import_files(sys.argv[2:], sys.argv[1], on_progress=kill)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "t"), *map(str, files)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    summary = import_files(files, tmp_path / "t")
    assert (summary.files, summary.skipped, summary.rows) == (1, 2, 2)
    assert [row[3] for row in _rows(Collection.open(tmp_path / "t").samples)] == [[n, n] for n in (0, 0, 1, 1, 2, 2)]


def test_another_dimension_is_refused_with_both_and_leaves_nothing(tmp_path: Path) -> None:
    one, two = _npy(tmp_path / "1.npy", [[1, 2]]), _npy(tmp_path / "2.npy", [[1, 2, 3]])
    with pytest.raises(TableError, match=r"2\.npy cannot be imported here: .*dimension 2 against 3"):
        import_files([two, one], tmp_path / "t")
    table = Collection.open(tmp_path / "t").samples
    assert table.done_shards() == {str(one)}
    assert len(list(Path(table.path).rglob("*.parquet"))) == 1


def test_rows_are_kept_where_only_the_record_of_their_file_cannot_be_written(tmp_path: Path) -> None:
    file = _npy(tmp_path / "1.npy", [[1, 2]])
    Collection.create(tmp_path / "t")
    (tmp_path / "t" / "shards").write_text("in the way")
    with pytest.raises(TableError, match="No table can be made"):
        import_files([file], tmp_path / "t")
    (tmp_path / "t" / "shards").unlink()
    summary = import_files([file], tmp_path / "t")
    assert (summary.files, summary.skipped) == (0, 1)
    table = Collection.open(tmp_path / "t")
    assert [row[3] for row in _rows(table.samples)] == [[1.0, 2.0]]
    assert table.shards.count() == 1


def test_a_file_that_turns_out_bad_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "BLOCK_BYTES", 500 * 4)
    ragged = [[1.0]] * 2000 + [[1.0, 2.0]]
    pq.write_table(pa.table({"embedding": ragged}), tmp_path / "x.parquet")
    with pytest.raises(TableError, match="embeddings of 1 and of 2 dimensions"):
        import_files([tmp_path / "x.parquet"], tmp_path / "t")
    table = Collection.open(tmp_path / "t").samples
    assert table.version == 0
    assert list(Path(table.path).glob("status=*/*")) == []


def test_a_table_of_another_backbone_is_refused(tmp_path: Path) -> None:
    import_files([_npy(tmp_path / "1.npy", [[1, 2]])], tmp_path / "t", backbone="clip")
    with pytest.raises(TableError, match="backbone 'clip' against 'imported'"):
        import_files([_npy(tmp_path / "2.npy", [[1, 2]])], tmp_path / "t")


def test_a_file_without_rows_is_one_reject(tmp_path: Path) -> None:
    empty, full = tmp_path / "a.npy", _npy(tmp_path / "b.npy", [[1, 2]])
    np.save(empty, np.empty((0, 2), np.float32))
    with pytest.raises(TableError, match=r"No row in 1 files, first .*a\.npy"):
        import_files([empty], tmp_path / "t")
    summary = import_files([empty, full], tmp_path / "t")
    assert (summary.files, summary.rows, summary.rejects) == (2, 1, {"empty_shard": 1})
    table = Collection.open(tmp_path / "t").samples
    assert _rejects(table) == [("", "empty_shard", "the file has no rows")]
    assert summary.version == table.version
    assert import_files([empty, full], tmp_path / "t").skipped == 2


def test_there_must_be_something_to_import(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"nothing at .* to import"):
        import_files([tmp_path / "none.npy"], tmp_path / "t")
    (tmp_path / "folder").mkdir()
    with pytest.raises(TableError, match="no file to import"):
        import_files([tmp_path / "folder"], tmp_path / "t")
    with pytest.raises(TableError, match="download the file first"):
        import_files(["https://host/x.npy"], tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_a_name_that_is_no_text_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with open(bytes(tmp_path / "in") + b"/\xff.npy", "wb") as stream:  # noqa: PTH123 - no Path has these bytes
        np.save(stream, np.ones((1, 2), np.float32))
    with pytest.raises(TableError, match="rename the file"):
        import_files([tmp_path / "in"], tmp_path / "t")


def test_progress_is_told_in_files(tmp_path: Path) -> None:
    files = [_npy(tmp_path / f"{n}.npy", [[n, n]]) for n in range(2)]
    told: list[tuple[str, int, int | None]] = []
    import_files(files, tmp_path / "t", on_progress=lambda step, done, total: told.append((step, done, total)))
    assert told == [("import", 0, 2), ("import", 1, 2), ("import", 2, 2)]


def test_values_survive_the_import_bit_for_bit(tmp_path: Path) -> None:
    x_ND = np.random.default_rng(1).standard_normal((3000, 5)).astype(np.float32)
    np.save(tmp_path / "x.npy", x_ND)
    import_files([tmp_path / "x.npy"], tmp_path / "t")
    table = Collection.open(tmp_path / "t").samples
    (file,) = table.files()
    assert embedding_matrix(table.read(file, ["embedding"])).tobytes() == x_ND.tobytes()
