"""A run's folder: ours, new, or left alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.folder import FORMAT, MARKER, RunFolder
from models.errors import ShoalError
from pipeline.tables.collection import Collection
from pipeline.tables.samples import TableProperties
from pipeline.tables.schema import TableError


def test_a_new_folder_is_marked_and_opens_again(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path / "a" / "run"))
    assert not folder.path.exists()
    folder.make()
    assert json.loads((folder.path / MARKER).read_text()) == FORMAT
    RunFolder(str(folder.path)).make()
    assert not folder.has_embeddings()


def test_an_empty_folder_may_be_used(tmp_path: Path) -> None:
    RunFolder(str(tmp_path)).make()
    assert (tmp_path / MARKER).exists()


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("thesis.tex", "words", "belongs to something else: it holds thesis.tex; give a new or an empty folder."),
        (MARKER, '{"format": "shoal-run", "version": 2}', "but this shoal writes"),
        (MARKER, "no json", "is not what a run writes"),
    ],
)
def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, name: str, content: str, sentence: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ShoalError) as caught:
        RunFolder(str(tmp_path))
    assert sentence in str(caught.value)
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [(name, content)]


def test_of_many_strange_files_the_first_are_named(tmp_path: Path) -> None:
    for name in "abcde":
        (tmp_path / name).touch()
    with pytest.raises(ShoalError, match="it holds a, b, c and 2 more;"):
        RunFolder(str(tmp_path))


def test_a_file_and_a_web_address_are_no_folders(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ShoalError, match="is not a folder"):
        RunFolder(str(tmp_path / "file"))
    with pytest.raises(TableError, match="is no folder; give a local path"):
        RunFolder("https://host/run")


def test_other_images_are_refused_once_some_are_embedded(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path / "run"))
    folder.make()
    folder.record_images("a")
    folder.require_same_images("b")  # nothing is embedded: packing may begin again
    properties = TableProperties(dimension=1, backbone="b", backbone_digest="", l2_normalised=False, preprocessing={})
    Collection.create(folder.table).create_samples(properties)
    folder.require_same_images("a")
    with pytest.raises(ShoalError, match=r"The images, or how they are packed, changed since .*/run was made of them"):
        folder.require_same_images("b")
    folder.packed.write_text("torn")
    with pytest.raises(ShoalError, match="give a new --output"):
        folder.require_same_images("a")
