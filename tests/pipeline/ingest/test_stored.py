"""Sizes and times of many files at once, against those of each."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.ingest.stored import Stored, stored, stored_all

TIME = 10**18 + 123_456_789


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Enough files to be worth a listing; file n has n bytes and was written n seconds after TIME."""
    names = [f"{number:02d} ü.tar" for number in range(40)] + ["a%20b.tar", "c?d=e.tar"]
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(bytes(number))
        os.utime(tmp_path / name, ns=(0, TIME + number * 10**9))
    return tmp_path


def test_a_file_has_a_size_and_a_time_to_the_nanosecond(folder: Path) -> None:
    assert stored(str(folder / "03 ü.tar")) == Stored(3, TIME + 3 * 10**9)
    assert stored(f"file://{folder}/03 ü.tar") == Stored(3, TIME + 3 * 10**9)


def test_what_is_no_file_or_cannot_be_asked_is_unknown(folder: Path) -> None:
    assert stored(str(folder / "missing.tar")) is None
    assert stored(str(folder)) is None
    assert stored("nobody://knows/this.tar") is None


@pytest.mark.parametrize("few", [True, False])
def test_many_files_are_each_as_if_asked_alone(folder: Path, few: bool) -> None:
    (folder / "sub").mkdir()
    names = sorted(path.name for path in folder.iterdir())
    assert len(names) == 43
    files = [str(folder / name) for name in (names[:5] if few else names)]
    files += [str(folder / "missing.tar"), str(folder / "sub" / "none.tar"), f"file://{folder}/a%2520b.tar"]
    expected = {file: found for file in files if (found := stored(file)) is not None}
    assert len(expected) == (6 if few else 43)  # the sub-folder is no file
    assert stored_all(files) == expected


def test_a_folder_that_is_gone_has_nothing(tmp_path: Path) -> None:
    assert stored_all([f"{tmp_path}/gone/{number}.tar" for number in range(50)]) == {}


def test_no_files_are_no_questions() -> None:
    assert stored_all([]) == {}
