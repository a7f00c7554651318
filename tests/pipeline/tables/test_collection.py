"""A collection is made only where nothing else is, and is found where it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.tables.collection import Collection
from pipeline.tables.samples import TableProperties
from pipeline.tables.schema import TableError


def _snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_it_is_a_folder_with_a_marker(tmp_path: Path) -> None:
    collection = Collection.create(tmp_path / "a" / "b")
    assert collection.path == tmp_path / "a" / "b"
    assert json.loads((collection.path / "shoal.json").read_text()) == {"format": "shoal-table", "version": 1}
    assert [path.name for path in collection.path.iterdir()] == ["shoal.json"]
    assert Collection.open(collection.path).path == Collection.create(collection.path).path == collection.path


def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    Collection.create(tmp_path / "t")
    Collection.open(tmp_path / "t")


def test_a_creation_that_was_killed_can_be_repeated(tmp_path: Path) -> None:
    (tmp_path / "shoal.json.0123").write_text("")
    assert Collection.create(tmp_path).path == tmp_path


def test_a_run_folder_opens_its_table(tmp_path: Path) -> None:
    Collection.create(tmp_path / "table")
    assert Collection.open(tmp_path).path == tmp_path / "table"


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    for number in range(7):
        (tmp_path / f"{number}.jpg").write_bytes(b"x")
    before = _snapshot(tmp_path)
    with pytest.raises(TableError, match=r"not empty: it holds 0.jpg, .*, 4.jpg and 2 more; give an empty folder"):
        Collection.create(tmp_path)
    assert _snapshot(tmp_path) == before


@pytest.mark.parametrize("dangling", [True, False])
def test_a_symbolic_link_is_refused(tmp_path: Path, dangling: bool) -> None:
    target = tmp_path / "target"
    if not dangling:
        target.mkdir()
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(TableError, match=r"symbolic link to .*target; give the folder itself"):
        Collection.create(tmp_path / "link")
    assert not target.exists() or list(target.iterdir()) == []


def test_a_file_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    with pytest.raises(TableError, match="is a file; give a folder"):
        Collection.create(tmp_path / "f")
    with pytest.raises(TableError, match="no shoal table but a file"):
        Collection.open(tmp_path / "f")
    with pytest.raises(TableError, match="No table can be made"):
        Collection.create(tmp_path / "f" / "below")


def test_what_is_no_table_is_said_to_be_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"nothing at .*; give a table"):
        Collection.open(tmp_path / "none")
    with pytest.raises(TableError, match="but a folder that holds nothing"):
        Collection.open(tmp_path)
    (tmp_path / "cat.jpg").write_bytes(b"")
    with pytest.raises(TableError, match=r"but a folder that holds cat\.jpg; a table has the file shoal\.json"):
        Collection.open(tmp_path)


@pytest.mark.parametrize("marker", ['{"format": "shoal-table", "version": 2}', "{}", "[]", "", "\x00", "[" * 10_000])
def test_a_marker_of_another_kind_is_refused(tmp_path: Path, marker: str) -> None:
    (tmp_path / "shoal.json").write_text(marker)
    with pytest.raises(TableError):
        Collection.open(tmp_path)


def test_a_web_address_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        TableError, match=r"https://host/table is no folder; give a local path, or a URL of s3, gs or az"
    ):
        Collection.create("https://host/table")
    assert list(tmp_path.iterdir()) == []


def test_a_table_is_found_only_where_something_is(tmp_path: Path) -> None:
    assert Collection.find(tmp_path / "none") is None
    assert Collection.find(tmp_path) is None
    (tmp_path / "run").mkdir()
    made = Collection.create(tmp_path / "run" / "table")
    assert [found.path for where in (made.path, made.path.parent) if (found := Collection.find(where))] == [
        made.path
    ] * 2
    with pytest.raises(TableError, match="no shoal table but a folder that holds run"):
        Collection.find(tmp_path)


def test_nothing_was_extracted_yet(tmp_path: Path) -> None:
    collection = Collection.create(tmp_path / "t")
    assert not collection.has_samples()
    assert collection.clusterings() == []
    with pytest.raises(TableError, match="no Delta table at"):
        _ = collection.samples


def test_samples_whose_making_was_killed_can_be_made(tmp_path: Path) -> None:
    collection = Collection.create(tmp_path / "t")
    (tmp_path / "t" / "samples" / "_delta_log").mkdir(parents=True)
    assert not collection.has_samples()
    properties = TableProperties(dimension=1, backbone="b", backbone_digest="", l2_normalised=False, preprocessing={})
    collection.create_samples(properties)
    assert collection.has_samples()


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "a b", "x" * 101])
def test_a_clustering_has_a_plain_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(TableError, match="no name for a clustering"):
        Collection.create(tmp_path / "t").clustering(name)
