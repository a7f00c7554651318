"""A file or folder is the same on a disk and in an object store; where a store differs, it says so."""

from __future__ import annotations

import os
import pickle
from contextlib import suppress
from pathlib import Path

import pytest
from object_store import DROPPED, REFUSED, ObjectStore

from pipeline.tables.place import Place, StorePath, children, place, remove_tree, scratches, sizes, write_whole
from pipeline.tables.schema import TableError


@pytest.fixture(params=["disk", "store"])
def folder(request: pytest.FixtureRequest) -> Place:
    """Named as folders are that a URL could misread; nothing is there yet."""
    root = request.getfixturevalue("tmp_path" if request.param == "disk" else "bucket")
    name = "ä b#%20"
    return root / name if isinstance(root, Path) else place(f"{root.url}/{name}")


def test_what_is_written_is_there_whole_until_it_is_removed(folder: Place) -> None:
    assert not folder.exists()
    assert children(folder) == []
    below = folder / "below"
    below.mkdir(parents=True, exist_ok=True)
    write_whole(below / "one.json", "{ä}".encode())
    write_whole(below / "one.json", b"two")
    write_whole(below / "0", b"")
    assert (below / "one.json").read_text() == "two"
    assert (folder.is_dir(), below.is_dir(), below.is_file(), (below / "0").is_file()) == (True, True, False, True)
    assert [each.name for each in children(below)] == ["0", "one.json"]
    assert [str(each) for each in children(folder)] == [f"{folder}/below"]
    assert sizes(below) == {"0": 0, "one.json": 3}
    assert (below.parent, below.name, (below / "one.json").stem) == (folder, "below", "one")
    assert not (folder / "be").exists()  # the beginning of a name is none
    (below / "0").unlink()
    (below / "0").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        (below / "0").unlink()
    with pytest.raises(FileNotFoundError):
        (below / "0").read_bytes()
    remove_tree(below)
    assert not below.exists()
    remove_tree(folder)
    assert not folder.exists()
    remove_tree(folder)


def test_what_cannot_be_removed_is_named_where_it_matters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").touch()
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "stuck").touch()
    unlink = os.unlink

    def refused(path: str, **where: int) -> None:
        if str(path).endswith("stuck"):
            raise PermissionError(1, "Operation not permitted", path)
        unlink(path, **where)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refused)
        remove_tree(folder)
        with pytest.raises(TableError, match=r"folder/stuck cannot be deleted .*not permitted"):
            remove_tree(folder, strict=True)
    assert [each.name for each in children(folder)] == ["stuck"]
    for _ in range(2):
        remove_tree(folder, strict=True)
        assert not folder.exists()
    folder.symlink_to(tmp_path / "elsewhere")
    remove_tree(folder, strict=True)
    assert not folder.is_symlink()
    assert [each.name for each in children(tmp_path / "elsewhere")] == ["kept"]


def test_scratches_are_what_write_whole_leaves_and_nothing_else(tmp_path: Path) -> None:
    names = ["a.json", f"a.json.{'0' * 32}", "a.json.bak", f"a.json.{'0' * 31}", f"b.json.{'0' * 32}"]
    for name in names:
        (tmp_path / name).touch()
    assert scratches(tmp_path / "a.json") == [tmp_path / names[1]]


def test_a_folder_goes_only_when_nothing_is_in_it(folder: Place) -> None:
    folder.mkdir()
    write_whole(folder / "f", b"x")
    with suppress(OSError):  # a disk says so
        folder.rmdir()
    assert (folder / "f").read_bytes() == b"x"
    (folder / "f").unlink()
    folder.rmdir()
    assert children(folder) == []


def test_another_process_finds_the_same_file(folder: Place) -> None:
    folder.mkdir()
    write_whole(folder / "f", b"x")
    again: Place = pickle.loads(pickle.dumps(folder / "f"))  # noqa: S301 - our own
    assert again == folder / "f"
    assert again.read_bytes() == b"x"


def test_a_large_object_is_whole_although_it_is_sent_in_parts(bucket: ObjectStore) -> None:
    data = bytes(range(256)) * 50_000
    path = place(f"{bucket.url}/large")
    write_whole(path, data)
    assert bucket.count("^PUT .*partNumber") > 1
    assert path.read_bytes() == data


@pytest.mark.parametrize("kind", [REFUSED, DROPPED])
def test_requests_that_fail_twice_are_repeated(bucket: ObjectStore, kind: str) -> None:
    path = place(f"{bucket.url}/a/f")
    bucket.fail("^PUT .*/a/f", kind)
    bucket.fail("^GET .*/a/f", kind)
    bucket.fail("^GET .*list-type", kind)
    write_whole(path, b"x")
    assert (path.read_bytes(), [each.name for each in children(path.parent)]) == (b"x", ["f"])
    assert len(bucket.failed) == 6


def test_a_small_file_is_one_request(bucket: ObjectStore) -> None:
    write_whole(place(f"{bucket.url}/a/f"), b"x")
    assert [line.split()[0] for line in bucket.lines] == ["PUT"]


@pytest.mark.usefixtures("bucket")
def test_what_a_store_refuses_names_the_place_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "NO_SUCH_BUCKET")
    with pytest.raises(OSError, match=r"^\[Errno 5\] .*AWS Error \*\*\* during.*: 's3://no-such-bucket/f'$"):
        place("s3://no-such-bucket/f").write_bytes(b"x")


def test_a_bucket_is_its_own_folder() -> None:
    bucket = StorePath.of("s3://bucket/")
    assert (str(bucket), bucket.name, bucket.parent, str(bucket / "a")) == (
        "s3://bucket",
        "bucket",
        bucket,
        "s3://bucket/a",
    )


def test_options_stay_at_the_end() -> None:
    folder = StorePath.of("s3://bucket/a?region=eu-west-1&anonymous=true")
    assert str(folder / "b" / "c.json") == "s3://bucket/a/b/c.json?region=eu-west-1&anonymous=true"
    assert ((folder / "b").parent, (folder / "b").name) == (folder, "b")
    assert place(str(folder / "b")) == folder / "b"


def test_only_disks_and_stores_have_folders(tmp_path: Path) -> None:
    assert place(tmp_path.as_uri()) == place(str(tmp_path)) == tmp_path
    for web in ("https://host/x", "ftp://host/x"):
        with pytest.raises(TableError, match=r"is no folder; give a local path, or a URL of s3, gs or az\."):
            place(web)
