"""Shards good and bad: which samples come out, and exactly which rejects."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import random
import tarfile
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import webdataset.tariterators as reference

from models.errors import ShoalError
from pipeline.ingest.shards import Reject, Sample, ShardSummary, list_shards, read_samples
from pipeline.tables.schema import Reason

Shard = Callable[..., str]


def read(shard: str, **options: int) -> tuple[list[Sample], list[Reject], ShardSummary]:
    reader = read_samples(shard, **options)
    items = list(reader)
    samples = [item for item in items if isinstance(item, Sample)]
    rejects = [item for item in items if isinstance(item, Reject)]
    assert (len(samples), len(rejects)) == (reader.summary.samples, reader.summary.rejects)
    assert samples or rejects, "a shard without a row could not be told from one that was not read"
    return samples, rejects, reader.summary


def outcome(shard: str, **options: int) -> list[tuple[str, str]]:
    """(key, "ok" or the reason) of every row."""
    rows = read_samples(shard, **options)
    return [(row.key, "ok" if isinstance(row, Sample) else row.reason.value) for row in rows]


def labels(shard: str) -> dict[str, str | None]:
    return {sample.key: sample.label for sample in read(shard)[0]}


# What a good shard gives.


def test_a_sample_carries_its_place_label_and_bytes(shard_of: Shard) -> None:
    shard = shard_of([("d/a.cls", b"7\n"), ("d/a.JPG", b"image"), ("d/a.json", b'{"label": "no"}'), ("b.png", b"")])
    samples, rejects, summary = read(shard)
    assert samples == [
        Sample("d/a", shard, 1536, 5, "7", b"image", "jpg"),
        Sample("b", shard, 3584, 0, None, b"", "png"),
    ]
    assert rejects == []
    content = Path(shard).read_bytes()
    assert content[1536:1541] == b"image"
    digest = hashlib.sha256(content).hexdigest()
    modified = Path(shard).stat().st_mtime_ns
    assert summary == ShardSummary(shard, len(content), f"sha256:{digest}", 2, 0, 0, modified)


def test_the_time_of_a_shard_is_that_from_before_it_was_read(shard_of: Shard) -> None:
    shard = shard_of([("a.jpg", b"a"), ("b.jpg", b"b")])
    os.utime(shard, ns=(10**18, 10**18))
    reader = read_samples(shard)
    rows = iter(reader)
    next(rows)
    os.utime(shard, ns=(2 * 10**18, 2 * 10**18))
    assert len(list(rows)) == 1
    assert reader.summary.modified == 10**18


def test_the_summary_is_not_there_before_the_end(shard_of: Shard) -> None:
    reader = read_samples(shard_of([("a.jpg", b"a")]))
    with pytest.raises(ValueError, match="not been read to its end"):
        _ = reader.summary
    assert list(reader) == list(reader)
    assert reader.summary.samples == 1


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_keys_and_bytes_are_those_that_webdataset_reads(
    tar_of: Callable[..., bytes], shard_of: Shard, tar_format: int
) -> None:
    generator = random.Random(0)
    members = [
        (f"{folder}{stem}.{suffix}", generator.randbytes(generator.randrange(2000)))
        for folder in ("", "v1.2/", "日本/")
        for stem in ("a", "ü", "x" * 120, "b c")
        for suffix in ("cls", "JPG", "seg.png", "json", "txt")
    ]
    shard = shard_of(tar_of([("__skipped__/z.jpg", b"z"), *members, ("README", b"no dot")], tar_format))
    with Path(shard).open("rb") as stream:
        files = reference.tar_file_expander([{"url": shard, "stream": stream}])
        expected = [(sample["__key__"], sample["jpg"]) for sample in reference.group_by_keys(files)]
    samples, rejects, summary = read(shard)
    assert [(sample.key, sample.image) for sample in samples] == expected
    assert (len(expected), rejects, summary.ignored) == (12, [], 12 * 2 + 2)


@pytest.mark.parametrize(
    ("members", "label"),
    [
        ([("a.cls", b" 3 ")], "3"),
        ([("a.cls", "Käse".encode())], "Käse"),
        ([("a.cls", b"\xff")], "\\xff"),
        ([("a.cls", b"")], None),
        ([("a.json", b'{"label": 3}')], "3"),
        ([("a.json", b'{"label": "cat", "x": [1]}')], "cat"),
        ([("a.json", b'{"label": "\\ud800"}')], "\\ud800"),
        ([("a.json", b'{"label": [1]}')], None),
        ([("a.json", b'{"label": null}')], None),
        ([("a.json", b'["label"]')], None),
        ([("a.json", b"{broken")], None),
        ([("a.json", b"[" * 100_000)], None),
        ([("a.json", b'{"label": "json"}'), ("a.cls", b"cls")], "cls"),
        ([("a.cls", b"first"), ("a.cls", b"second")], "first"),
        ([("a.txt", b"a caption is no label")], None),
    ],
)
def test_labels(shard_of: Shard, members: list[tuple[str, bytes]], label: str | None) -> None:
    for order in ([*members, ("a.jpg", b"a")], [("a.jpg", b"a"), *members]):
        assert labels(shard_of(order)) == {"a": label}


def test_of_several_images_the_first_is_taken_and_the_others_are_counted(shard_of: Shard) -> None:
    samples, rejects, summary = read(shard_of([("a.v1.png", b"1"), ("a.jpg", b"2"), ("a.webp", b"3"), ("b.jpg", b"b")]))
    assert [(sample.key, sample.image) for sample in samples] == [("a", b"1"), ("b", b"b")]
    assert (rejects, summary.ignored) == ([], 2)


def test_labels_may_come_long_before_their_image(shard_of: Shard) -> None:
    members = [("a.cls", b"1"), ("b.cls", b"2"), ("b.jpg", b"b"), ("a.jpg", b"a")]
    assert labels(shard_of(members)) == {"b": "2", "a": "1"}


def test_a_label_that_comes_after_the_next_sample_began_is_too_late_and_counted(shard_of: Shard) -> None:
    shard = shard_of([("a.jpg", b"a"), ("b.jpg", b"b"), ("a.cls", b"1"), ("b.cls", b"2")])
    assert labels(shard) == {"a": None, "b": "2"}
    assert read(shard)[2].ignored == 1


def test_a_compressed_shard_gives_the_same_samples_whatever_its_name(
    tar_of: Callable[..., bytes], shard_of: Shard
) -> None:
    archive = tar_of([("a.cls", b"1"), ("a.jpg", b"a" * 5000), ("b.jpg", b"b")])
    for name in ("s.tar.gz", "s.tgz", "s.tar"):
        shard = shard_of(gzip.compress(archive), name)
        samples, rejects, summary = read(shard)
        assert [(s.key, s.offset, s.image, s.label) for s in samples] == [
            ("a", 1536, b"a" * 5000, "1"),
            ("b", 7168, b"b", None),
        ]
        assert (rejects, summary.size) == ([], Path(shard).stat().st_size)


@pytest.mark.parametrize("compressed", [False, True])
def test_memory_holds_a_few_chunks_and_not_the_shard(
    tar_of: Callable[..., bytes], shard_of: Shard, compressed: bool
) -> None:
    archive = tar_of([(f"{index}.jpg", random.Random(index).randbytes(2**20)) for index in range(48)])
    shard = shard_of(gzip.compress(archive, 0) if compressed else archive)
    del archive
    tracemalloc.start()
    try:
        assert sum(isinstance(row, Sample) for row in read_samples(shard)) == 48
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    finally:
        tracemalloc.stop()


# What each kind of bad content gives.


def test_samples_without_an_image(shard_of: Shard) -> None:
    _, rejects, _ = read(shard := shard_of([("a.cls", b"1"), ("a.txt", b"t"), ("b.jpg", b"b"), ("c.npy", b"n")]))
    assert rejects == [
        Reject("a", shard, None, None, "1", Reason.no_image, "only cls, txt"),
        Reject("c", shard, None, None, None, Reason.no_image, "only npy"),
    ]


def test_the_same_key_twice(shard_of: Shard) -> None:
    shard = shard_of(
        [("a.jpg", b"1"), ("a.cls", b"x"), ("a.jpg", b"2"), ("b.jpg", b"b"), ("a.png", b"3"), ("a.cls", b"y")]
    )
    samples, rejects, summary = read(shard)
    assert [(sample.key, sample.image, sample.label) for sample in samples] == [("a", b"1", "x"), ("b", b"b", None)]
    assert [(reject.key, reject.offset, reject.reason, reject.detail) for reject in rejects] == [
        ("a", 2560, Reason.duplicate_key, "a.jpg is there twice"),
        ("a", 4608, Reason.duplicate_key, "a.png follows the sample of that key"),
    ]
    assert summary.ignored == 1


def test_names_that_lead_out_of_the_shard(shard_of: Shard, tar_of: Callable[..., bytes]) -> None:
    members = [("../a.jpg", b"a"), ("../a.cls", b"1"), ("d/../../b.jpg", b"b"), ("c.jpg", b"c"), ("absolute.jpg", b"d")]
    archive = tar_of(members).replace(b"absolute.jpg", b"//etc/pw.jpg")
    at = archive.index(b"//etc") + 148
    header = bytearray(archive[at - 148 : at + 364])
    header[148:156] = b" " * 8
    shard = shard_of(archive[:at] + b"%06o\0 " % sum(header) + archive[at + 8 :])
    _, rejects, summary = read(shard)
    assert outcome(shard) == [
        ("../a", "unsafe_member"),
        ("d/../../b", "unsafe_member"),
        ("//etc/pw", "unsafe_member"),
        ("c", "ok"),
    ]
    assert rejects[0].detail == "../a.jpg leads out of the shard"
    assert summary.ignored == 1


def test_links_and_devices_are_counted_and_nothing_is_followed(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name, kind in [("a.jpg", tarfile.SYMTYPE), ("b.jpg", tarfile.LNKTYPE), ("c.jpg", tarfile.CHRTYPE)]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        info = tarfile.TarInfo("d.jpg")
        tar.addfile(info, io.BytesIO())
    assert outcome(str(tmp_path / "s.tar")) == [("d", "ok")]
    assert read(str(tmp_path / "s.tar"))[2].ignored == 3


def test_an_image_above_the_limit(shard_of: Shard) -> None:
    shard = shard_of(
        [("a.cls", b"1"), ("a.jpg", b"x" * 101), ("a.png", b"a"), ("b.jpg", b"x" * 100), ("c.txt", b"x" * 200)]
    )
    samples, rejects, _ = read(shard, max_member_bytes=100)
    assert [sample.key for sample in samples] == ["b"]
    assert rejects[0] == Reject(
        "a", shard, 1536, 101, "1", Reason.image_too_large, "a.jpg has 101 bytes, more than a member may have"
    )
    assert [reject.reason for reject in rejects[1:]] == [Reason.duplicate_key, Reason.no_image]


@pytest.mark.parametrize("content", [b"", bytes(1024), bytes(10_240), gzip.compress(b"")])
def test_empty_shards(shard_of: Shard, content: bytes) -> None:
    assert outcome(shard_of(content)) == [("", "empty_shard")]


def test_a_shard_of_folders_only_is_empty(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        folder = tarfile.TarInfo("d")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    _, rejects, summary = read(str(tmp_path / "s.tar"))
    assert [reject.reason for reject in rejects] == [Reason.empty_shard]
    assert summary.ignored == 1


@pytest.mark.parametrize(
    "content",
    [b"<!DOCTYPE html><title>403</title>", b"<html>" * 2000, b"PK\3\4" + b"x" * 2000, gzip.compress(b"<html>" * 99)],
)
def test_what_is_no_tar(shard_of: Shard, content: bytes) -> None:
    _, rejects, _ = read(shard_of(content))
    assert [(reject.key, reject.reason) for reject in rejects] == [("", Reason.not_a_tar)]


def test_a_damaged_header_in_mid_shard(shard_of: Shard, tar_of: Callable[..., bytes]) -> None:
    """What is lost is told, and a sample with members on both sides of the gap is one sample."""
    members = [("a.jpg", b"a"), ("b.cls", b"2"), ("lost.jpg", b"x" * 1000), ("b.jpg", b"b"), ("c.jpg", b"c")]
    archive = bytearray(tar_of(members))
    archive[2048 + 150] ^= 1
    samples, rejects, _ = read(shard := shard_of(bytes(archive)))
    assert [(sample.key, sample.label) for sample in samples] == [("a", None), ("b", "2"), ("c", None)]
    detail = "bytes 2048-3584: no valid header"
    assert rejects == [Reject("", shard, 2048, 1536, None, Reason.damaged_header, detail)]


def test_each_gap_is_one_reject(shard_of: Shard, tar_of: Callable[..., bytes]) -> None:
    archive = bytearray(tar_of([(f"{index}.jpg", b"x") for index in range(6)]))
    for index in (1, 2, 4):
        archive[1024 * index] ^= 1
    assert outcome(shard_of(bytes(archive))) == [
        ("", "damaged_header"),
        ("0", "ok"),
        ("", "damaged_header"),
        ("3", "ok"),
        ("5", "ok"),
    ]


def test_a_truncated_shard_names_the_sample_it_lost(shard_of: Shard, tar_of: Callable[..., bytes]) -> None:
    archive = tar_of([("a.jpg", b"a"), ("b.cls", b"2"), ("b.jpg", b"b" * 5000)])
    samples, rejects, _ = read(shard := shard_of(archive[:4000]))
    assert [sample.key for sample in samples] == ["a"]
    detail = "b.jpg, bytes 2048-4000: the archive ends after 1440 of the member's 5000 bytes"
    assert rejects == [Reject("b", shard, 2048, 1952, "2", Reason.truncated_shard, detail)]


def test_a_truncated_label_does_not_cost_the_sample(shard_of: Shard, tar_of: Callable[..., bytes]) -> None:
    archive = tar_of([("a.jpg", b"a"), ("a.cls", b"2" * 600)])
    assert outcome(shard_of(archive[:1700])) == [("", "truncated_shard"), ("a", "ok")]


def test_a_truncated_second_image_does_not_cost_the_sample(shard_of: Shard, tar_of: Callable[..., bytes]) -> None:
    archive = tar_of([("a.jpg", b"a"), ("a.png", b"2" * 600)])
    assert outcome(shard_of(archive[:1700])) == [("", "truncated_shard"), ("a", "ok")]


def test_a_truncated_compressed_shard_is_one_reject(shard_of: Shard, tar_of: Callable[..., bytes]) -> None:
    noise = random.Random(0).randbytes(9000)
    stored = gzip.compress(tar_of([("a.jpg", noise[:3000]), ("b.jpg", noise[3000:])]))
    samples, rejects, summary = read(shard_of(stored[:6000], "s.tar.gz"))
    assert [sample.key for sample in samples] == ["a"]
    assert [(reject.key, reject.reason) for reject in rejects] == [("b", Reason.truncated_shard)]
    assert rejects[0].detail.endswith("the gzip stream breaks off at byte 6000")
    assert summary.size == 6000


def test_a_corrupt_compressed_shard_keeps_what_came_before(shard_of: Shard, tar_of: Callable[..., bytes]) -> None:
    noise = random.Random(0).randbytes(9000)
    stored = bytearray(gzip.compress(tar_of([("a.jpg", noise[:3000]), ("b.jpg", noise[3000:])])))
    stored[-8] ^= 1  # the checksum: nothing is lost, but it cannot be trusted
    samples, rejects, _ = read(shard_of(bytes(stored), "s.tar.gz"))
    assert [sample.key for sample in samples] == ["a", "b"]
    assert [reject.reason for reject in rejects] == [Reason.unreadable_shard]
    assert read(shard_of(gzip.compress(b"")[:10] + b"\xff" * 99, "t.tar.gz"))[1][0].reason == Reason.unreadable_shard


def test_the_checksum_is_that_of_the_whole_file_also_when_reading_stopped_early(shard_of: Shard) -> None:
    stored = bytearray(gzip.compress(bytes(6 * 2**20), 0))
    stored[10] = 0xFF  # the first block is of a type that does not exist
    _, rejects, summary = read(shard_of(bytes(stored), "s.tar.gz"))
    assert [reject.reason for reject in rejects] == [Reason.unreadable_shard]
    assert (summary.size, summary.checksum) == (len(stored), f"sha256:{hashlib.sha256(stored).hexdigest()}")


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_shard_without_permission(shard_of: Shard) -> None:
    shard = shard_of([("a.jpg", b"a")])
    Path(shard).chmod(0)
    assert outcome(shard) == [("", "unreadable_shard")]


def test_a_missing_shard_and_an_unknown_scheme_and_a_folder(tmp_path: Path) -> None:
    for shard in (str(tmp_path / "none.tar"), "gopher://x/y.tar", str(tmp_path)):
        samples, rejects, summary = read(shard)
        assert samples == []
        assert [(reject.key, reject.shard, reject.reason) for reject in rejects] == [
            ("", shard, Reason.unreadable_shard)
        ]
        assert (summary.size, summary.checksum) == (0, "")


class _Handler(SimpleHTTPRequestHandler):
    """Knows no ranges; `/cut` promises more than it sends, `/broken` fails."""

    def do_GET(self) -> None:
        if self.path.startswith("/broken"):
            self.send_error(500)
        elif self.path.startswith("/cut"):
            content = Path(self.directory, "shard.tar").read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:1600])
            self.close_connection = True
        else:
            super().do_GET()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_shards_on_a_web_server(web: str, shard_of: Shard) -> None:
    shard_of([("a.jpg", b"a"), ("b.jpg", b"b" * 6_000_000)])
    samples, rejects, summary = read(f"{web}/shard.tar")
    assert [(sample.key, sample.shard, sample.size) for sample in samples] == [
        ("a", f"{web}/shard.tar", 1),
        ("b", f"{web}/shard.tar", 6_000_000),
    ]
    assert (rejects, summary.size) == ([], 6_010_880)
    for path in ("none.tar", "broken.tar"):
        assert outcome(f"{web}/{path}") == [("", "unreadable_shard")]


def test_a_connection_that_breaks_is_no_end_of_the_shard(web: str, shard_of: Shard) -> None:
    shard_of([("a.jpg", b"a"), ("b.jpg", b"b" * 6000)])
    _, rejects, summary = read(f"{web}/cut.tar")  # whether `a` still comes is up to the client's buffers
    assert [reject.reason for reject in rejects] == [Reason.unreadable_shard]
    assert summary.checksum == ""


# Random damage, with the same seed every time.


def _damage(archive: bytes, generator: random.Random) -> bytes:
    at = generator.randrange(len(archive))
    kind = generator.choice(["flip", "noise", "zeros", "cut"])
    if kind == "cut":
        return archive[:at]
    length = 1 if kind == "flip" else generator.choice([100, 512, 2000])
    other = bytes(length) if kind == "zeros" else generator.randbytes(length)
    return (archive[:at] + other + archive[at + length :])[: len(archive)]


def test_random_damage_costs_no_sample_that_it_does_not_touch(shard_of: Shard, tar_of: Callable[..., bytes]) -> None:
    generator = random.Random(0)
    for _ in range(150):
        images = {f"d/{index}": generator.randbytes(generator.randrange(1, 2000)) for index in range(6)}
        clean = tar_of([(f"{key}.jpg", image) for key, image in images.items()])
        archive = _damage(clean, generator)
        rows = list(read_samples(shard_of(archive)))
        read_back = {row.key: row.image for row in rows if isinstance(row, Sample)}
        at = 0
        for key, image in images.items():
            end = at + 512 + len(image)
            if archive[at:end] == clean[at:end]:
                assert read_back[key] == image
            elif archive[at : at + 512] != clean[at : at + 512] and any(archive[at:]):
                assert any(isinstance(row, Reject) for row in rows)
            at = end + -end % 512
        list(read_samples(shard_of(_damage(gzip.compress(clean), generator))))  # ends, and raises nothing


# Which shards there are.


def touch(folder: Path, *names: str) -> list[str]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return [str(folder / name) for name in names]


def test_a_folder_gives_its_shards_in_order(tmp_path: Path) -> None:
    touch(tmp_path, "b.TAR", "a.tar", "c.tar.gz", "d.Tgz", ".e.tar", "f.txt", "g/h.tar")
    (tmp_path / "i.tar").mkdir()
    assert list_shards([str(tmp_path)]) == [str(tmp_path / name) for name in ("a.tar", "b.TAR", "c.tar.gz", "d.Tgz")]


def test_names_become_absolute_and_each_shard_comes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (shard,) = touch(tmp_path, "d/a b.tar")
    monkeypatch.chdir(tmp_path)
    names = ["d", "d/a b.tar", "./d/../d/a b.tar", shard, f"file://{str(tmp_path).replace(' ', '%20')}/d/a%20b.tar"]
    assert list_shards(names) == [shard]


def test_braces_expand_in_paths_and_urls(tmp_path: Path) -> None:
    shards = touch(tmp_path, "s-000.tar", "s-001.tar", "s-002.tar")
    assert list_shards([f"{tmp_path}/s-{{000..002}}.tar"]) == shards
    assert list_shards(["http://h/{b,a}.tar?x=1", "s3://k/{0..1}.tar"]) == [
        "http://h/a.tar?x=1",
        "http://h/b.tar?x=1",
        "s3://k/0.tar",
        "s3://k/1.tar",
    ]
    (literal,) = touch(tmp_path, "{x}.tar")
    assert list_shards([literal]) == [literal]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("none.tar", r"none\.tar does not exist"),
        ("s-{000..002}.tar", r"s-001\.tar \(one of .*s-\{000\.\.002\}\.tar\) does not exist"),
        ("s-{000..", "unbalanced braces"),
        ("notes.txt", "is no shard: a shard's name ends in .tar, .tar.gz or .tgz"),
        ("empty", r"empty holds no \*\.tar.* among its 1 files"),
    ],
)
def test_what_cannot_be_listed_is_said_in_a_sentence(tmp_path: Path, given: str, message: str) -> None:
    touch(tmp_path, "s-000.tar", "s-002.tar", "notes.txt", "empty/a.jpg")
    with pytest.raises(ShoalError, match=message):
        list_shards([f"{tmp_path}/{given}"])


def test_no_input_and_an_unknown_store_are_said_in_a_sentence() -> None:
    with pytest.raises(ShoalError, match="No shards were given"):
        list_shards([])
    with pytest.raises(ShoalError, match="gopher://x/y cannot be listed"):
        list_shards(["gopher://x/y"])
