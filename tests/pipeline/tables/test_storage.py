"""Paths and URLs lead to the right filesystem and the right file."""

from __future__ import annotations

import http.server
import os
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from pipeline.tables.schema import TableError
from pipeline.tables.storage import delta_options, delta_path, files_below, is_url, open_filesystem, patiently
from pipeline.tables.stores import S3, Address, one_line

RETRIES = {"max_retries": "7", "retry_timeout": "180s"}


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


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that the machine says of stores."""
    for name in [each for each in os.environ if each.startswith(("AWS_", "AZURE_", "GOOGLE_"))]:
        monkeypatch.delenv(name)


def test_a_bucket_is_an_object_store() -> None:
    filesystem, path = open_filesystem("s3://bucket/a/b.tar?region=eu-west-1")
    assert isinstance(filesystem, pafs.S3FileSystem)
    assert path == "bucket/a/b.tar"


def test_the_environment_says_the_same_to_both_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://general:1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9000/")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    store = Address.of("s3://bucket/table").store
    assert store == S3("http://127.0.0.1:9000", "us-east-1", anonymous=True)  # nobody asks Amazon for its region
    assert delta_options("s3://bucket/table") == {
        "aws_region": "us-east-1",
        "aws_endpoint_url": "http://127.0.0.1:9000",
        "aws_endpoint_url_s3": "http://127.0.0.1:9000",
        "aws_allow_http": "true",
        "aws_skip_signature": "true",
        **RETRIES,
    }
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-north-1")
    assert Address.of("s3://bucket/table").store == S3("http://127.0.0.1:9000", "eu-north-1", anonymous=True)
    named = Address.of("s3://bucket/table?endpoint_override=host:1&scheme=http&region=x&anonymous=false").store
    assert named == S3("http://host:1", "x", anonymous=False)


def test_a_store_has_one_filesystem_in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    first, second = (open_filesystem(f"s3://bucket-{each}/x")[0] for each in (1, 2))
    assert first is second
    assert first.region == "eu-west-1"
    monkeypatch.setenv("AWS_REGION", "eu-west-2")
    assert open_filesystem("s3://bucket-1/x")[0].region == "eu-west-2"


def test_names_are_taken_letter_by_letter() -> None:
    url = "s3://bucket/a b#%20ü?c/d?region=x"
    assert open_filesystem(url)[1] == "bucket/a b#%20ü?c/d"
    assert delta_path(url) == "s3://bucket/a%20b%23%2520%C3%BC%3Fc/d"
    assert (delta_path("/a b#"), delta_options("/a b#")) == ("/a b#", None)


def test_google_and_azure() -> None:
    filesystem, path = open_filesystem("gs://bucket/a/b.tar")
    assert (type(filesystem), path) == (pafs.GcsFileSystem, "bucket/a/b.tar")
    assert delta_path("gcs://bucket/a") == "gs://bucket/a"
    assert delta_options("gs://bucket/a?anonymous=true") == {"google_skip_signature": "true", **RETRIES}
    for url in ("abfss://box@name.dfs.core.windows.net/a/b", "abfs://box@name.blob.core.windows.net/a/b"):
        filesystem, path = open_filesystem(url)
        assert (type(filesystem), path, delta_path(url)) == (pafs.AzureFileSystem, "box/a/b", "az://box/a/b")
        assert delta_options(url) == {"azure_storage_account_name": "name", **RETRIES}


def test_azure_takes_account_and_key_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TableError, match=r"az://box/a names no storage account; set AZURE_STORAGE_ACCOUNT_NAME"):
        open_filesystem("az://box/a")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "other")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "a2V5")
    filesystem, path = open_filesystem("az://box/a")
    assert filesystem.equals(pafs.AzureFileSystem("other", account_key="a2V5"))
    assert path == "box/a"
    assert delta_options("az://box/a") == {"azure_storage_account_name": "other", **RETRIES}


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIA123:hidden@bucket/x",
        "s3://bucket/x?secret_key=hidden",
        "s3://AKIA123:hidden/bucket@bucket/x",
        "s3://bucket/x.tar?X-Amz-Signature=hidden",
        "s3://bucket/x.tar?X-Amz-Credential=hidden/us-east-1/s3&X-Amz-Date=1",
        "s3://bucket/x.tar?AWSAccessKeyId=hidden/&Expires=1",
        "gs://bucket/x.tar?region=x&X-Goog-Signature=hidden",
        "az://box/x?sv=2024&sig=hidden",
        "az://box/x?sv=2024-01-01&sp=r&sig=hidden/hidden=",
        "abfss://me:hidden@box.dfs.core.windows.net/x",
        "abfss://:hidden@box.example.com/x",
    ],
)
def test_credentials_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    for ask in (open_filesystem, delta_options, delta_path):
        with pytest.raises(TableError, match="environment") as caught:
            ask(url)
        assert "hidden" not in str(caught.value)


def test_an_error_becomes_a_line_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "abcdefghij")
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", "sv=1&sig=klmnopqrst")
    causes = ["Kernel error", "GET http://host/x?sig=uvw&a=1", "key abcdefghij, sv=1&sig=klmnopqrst"]
    tree = "\n  \x1b[31m↳\x1b[0m ".join(causes)
    assert one_line(OSError(tree)) == "Kernel error: GET http://host/x?sig=***&a=1: key ***, ***"
    assert one_line(OSError("first\nsecond")) == "first"
    assert one_line(OSError()) == "OSError"


def test_files_below_are_those_of_the_folder_itself_and_of_nobody_who_is_linked_to(tmp_path: Path) -> None:
    theirs, root = tmp_path / "theirs", tmp_path / "root"
    for path in (theirs / "thesis", root / "a", root / "deep" / "er" / "b"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"123")
    (root / "deep" / "link").symlink_to(theirs)
    (root / "linked").symlink_to(theirs / "thesis")
    filesystem, path = open_filesystem(root)
    assert files_below(filesystem, path) == {f"{root}/a": 3, f"{root}/deep/er/b": 3}
    assert files_below(filesystem, f"{path}/none") == {}
    assert files_below(pafs.SubTreeFileSystem(str(root), filesystem), "deep/er") == {"deep/er/b": 3}  # as a store's


def test_what_fails_passingly_is_read_again() -> None:
    answers = [OSError("Failed to flush response stream (eof: 0, bad: 1)")] * 2 + [OSError("gone")]

    def read() -> None:
        raise answers.pop(0)

    with pytest.raises(OSError, match="gone"):
        patiently(read)
    assert answers == []


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
