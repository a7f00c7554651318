"""One image by its byte range, wherever its shard is."""

from __future__ import annotations

import gzip
import random
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from object_store import FORBIDDEN, ObjectStore

from models.errors import ShoalError
from pipeline.ingest.locate import read_range
from pipeline.ingest.shards import Reject, Sample, list_shards, read_samples
from pipeline.tables.place import place
from pipeline.tables.schema import Reason

IMAGES = [(f"{index}.jpg", random.Random(index).randbytes(1000 * index)) for index in range(8)]


class _WithoutRanges(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass

    def copyfile(self, source: object, outputfile: object) -> None:
        try:
            super().copyfile(source, outputfile)
        except ConnectionError:  # a client that wanted a range has hung up
            self.close_connection = True


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_WithoutRanges, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("compressed", [False, True])
def test_every_image_is_read_back_from_its_range(
    tar_of: Callable[..., bytes], shard_of: Callable[..., str], compressed: bool
) -> None:
    archive = tar_of(IMAGES)
    shard = shard_of(gzip.compress(archive) if compressed else archive)
    samples = [row for row in read_samples(shard) if isinstance(row, Sample)]
    assert len(samples) == 8
    assert [read_range(shard, sample.offset, sample.size) for sample in samples] == [image for _, image in IMAGES]
    assert read_range(Path(shard).as_uri(), samples[3].offset, 3000) == IMAGES[3][1]


def test_a_server_without_ranges_is_read_up_to_the_image(
    web: str, tar_of: Callable[..., bytes], shard_of: Callable[..., str]
) -> None:
    shard_of(tar_of([("filler.jpg", bytes(12_000_000)), ("a.jpg", b"image")]))
    assert read_range(f"{web}/shard.tar", 12_001_280, 5) == b"image"


def test_a_shard_that_changed_or_went_is_said_in_a_sentence(shard_of: Callable[..., str], tmp_path: Path) -> None:
    for content in (bytes(1000), gzip.compress(bytes(1000))):
        with pytest.raises(ShoalError, match="should have 500 bytes at byte 700 but has 300; it was changed"):
            read_range(shard_of(content), 700, 500)
    with pytest.raises(ShoalError, match=r"none\.tar cannot be read .*put it back under that name, or extract again"):
        read_range(str(tmp_path / "none.tar"), 0, 1)


def test_no_credential_is_in_what_is_said_of_a_shard(bucket: ObjectStore, tar_of: Callable[..., bytes]) -> None:
    shard = f"{bucket.url}/a.tar"
    place(shard).write_bytes(tar_of(IMAGES))
    (sample, *_) = (each for each in read_samples(shard) if isinstance(each, Sample))
    bucket.fail("^(GET|HEAD) ", FORBIDDEN, times=100)
    (reject,) = read_samples(shard)
    assert isinstance(reject, Reject)
    assert reject.reason == Reason.unreadable_shard
    with pytest.raises(ShoalError, match=f"{shard} cannot be read") as unread:
        read_range(shard, sample.offset, sample.size)
    with pytest.raises(ShoalError, match=f"{bucket.url} cannot be listed") as unlisted:
        list_shards([bucket.url])
    for told in (str(reject.detail), str(unread.value), str(unlisted.value)):
        assert "ACCESS_DENIED" in told
        assert "the-secret" not in told
    assert "*** may not" in str(unlisted.value)
