"""What all Delta tables share: the optimistic commit, under real conflicts."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.tables.delta import COMMIT_ATTEMPTS, Change, Delta, Layout, WrittenFile
from pipeline.tables.schema import TableError

LAYOUT = Layout(pa.schema([pa.field("n", pa.int64(), False)]), statistics=("n",))


def _table(path: Path) -> Delta:
    table = Delta(path / "t", LAYOUT)
    table.create({"colour": "red"})
    return table


def _numbers(table: Delta, version: int | None = None) -> list[int]:
    return sorted(table.read_all(table.files(version))["n"].to_pylist())


def _add(table: Delta, *numbers: int) -> int:
    file = table.write(pa.table({"n": list(numbers)}))
    return table.commit(lambda present: Change([file]))


def test_creating_twice_keeps_the_first_properties(tmp_path: Path) -> None:
    table = _table(tmp_path)
    Delta(table.path, LAYOUT).create({"colour": "blue"})
    assert table.properties == {"colour": "red"}
    assert table.version == 0


def test_a_plan_decides_again_on_what_a_faster_writer_left(tmp_path: Path) -> None:
    table, rival = _table(tmp_path), Delta(tmp_path / "t", LAYOUT)
    looks: list[int] = []

    def plan(present: list[WrittenFile]) -> Change:
        looks.append(len(present))
        if len(looks) <= 2:
            _add(rival, len(looks))
        return Change([file])

    file = table.write(pa.table({"n": [100]}))
    assert table.commit(plan) == 3
    assert looks == [0, 1, 2]
    assert _numbers(table) == [1, 2, 100]
    assert _numbers(table, 2) == [1, 2]


def test_a_look_at_the_log_while_a_plan_decides_has_it_decide_again(tmp_path: Path) -> None:
    table, rival = _table(tmp_path), Delta(tmp_path / "t", LAYOUT)
    looks: list[int] = []

    def plan(present: list[WrittenFile]) -> Change:
        looks.append(len(present))
        if len(looks) == 1:
            _add(rival, 1)
            assert table.version == 1  # as another thread may ask
        return Change([file])

    file = table.write(pa.table({"n": [100]}))
    assert table.commit(plan) == 2
    assert looks == [0, 1]
    assert _numbers(table) == [1, 100]


def test_a_writer_that_always_comes_second_says_so(tmp_path: Path) -> None:
    table, rival = _table(tmp_path), Delta(tmp_path / "t", LAYOUT)
    file = table.write(pa.table({"n": [100]}))

    def plan(present: list[WrittenFile]) -> Change:
        _add(rival, len(present))
        return Change([file])

    with pytest.raises(TableError, match=f"lost a race {COMMIT_ATTEMPTS} times"):
        table.commit(plan)
    assert _numbers(table) == list(range(COMMIT_ATTEMPTS))


def test_a_rival_with_the_same_transaction_has_done_the_work(tmp_path: Path) -> None:
    table, rival = _table(tmp_path), Delta(tmp_path / "t", LAYOUT)

    def plan(present: list[WrittenFile]) -> Change:
        rival.commit(lambda present: Change([rival.write(pa.table({"n": [7]}))]), ("app", 1))
        return Change([table.write(pa.table({"n": [7]}))])

    assert table.commit(plan, ("app", 1)) == 1
    assert _numbers(table) == [7]


def test_files_are_replaced_in_one_commit(tmp_path: Path) -> None:
    table = _table(tmp_path)
    before = _add(table, 1, 2)
    file = table.write(pa.table({"n": [3]}))
    after = table.commit(lambda present: Change([file], removed=present))
    assert (_numbers(table, before), _numbers(table, after)) == ([1, 2], [3])


def test_nothing_to_do_is_no_version(tmp_path: Path) -> None:
    table = _table(tmp_path)
    assert table.commit(lambda present: None) == table.version == 0


@settings(max_examples=10)
@given(commits=st.lists(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=3), max_size=5))
def test_a_table_is_the_sum_of_its_commits(tmp_path_factory: pytest.TempPathFactory, commits: list[list[int]]) -> None:
    table = _table(tmp_path_factory.mktemp("delta"))
    for numbers in commits:
        _add(table, *numbers)
    for version in range(len(commits) + 1):
        assert _numbers(table, version) == sorted(n for numbers in commits[:version] for n in numbers)
    bounds = {(file.minimum["n"], file.maximum["n"]) for file in table.files()}
    assert bounds == {(min(numbers), max(numbers)) for numbers in commits}


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TableError, match="No table can be made"):
        Delta(tmp_path / "file" / "t", LAYOUT).create()


@pytest.mark.parametrize("name", ["a%20b", "a\\b", "100%25"])
def test_a_path_that_delta_would_misread_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(TableError, match="choose a folder without it"):
        Delta(tmp_path / name, LAYOUT).create()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a b", "ü#?&", "100%", "[x]*", "a'b\"c", "a:b"])
def test_awkward_folder_names_work(tmp_path: Path, name: str) -> None:
    table = _table(tmp_path / name)
    _add(table, 1)
    assert _numbers(Delta(tmp_path / name / "t", LAYOUT)) == [1]


@settings(max_examples=15)
@given(
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=6),
    ends=st.tuples(st.integers(0, 6), st.integers(0, 6)),
)
def test_what_changed_is_the_difference_of_two_versions(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[bool, int]], ends: tuple[int, int]
) -> None:
    table = _table(tmp_path_factory.mktemp("delta"))
    for removes, which in steps:
        file = table.write(pa.table({"n": [which]}))
        table.commit(lambda present: Change([file], removed=present[which:] if removes else []))  # noqa: B023
    since, to = (min(each, len(steps)) for each in ends)
    before, after = ({file.path: file for file in table.files(version)} for version in (since, to))
    added, removed = table.changes(since, to)
    assert {file.path: file for file in added} == {path: after[path] for path in after.keys() - before.keys()}
    assert {file.path: file for file in removed} == {path: before[path] for path in before.keys() - after.keys()}
    assert table.changes(to, None) == table.changes(to, len(steps))


def test_many_commits_are_compared_as_whole_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = _table(tmp_path)
    monkeypatch.setattr("pipeline.tables.delta.FEW_COMMITS", 2)
    for number in range(4):
        _add(table, number)
    (Path(table.path) / "_delta_log" / f"{3:020d}.json").rename(tmp_path / "away")
    with pytest.raises(TableError, match="cannot be read"):  # deltalake needs all of the log
        table.changes(1, 4)
    (tmp_path / "away").rename(Path(table.path) / "_delta_log" / f"{3:020d}.json")
    added, removed = table.changes(1, 4)
    assert (sorted(file.minimum["n"] for file in added), removed) == ([1, 2, 3], [])


def test_integers_that_repeat_themselves_are_a_dictionary(tmp_path: Path) -> None:
    layout = Layout(LAYOUT.schema.append(pa.field("id", pa.int64())), statistics=("n",), repeated=("id",))
    table = Delta(tmp_path / "t", layout)
    table.create()
    file = table.write(pa.table({"n": range(1000), "id": [7] * 1000}))
    columns = pq.read_metadata(Path(table.path) / file.path).row_group(0)
    assert "RLE_DICTIONARY" not in columns.column(0).encodings
    assert "RLE_DICTIONARY" in columns.column(1).encodings
    assert table.read(file.path, 1000)["id"].to_pylist() == [7] * 1000
