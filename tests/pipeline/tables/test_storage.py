"""Paths and URLs lead to the right filesystem and the right file."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from pipeline.tables.schema import TableError
from pipeline.tables.storage import is_url, open_filesystem


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path)) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


@pytest.mark.parametrize("name", ["plain", "a b%20ü#?c"])
def test_a_path_and_its_file_url_are_the_same_file(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(b"content")
    for address in (file, str(file), file.as_uri()):
        filesystem, path = open_filesystem(address)
        assert path == str(file)
        with filesystem.open_input_file(path) as source:
            assert source.read() == b"content"


def test_a_relative_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_filesystem("a/b")[1] == str(tmp_path / "a" / "b")
    monkeypatch.setenv("HOME", "/home/of")
    assert open_filesystem("~/a")[1] == "/home/of/a"


def test_a_web_server_is_read(tmp_path: Path, server: str) -> None:
    (tmp_path / "x.tar").write_bytes(bytes(range(256)) * 100)
    filesystem, path = open_filesystem(f"{server}/x.tar")
    with filesystem.open_input_stream(path) as stream:
        assert stream.read(3) == b"\x00\x01\x02"
    with pytest.raises(FileNotFoundError):
        filesystem.open_input_stream(f"{server}/missing.tar").read()


def test_a_bucket_is_an_object_store() -> None:
    filesystem, path = open_filesystem("s3://bucket/a/b.tar?region=eu-west-1")
    assert isinstance(filesystem, pafs.S3FileSystem)
    assert path == "bucket/a/b.tar"


def test_an_unknown_scheme_is_a_sentence() -> None:
    with pytest.raises(TableError, match=r"scheme ftp://, which is unknown; use a local path"):
        open_filesystem("ftp://host/x.tar")


def test_what_is_a_url() -> None:
    assert [is_url(each) for each in ("s3://b", "https://x", "C:/x", "/a://b", "a/b", "")] == [
        True,
        True,
        False,
        False,
        False,
        False,
    ]
