from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.progress import silent
from pipeline.removal.rows import find, mark_of, removed_before, replace
from pipeline.removal.targets import Targets
from pipeline.tables.collection import Collection
from pipeline.tables.samples import SamplesTable, TableProperties, embedding_array, embedding_matrix
from pipeline.tables.schema import OK, REJECTED, REMOVED, Reason, TableError

PROPERTIES = TableProperties(dimension=2, backbone="b", backbone_digest="", l2_normalised=False, preprocessing={})


@pytest.fixture
def samples(tmp_path: Path) -> SamplesTable:
    """Shard /s of two files and rejects, shard /t of one file; key k1 is in both, rows are (number, shard)."""
    table = Collection.create(tmp_path / "table").create_samples(PROPERTIES)
    first = [_rows(table, "/s", range(3)), _rows(table, "/s", range(3, 6)), _rejects(table)]
    table.commit(first)
    table.commit([_rows(table, "/t", range(1, 3))])
    return table


def _rows(table: SamplesTable, shard: str, numbers: range):  # noqa: ANN202
    x_ND = np.array([[number, ord(shard[1])] for number in numbers], np.float32)
    columns = {"key": [f"k{n}" for n in numbers], "shard": [shard] * len(numbers), "offset": [512 * n for n in numbers]}
    return table.write(pa.table(columns).append_column("embedding", embedding_array(x_ND)))


def _rejects(table: SamplesTable):  # noqa: ANN202
    rows = [
        {"key": "bad", "shard": "/s", "reason": "corrupt_image", "detail": "bad.png is no image"},
        {"key": "", "shard": "/s", "reason": "damaged_header", "detail": "k4.jpg, bytes 5-9: a gap, bytes of it"},
        {"key": "", "shard": "/s", "reason": "damaged_header", "detail": "k5.jpg, bytes 7-9: another"},
    ]
    return table.write(pa.Table.from_pylist(rows), REJECTED)


def _content(samples: SamplesTable, status: str = OK) -> dict[tuple[str, str], list[float]]:
    found = {}
    for file in samples.files(status):
        rows = samples.read(file)
        x_ND = embedding_matrix(rows).tolist() if status == OK else rows["detail"].to_pylist()
        found |= dict(zip(zip(rows["shard"].to_pylist(), rows["key"].to_pylist(), strict=True), x_ND, strict=True))
    return found


def test_rows_go_and_the_others_stay_as_they_were(samples: SamplesTable) -> None:
    before, files = _content(samples), {file.path for file in samples.files()}
    targets = Targets.of([(None, "k1"), ("/s", "k4"), ("/t", "k5"), (None, "bad")])
    hits = find(samples, targets, frozenset(), silent)
    assert (hits.rows(OK), hits.rows(REJECTED)) == (3, 1)
    assert set(hits.found) == {("/s", "k1"), ("/t", "k1"), ("/s", "k4"), ("/s", "bad")}
    assert targets.missing_from(hits.found) == [("/t", "k5")]
    version = samples.version
    assert replace(samples, hits, targets, silent) == version + 1
    gone = {("/s", "k1"), ("/t", "k1"), ("/s", "k4")}
    assert _content(samples) == {row: x_D for row, x_D in before.items() if row not in gone}
    assert not files & {file.path for file in samples.files()}
    assert samples.done_shards() == {"/s", "/t"}
    assert (samples.count(), samples.count(REJECTED), samples.count(REMOVED)) == (5, 2, 4)
    assert not find(samples, targets, frozenset(), silent).files


def test_a_gap_keeps_its_place_but_not_the_name_of_a_removed_member(samples: SamplesTable) -> None:
    targets = Targets.of([("/s", "k4")])
    replace(samples, find(samples, targets, frozenset(), silent), targets, silent)
    assert samples.rejects()["detail"].to_pylist() == [
        "bad.png is no image",
        "bytes 5-9: a gap, bytes of it",
        "k5.jpg, bytes 7-9: another",
    ]


def test_a_shard_without_a_row_left_is_done_all_the_same_and_its_marks_are_one_file(samples: SamplesTable) -> None:
    for key in ("k1", "k2"):
        targets = Targets.of([("/t", key)])
        replace(samples, find(samples, targets, frozenset(), silent), targets, silent)
    assert {file.shard for file in samples.files()} == {"/s"}
    assert samples.done_shards() == {"/s", "/t"}
    (marks,) = samples.files(REMOVED)
    rows = samples.read(marks)
    assert rows["key"].to_pylist() == [mark_of("k1"), mark_of("k2")]
    assert set(rows["reason"].to_pylist()) == {Reason.removed}
    assert all(rows[name].null_count == 2 for name in ("offset", "size", "label", "embedding", "detail"))
    missing = [(None, "k1"), (None, "k3"), ("/t", "k2"), ("/s", "k2")]
    assert list(removed_before(samples, missing)) == [("/t", "k1"), ("/t", "k2")]
    with pytest.raises(TableError, match="/t"):
        samples.commit([_rows(samples, "/t", range(1, 3))])


def test_a_few_keys_open_only_the_files_whose_range_has_them(samples: SamplesTable, monkeypatch) -> None:  # noqa: ANN001
    opened: list[str] = []
    read = samples.read
    monkeypatch.setattr(samples, "read", lambda file, columns=None: (opened.append(file.path), read(file, columns))[1])
    (first, second, third) = samples.files()
    find(samples, Targets.of([("/t", "k1")]), frozenset(), silent)
    assert opened == [third.path]
    opened.clear()
    find(samples, Targets.of([("/s", "k1")]), frozenset([first.path]), silent)
    assert second.path not in opened
    assert first.path not in opened


def test_two_removals_at_once_do_not_bring_rows_back(samples: SamplesTable) -> None:
    one, two = Targets.of([("/s", "k0")]), Targets.of([("/s", "k1")])
    late = find(samples, two, frozenset(), silent)
    replace(samples, find(samples, one, frozenset(), silent), one, silent)
    on_disk = set(Path(samples.path).rglob("*.parquet"))
    with pytest.raises(TableError, match="run again"):
        replace(samples, late, two, silent)
    assert ("/s", "k0") not in _content(samples)
    assert set(Path(samples.path).rglob("*.parquet")) == on_disk
