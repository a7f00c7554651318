"""What all Delta tables share: the optimistic commit, under real conflicts."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
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
