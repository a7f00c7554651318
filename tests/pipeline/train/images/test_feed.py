"""Batches of views: the same however they are divided, kept, resumed or fed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from image_shards import IMAGES, LARGE, LOOP, PIXELS, SMALL, RowStats, Worker, image_bytes, tar_bytes
from object_store import FORBIDDEN, ObjectStore
from torch import Tensor

from models.errors import ShoalError
from models.objective import Batch, ImageSummary
from models.views import Views
from models.views_config import ViewsConfig
from pipeline.ingest.decode import decode
from pipeline.tables.storage import open_filesystem
from pipeline.train.images.feed import ImageSource
from pipeline.train.images.index import index_shards

SourceOf = Callable[..., ImageSource]
BATCH_ROWS = LOOP.batch_size


def drawn(source: ImageSource, epoch: int = 0, start: int = 0, worker: Worker | None = None) -> list[Batch]:
    return list(source.open(LOOP, BATCH_ROWS, worker or Worker(), None).draw(epoch, start))


def joined(parts: tuple[Batch, ...]) -> Batch:
    """What workers hold of one batch, put together."""
    views = zip(*(part.views for part in parts), strict=True)
    whole = Batch(
        tuple(torch.cat(view) for view in views), torch.cat([part.row_B for part in parts]), 0, parts[0].total
    )
    begin = 0
    for part in parts:
        assert (part.begin, part.total) == (begin, whole.total)
        begin += len(part.row_B)
    assert begin == whole.total
    return whole


def assert_same(one: list[Batch], other: list[Batch]) -> None:
    assert len(one) == len(other) > 0
    for left, right in zip(one, other, strict=True):
        assert (left.begin, left.total) == (right.begin, right.total)
        assert left.row_B.tolist() == right.row_B.tolist()
        assert all(torch.equal(*pair) for pair in zip(left.views, right.views, strict=True))


@pytest.mark.parametrize("views", [SMALL, LARGE])
def test_an_epoch_has_views_of_every_usable_image_once(source_of: SourceOf, views: ViewsConfig) -> None:
    source = source_of(views)
    batches = drawn(source)
    assert [batch.total for batch in batches] == [16] * 5
    assert sorted(row for batch in batches for row in batch.row_B.tolist()) == sorted(source.index().row_N.tolist())
    for batch in batches:
        assert [tuple(view.shape) for view in batch.views] == [(16, 3, 12, 12), (16, 3, 12, 12), (16, 3, 8, 8)]
        assert all(view.dtype == torch.uint8 for view in batch.views)


@pytest.mark.parametrize("views", [SMALL, LARGE])
def test_a_view_is_that_of_its_image_and_row(source_of: SourceOf, views: ViewsConfig) -> None:
    source = source_of(views)
    number_of = {row: number for number, row in enumerate(source.index().row_N.tolist())}
    made = Views(source.views, 3, 3)
    batch = drawn(source, epoch=4)[2]
    for place, row in enumerate(batch.row_B.tolist()):
        number = number_of[row]
        image_3HW = decode(image_bytes(number, ("png", "jpeg")[number % 2]))
        if views.base is None:
            expected = made.of_image(image_3HW, row, 4)
        else:
            base_1CHW = made.base_image(image_3HW)[None]
            expected = tuple(view[0] for view in made.of_batch(base_1CHW, np.array([row]), 4))
        for view, wanted in zip(batch.views, expected, strict=True):
            # What is computed for a whole batch may be rounded otherwise than for one image.
            assert (view[place].int() - wanted.int()).abs().max() <= (0 if views.base is None else 1)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_workers_hold_parts_of_the_same_batches(source_of: SourceOf, size: int) -> None:
    source = source_of()
    parts = [drawn(source, 1, worker=Worker(rank, size)) for rank in range(size)]
    together = [joined(each) for each in zip(*parts, strict=True)]
    assert_same(together, drawn(source, 1))


@pytest.mark.parametrize("views", [SMALL, LARGE])
def test_an_epoch_that_begins_in_its_middle_is_the_rest_of_it(source_of: SourceOf, views: ViewsConfig) -> None:
    source = source_of(views)
    whole = drawn(source, 2)
    for start in (1, 3):
        assert_same(drawn(source, 2, start), whole[start:])
    assert drawn(source, 2, 5) == []


def test_epochs_differ(source_of: SourceOf) -> None:
    feed = source_of().open(LOOP, BATCH_ROWS, Worker(), None)
    first, second = (next(feed.draw(epoch, 0)) for epoch in (0, 1))
    assert first.row_B.tolist() != second.row_B.tolist()


@pytest.mark.parametrize("room", [0, 30 * 3 * 16 * 16, 2**20])
def test_what_is_cached_changes_nothing(source_of: SourceOf, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [drawn(source_of(), epoch) for epoch in range(3)]
    decoded: list[int] = []

    def counted(image: bytes, *args: object) -> Tensor:
        decoded.append(len(image))
        return decode(image, *args)  # type: ignore[arg-type]

    monkeypatch.setattr("pipeline.train.images.read.decode", counted)
    feed = source_of(cache_bytes=room).open(LOOP, BATCH_ROWS, Worker(), None)
    assert_same(list(feed.draw(0, 3)), expected[0][3:])  # the cache has holes now
    assert len(decoded) == 32
    for epoch in (1, 2):
        assert_same(list(feed.draw(epoch, 0)), expected[epoch])
    kept = min(80, room // (3 * 16 * 16))
    seen_before = len(decoded) - 32 - (80 - kept)  # by epoch 1
    assert 80 - 32 <= seen_before <= 80 - (32 if kept == 80 else 0)


@pytest.mark.parametrize("settings", [{"threads": 3}, {"ahead": 1}, {"ahead": 9, "threads": 2}, {"shuffle_rows": 6}])
def test_threads_and_batches_ahead_change_nothing(source_of: SourceOf, settings: dict[str, int]) -> None:
    plain = source_of(LARGE, shuffle_rows=settings.get("shuffle_rows", IMAGES.shuffle_rows))
    other = source_of(LARGE, **settings)
    assert_same(drawn(other), drawn(plain))


def test_threads_end_with_the_iterator(source_of: SourceOf) -> None:
    before, torchs = threading.active_count(), torch.get_num_threads()
    batches = source_of(LARGE, threads=2).open(LOOP, BATCH_ROWS, Worker(), None).draw(0, 0)
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before
    assert torch.get_num_threads() == torchs


def test_the_fingerprint_names_what_a_result_depends_on(source_of: SourceOf) -> None:
    same = [source_of(), source_of(threads=5, cache_bytes=7, ahead=4, feed="remote", producers=9)]
    others = [source_of(LARGE), source_of(lanes=3), source_of(shuffle_rows=7), source_of(pixels=PIXELS.at_size(20))]
    assert same[0].fingerprint() == same[1].fingerprint()
    assert len({source.fingerprint() for source in [*same, *others]}) == 5


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda data: data + bytes(512), r"b\.tar is not as it was indexed: it has \d+ bytes and had \d+"),
        (lambda data: data[:30_000] + bytes(len(data) - 30_000), r"b\.tar .*byte \d+ cannot be decoded any more"),
    ],
)
def test_a_shard_that_was_replaced_is_refused(
    source_of: SourceOf, shards: list[str], change: Callable[[bytes], bytes], told: str
) -> None:
    source = source_of()
    Path(shards[1]).write_bytes(change(Path(shards[1]).read_bytes()))
    with pytest.raises(ShoalError, match=told + r".*put back what was indexed, or begin anew with another --output"):
        drawn(source)


@pytest.mark.parametrize("shard", [1, 2])
def test_a_shard_that_is_gone_is_told(source_of: SourceOf, shards: list[str], shard: int) -> None:
    source = source_of()
    Path(shards[shard]).unlink()
    with pytest.raises(ShoalError, match="is not as it was indexed: it is gone"):
        drawn(source)


def test_an_index_made_anew_behind_a_runs_back_is_refused(source_of: SourceOf, shards: list[str]) -> None:
    source = source_of()
    Path(shards[0]).write_bytes(tar_bytes({"1.png": image_bytes(1)}))
    index_shards(shards, source.folder)
    with pytest.raises(ShoalError, match="indexed anew meanwhile"):
        drawn(source)


@pytest.mark.parametrize("size", [1, 2])
def test_passes_see_every_image_as_the_backbone_takes_it(
    source_of: SourceOf, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.train.images.passes.BLOCK_ROWS", 30)
    source = source_of(pixels=PIXELS.at_size(10), threads=2)
    seen: list[tuple[int, ...]] = []

    def expect(image_nCHW: Tensor, row_n: Tensor) -> RowStats:
        seen.append(tuple(image_nCHW.shape))
        return RowStats.of(image_nCHW, row_n)

    feeds = [source.open(LOOP, BATCH_ROWS, Worker(rank, size), None) for rank in range(size)]
    assert all(feed.data == ImageSummary(80, 3) for feed in feeds)
    parts = [feed.passes.total(expect) for feed in feeds]
    rows = source.index().row_N.tolist()
    prepared = [
        PIXELS.at_size(10).prepare(decode(image_bytes(number, ("png", "jpeg")[number % 2]))) for number in range(80)
    ]
    expected = sum(float(image.double().sum()) * (row % 97) for image, row in zip(prepared, rows, strict=True))
    assert sum(int(part.count) for part in parts) == 80
    assert sum(float(part.total) for part in parts) == pytest.approx(expected, rel=1e-12)
    assert seen == [(30, 3, 10, 10), (30, 3, 10, 10), (20, 3, 10, 10)]


def test_a_worker_without_blocks_adds_no_rows(source_of: SourceOf) -> None:
    worker = Worker(0, 2)
    stats = source_of().open(LOOP, BATCH_ROWS, worker, None).passes.total(RowStats.of)
    assert (int(stats.count), float(stats.total)) == (0, 0.0)


def test_an_object_store_is_asked_for_ranges_once(
    shards: list[str], source_of: SourceOf, bucket: ObjectStore, tmp_path: Path
) -> None:
    for shard in shards[:2]:
        filesystem, path = open_filesystem(f"{bucket.url}/shards/{Path(shard).name}")
        with filesystem.open_output_stream(path, compression=None) as sink:
            sink.write(Path(shard).read_bytes())
    urls = [f"{bucket.url}/shards/{Path(shard).name}" for shard in shards[:2]]
    local = index_shards(shards[:2], tmp_path / "local")
    remote = index_shards(urls, tmp_path / "remote")
    assert local.digest == remote.digest
    sources = [ImageSource.of(index, IMAGES, SMALL, PIXELS, seed=0) for index in (local, remote)]
    bucket.lines.clear()
    feed = sources[1].open(LOOP, BATCH_ROWS, Worker(), None)
    assert_same(list(feed.draw(0, 0)), drawn(sources[0]))
    pieces = sum(len(each) for each in sources[1].order(remote, BATCH_ROWS).pieces)
    assert 2 <= bucket.count(r"GET /[^/]+/shards/") <= pieces < 63
    assert_same(list(feed.draw(1, 0)), drawn(sources[0], 1))
    assert bucket.count(r"GET /[^/]+/shards/") <= pieces, "the second epoch is in memory"
    bucket.fail(r"GET /[^/]+/shards/", FORBIDDEN, times=1)
    with pytest.raises(OSError, match=r"cannot be read \((?!.*secret).*\.tar"):
        drawn(sources[1])


def test_shards_on_a_web_server_are_read_from_their_start(
    source_of: SourceOf, shards: list[str], tmp_path: Path
) -> None:
    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=Path(shards[0]).parent)) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        urls = [f"http://127.0.0.1:{server.server_address[1]}/{Path(shard).name}" for shard in shards]
        index = index_shards(urls, tmp_path / "web")
        assert [shard.ranged for shard in index.shards] == [False] * 3
        source = ImageSource.of(index, IMAGES, SMALL, PIXELS, seed=3)
        rows = [row for batch in drawn(source) for row in batch.row_B.tolist()]
        server.shutdown()
        thread.join()
    assert sorted(rows) == sorted(source_of().index().row_N.tolist())
    assert index_shards(urls, tmp_path / "web").digest == index.digest, "the server is gone"


def test_remote_views_need_ray(source_of: SourceOf) -> None:
    import ray  # noqa: PLC0415

    if ray.is_initialized():
        pytest.skip("a session of other tests is up")
    with pytest.raises(ShoalError, match="no Ray session"):
        source_of(feed="remote").open(LOOP, BATCH_ROWS, Worker(), None)
