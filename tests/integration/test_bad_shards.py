"""One folder with everything that is ever wrong with shards, through the real workers into one table."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.backbones import BackboneConfig
from pipeline.extract.extract import ExtractConfig, ExtractSummary, extract
from pipeline.ingest.shards import list_shards
from pipeline.tables.collection import Collection
from pipeline.tables.samples import embedding_matrix

NOISE_HW3 = np.random.default_rng(0).integers(0, 256, (32, 24, 3), dtype=np.uint8)


def image(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(NOISE_HW3).save(buffer, kind, **options)
    return buffer.getvalue()


PNG, JPEG = image("PNG"), image("JPEG")


def tar_of(members: Iterable[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def with_byte(data: bytes, at: int) -> bytes:
    """`data` with one byte changed."""
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


def forged_png() -> bytes:
    """A header of 60,000 × 60,000 pixels with the right checksum, and the pixels of a small image."""
    header = b"IHDR" + struct.pack(">II", 60_000, 60_000) + PNG[24:29]
    return PNG[:12] + header + struct.pack(">I", zlib.crc32(header)) + PNG[33:]


THREE = tar_of([("a.png", PNG), ("b.png", PNG), ("c.png", PNG)])
SECOND_HEADER = 512 + -(-len(PNG) // 512) * 512

SHARDS = {
    "cut.tar": THREE[: SECOND_HEADER + 700],
    "cut.tar.gz": gzip.compress(THREE)[:-4],
    "empty.tar": b"",
    "good.tar": tar_of([("a.png", PNG), ("a.cls", b"cat"), ("b.JPG", JPEG)]),
    "header.tar": with_byte(THREE, SECOND_HEADER + 3),
    "images.tar": tar_of(
        [
            ("folder/猫 é.png", PNG),
            ("crc.png", with_byte(PNG, 60)),
            ("cut.jpg", JPEG[:-300]),
            ("half.png", PNG[:-300]),
            ("forged.png", forged_png()),
            ("nothing.png", b""),
            ("tables.jpg", with_byte(JPEG, JPEG.index(b"\xff\xc4") + 5)),
            ("text.png", b"not an image at all"),
            ("text.cls", b"label of a reject"),
            ("../escape.png", PNG),
            ("lonely.cls", b"no image"),
            ("folder/猫 é.png", PNG),
            ("two.frames.gif", image("GIF", save_all=True, append_images=[Image.new("RGB", (24, 32))])),
            ("last.webp", image("WEBP", lossless=True)),
        ]
    ),
    "packed.tar.gz": gzip.compress(THREE),
    "page.tar": b"<!DOCTYPE html><title>404 Not Found</title>" * 50,
    "zeros.tar": bytes(10_240),
}

OK = [
    ("cut.tar", "a"),
    ("cut.tar.gz", "a"),
    ("cut.tar.gz", "b"),
    ("cut.tar.gz", "c"),
    ("good.tar", "a"),
    ("good.tar", "b"),
    ("header.tar", "a"),
    ("header.tar", "c"),
    ("images.tar", "folder/猫 é"),
    ("images.tar", "two"),
    ("images.tar", "last"),
    ("packed.tar.gz", "a"),
    ("packed.tar.gz", "b"),
    ("packed.tar.gz", "c"),
]

REJECTED = [
    ("cut.tar", "b", "truncated_shard"),
    ("cut.tar.gz", "", "truncated_shard"),
    ("empty.tar", "", "empty_shard"),
    ("header.tar", "", "damaged_header"),
    ("images.tar", "crc", "corrupt_image"),
    ("images.tar", "cut", "truncated_image"),
    ("images.tar", "half", "truncated_image"),
    ("images.tar", "forged", "image_too_large"),
    ("images.tar", "nothing", "empty_image"),
    ("images.tar", "tables", "corrupt_image"),
    ("images.tar", "../escape", "unsafe_member"),  # known at once; the one before it when the next key begins
    ("images.tar", "text", "unsupported_image"),
    ("images.tar", "folder/猫 é", "duplicate_key"),
    ("images.tar", "lonely", "no_image"),
    ("page.tar", "", "not_a_tar"),
    ("zeros.tar", "", "empty_shard"),
]


@pytest.fixture(scope="module")
def run(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Collection, ExtractSummary]:
    folder = tmp_path_factory.mktemp("bad")
    for name, data in SHARDS.items():
        (folder / name).write_bytes(data)
    table = Collection.create(folder / "table")
    config = ExtractConfig(actors=1, commit_shards=3)
    return table, extract(list_shards([str(folder)]), table, BackboneConfig(name="pixels", size=8), config)


def test_every_sound_image_is_a_row_and_everything_else_a_reject_with_its_reason(
    run: tuple[Collection, ExtractSummary],
) -> None:
    samples = run[0].samples
    rows = [row for file in samples.files() for row in samples.read(file, ["shard", "key"]).to_pylist()]
    assert [(Path(row["shard"]).name, row["key"]) for row in rows] == OK
    rejects = samples.rejects().to_pylist()
    assert [(Path(row["shard"]).name, row["key"], row["reason"]) for row in rejects] == REJECTED


def test_sound_images_beside_damage_have_the_embedding_they_have_anywhere(
    run: tuple[Collection, ExtractSummary],
) -> None:
    samples = run[0].samples
    rows = [samples.read(file) for file in samples.files()]
    same_ND = [
        embedding
        for table in rows
        for key, embedding in zip(table["key"].to_pylist(), embedding_matrix(table), strict=True)
        if key in ("a", "c", "folder/猫 é", "last")  # all lossless copies of one picture
    ]
    assert len(same_ND) == 10
    assert all(np.array_equal(x_D, same_ND[0]) for x_D in same_ND)


def test_labels_come_with_rows_and_with_rejects(run: tuple[Collection, ExtractSummary]) -> None:
    samples = run[0].samples
    labels = {row["label"] for file in samples.files() for row in samples.read(file, ["label"]).to_pylist()}
    assert labels == {None, "cat"}
    assert {row["label"] for row in samples.rejects().to_pylist()} == {None, "label of a reject", "no image"}


def test_the_run_survives_and_counts_everything(run: tuple[Collection, ExtractSummary]) -> None:
    table, summary = run
    assert (summary.images, summary.rejected, summary.shards_done) == (len(OK), len(REJECTED), len(SHARDS))
    assert (summary.shards_failed, summary.shards_changed) == ({}, [])
    assert table.shards.count() == len(SHARDS)
    for record in table.shards.records().values():
        assert record.size == len(SHARDS[Path(record.shard).name])
