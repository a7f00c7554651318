"""What a log says came since a version, against what the whole versions say."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import CommitProperties, DeltaTable
from deltalake.schema import Field, PrimitiveType
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.tables.delta import Change, Delta, Layout, WrittenFile
from pipeline.tables.log import Transactions

LAYOUT = Layout(
    pa.schema([pa.field("name", pa.string(), False), pa.field("n", pa.int64())]),
    statistics=("name", "n"),
    partition=pa.field("status", pa.string(), nullable=False),
)
NAMES = ["a", "ü %20\\\"'", "x" * 300, "", "\n"]


@pytest.fixture
def table(tmp_path: Path) -> Delta:
    table = Delta(tmp_path / "t", LAYOUT)
    table.create()
    return table


def _add(table: Delta, name: str, n: int | None = 1, app: tuple[str, int] | None = None) -> WrittenFile:
    file = table.write(pa.table({"name": [name], "n": pa.array([n], pa.int64())}), "ok")
    table.commit(lambda present: Change([file]), app)
    return file


def test_a_listing_is_a_row_per_file_by_hand(table: Delta) -> None:
    file = _add(table, "a", None)
    assert table.at().listing().to_pylist() == [
        {
            "path": file.path,
            "size": (Path(table.path) / file.path).stat().st_size,
            "rows": 1,
            "partition": "ok",
            "min.name": "a",
            "min.n": None,
            "max.name": "a",
            "max.n": None,
        }
    ]
    assert table.files() == [file]


def test_the_listing_of_an_empty_table_has_all_columns_and_no_row(table: Delta) -> None:
    listing = table.at().listing()
    assert (listing.num_rows, listing.num_columns) == (0, 8)


@settings(max_examples=10)
@given(names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=4), since=st.integers(0, 4))
def test_what_came_since_a_version_is_what_that_version_lacks(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], since: int
) -> None:
    table = Delta(tmp_path_factory.mktemp("log") / "t", LAYOUT)
    table.create()
    for number, name in enumerate(names):
        _add(table, name, None if number % 2 else number)
    since = min(since, len(names))
    found = table.at().since(since)
    assert found is not None
    before = {file.path for file in table.files(since)}
    expected = [file for file in table.files() if file.path not in before]
    assert sorted(found.added, key=lambda file: file.path) == sorted(expected, key=lambda file: file.path)
    assert [file.minimum["name"] for file in found.added] == names[since:]


def test_after_anything_but_additions_only_the_whole_version_tells(table: Delta) -> None:
    first = _add(table, "a")
    assert table.at().since(0) is not None
    table.commit(lambda present: Change([], removed=[first]))
    assert table.at().since(1) is None
    handle = DeltaTable(table.path)
    handle.alter.add_columns(Field("more", PrimitiveType("long")), commit_properties=CommitProperties())
    assert table.at().since(2) is None
    _add(table, "b")
    since = table.at().since(3)
    assert since is not None
    assert [file.minimum["name"] for file in since.added] == ["b"]


def test_a_log_that_another_tool_cleaned_up_is_asked_as_a_whole(table: Delta) -> None:
    for name in "abc":
        _add(table, name)
    DeltaTable(table.path).create_checkpoint()
    (Path(table.path) / "_delta_log" / f"{2:020d}.json").unlink()
    assert table.at().since(1) is None
    assert len(table.files()) == 3


def test_a_version_from_the_future_has_nothing_since(table: Delta) -> None:
    assert table.at().since(1) is None


def test_transactions_of_others_are_noticed_without_asking_again(table: Delta) -> None:
    rival, known = Delta(table.path, LAYOUT), Transactions()
    assert not known.has(("app", 1), table.at())
    _add(rival, "a", app=("app", 1))
    _add(rival, "b", app=("other", 7))
    assert known.has(("app", 1), table.at())
    assert not known.has(("app", 2), table.at())
    assert known.has(("other", 6), table.at())
    rival.commit(lambda present: Change([], removed=present), ("app", 2))
    assert known.has(("app", 2), table.at())
