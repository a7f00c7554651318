"""Members and gaps of archives whose every byte is known."""

from __future__ import annotations

import gzip
import io
import random
import struct
import tarfile
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.ingest.tar import BLOCK, MAX_PADDING_BYTES, Gap, Member, Other, read_members
from pipeline.tables.schema import Reason

END = bytes(2 * BLOCK)


def scan(archive: bytes, max_bytes: int = 2**20) -> list[Member | Other | Gap]:
    return list(read_members(io.BytesIO(archive), max_bytes))


def member(name: str, data: bytes, kind: bytes = tarfile.REGTYPE, **fields: object) -> bytes:
    """Header and padded data of one member in GNU format."""
    info = tarfile.TarInfo(name)
    info.size, info.type = len(data), kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % BLOCK)


def pax(records: bytes) -> bytes:
    return member("pax", records, tarfile.XHDTYPE)


def test_offset_and_size_are_those_of_the_data() -> None:
    archive = member("a.jpg", b"x" * 700) + member("b.cls", b"7") + END
    assert scan(archive) == [Member("a.jpg", 512, 700, b"x" * 700), Member("b.cls", 2048, 1, b"7")]
    assert archive[2048:2049] == b"7"


def test_a_member_without_data_takes_only_its_header() -> None:
    assert scan(member("a.jpg", b"") + member("b.jpg", b"b") + END) == [
        Member("a.jpg", 512, 0, b""),
        Member("b.jpg", 1024, 1, b"b"),
    ]


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", ["d/" * 90 + "long.jpg", "Ä.日本.jpg", "e\u0301.jpg", "x" * 99 + ".jpg"])
def test_long_and_unicode_names_are_kept(tar_of: Callable[..., bytes], name: str, format: int) -> None:  # noqa: A002
    read = scan(tar_of([(name, b"one"), ("b.jpg", b"two")], format))
    assert [(item.name, item.data) for item in read if isinstance(item, Member)] == [(name, b"one"), ("b.jpg", b"two")]
    assert not [item for item in read if isinstance(item, Gap)]


def test_bytes_that_are_not_utf8_are_spelled_out() -> None:
    archive = tarfile.TarInfo("caf\udce9.jpg").tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape") + END
    assert scan(archive) == [Member("caf\\xe9.jpg", 512, 0, b"")]


def test_pax_size_and_path_replace_those_of_the_header() -> None:
    records = b"10 size=3\n17 path=real.jpg\n"
    archive = pax(records) + member("short.jpg", b"abc", size=0)[:512] + b"abc" + bytes(509) + END
    assert scan(archive) == [Member("real.jpg", 1536, 3, b"abc")]


def test_links_devices_and_folders_have_no_data_and_are_not_members() -> None:
    kinds = [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]
    archive = (
        b"".join(member("a.jpg", b"", kind, linkname="/etc/passwd") for kind in kinds) + member("b.jpg", b"b") + END
    )
    assert scan(archive) == [Other("a.jpg")] * len(kinds) + [Member("b.jpg", 512 * 7, 1, b"b")]


def test_a_member_above_the_limit_is_named_but_not_read() -> None:
    archive = member("a.jpg", b"x" * 101) + member("b.jpg", b"x" * 100) + END
    assert scan(archive, max_bytes=100) == [Member("a.jpg", 512, 101, None), Member("b.jpg", 1536, 100, b"x" * 100)]


def test_sparse_files_are_gaps() -> None:
    gnu = member("a.jpg", b"x" * 600, tarfile.GNUTYPE_SPARSE)
    modern = pax(b"22 GNU.sparse.major=1\n") + member("GNUSparseFile.0/b.jpg", b"map")
    read = scan(gnu + modern + member("c.jpg", b"c") + END)
    assert [(item.reason, item.start, item.end, item.name) for item in read if isinstance(item, Gap)] == [
        (Reason.unsupported_image, 0, 1536, "a.jpg"),
        (Reason.unsupported_image, 1536, 3584, "GNUSparseFile.0/b.jpg"),
    ]
    assert read[-1] == Member("c.jpg", 4096, 1, b"c")


def test_a_damaged_header_is_one_gap_up_to_the_next_header() -> None:
    archive = bytearray(member("a.jpg", b"a") + member("b.jpg", b"b" * 1000) + member("c.jpg", b"c") + END)
    archive[1024 + 124] ^= 1  # in the size field of b
    assert scan(bytes(archive)) == [
        Member("a.jpg", 512, 1, b"a"),
        Gap(1024, 2560, Reason.damaged_header, "no valid header"),
        Member("c.jpg", 3072, 1, b"c"),
    ]


def test_python_reads_that_archive_as_if_nothing_were_missing(tar_of: Callable[..., bytes]) -> None:
    """Why this module exists."""
    archive = bytearray(tar_of([("a.jpg", b"a"), ("b.jpg", b"b"), ("c.jpg", b"c")]))
    archive[1024] ^= 1
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r|*") as tar:
        assert [info.name for info in tar] == ["a.jpg"]
    assert [item.name for item in scan(bytes(archive)) if isinstance(item, Member)] == ["a.jpg", "c.jpg"]


def test_the_first_header_may_be_damaged_too() -> None:
    archive = b"?" * 512 + member("a.jpg", b"a")[512:] + member("b.jpg", b"b") + END
    assert scan(archive) == [Gap(0, 1024, Reason.damaged_header, "no valid header"), Member("b.jpg", 1536, 1, b"b")]


def test_damage_in_the_last_header_ends_before_the_end_marker() -> None:
    archive = member("a.jpg", b"a") + b"?" * 1024 + END
    assert scan(archive)[1:] == [Gap(1024, 2048, Reason.damaged_header, "no valid header up to the end of the archive")]


@pytest.mark.parametrize("zeros", [512, 1024, 4096])
def test_zeros_between_members_are_a_gap(zeros: int) -> None:
    archive = member("a.jpg", b"a") + bytes(zeros) + member("b.jpg", b"b") + END
    gaps = [item for item in scan(archive) if isinstance(item, Gap)]
    assert gaps == [Gap(1024, 1024 + zeros, Reason.damaged_header, "no valid header")]


def test_a_long_name_lost_to_damage_does_not_come_back_shortened(tar_of: Callable[..., bytes]) -> None:
    long = "x" * 150 + ".jpg"
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):  # noqa: A001
        archive = bytearray(tar_of([(long, b"a"), ("b.jpg", b"b")], format))
        archive[0] ^= 1  # in the extended header
        assert [item.name for item in scan(bytes(archive)) if isinstance(item, Member)] == ["b.jpg"]


def test_pax_replaces_what_is_not_ascii_so_such_names_are_not_believed_behind_a_gap(
    tar_of: Callable[..., bytes],
) -> None:
    archive = bytearray(tar_of([("caf\u00e9.jpg", b"a"), ("b.jpg", b"b")], tarfile.PAX_FORMAT))
    assert b"caf?.jpg" in archive
    archive[148] ^= 1
    assert [item.name for item in scan(bytes(archive)) if isinstance(item, Member)] == ["b.jpg"]


@pytest.mark.parametrize(
    "records",
    [b"99 path=short.jpg\n", b"5 path=a.jpg\n", b"path=a.jpg\n", b"14 path=a.jpg ", b"12 size=abc\n", b"\0" * 40],
)
def test_damaged_pax_records_are_a_gap_of_the_whole_member(records: bytes) -> None:
    long = member("y" * 100, b"data")
    archive = pax(records) + long + member("b.jpg", b"b") + END
    assert scan(archive) == [Gap(0, 2048, Reason.damaged_header, "no valid header"), Member("b.jpg", 2560, 1, b"b")]


def test_an_extended_header_as_large_as_a_file_is_damage() -> None:
    archive = member("name", b"", tarfile.GNUTYPE_LONGNAME, size=2**33)[:512] + member("b.jpg", b"b") + END
    assert scan(archive) == [Gap(0, 512, Reason.damaged_header, "no valid header"), Member("b.jpg", 1024, 1, b"b")]


def test_a_negative_size_is_damage() -> None:
    header = bytearray(member("a.jpg", b""))
    header[124:136] = b"\xff" * 12  # base 256: -1
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    assert tarfile.TarInfo.frombuf(bytes(header), "utf-8", "strict").size == -1
    assert scan(bytes(header) + member("b.jpg", b"b") + END)[0] == Gap(0, 512, Reason.damaged_header, "no valid header")


def test_a_size_beyond_the_end_is_a_truncated_member() -> None:
    archive = member("a.jpg", b"a") + member("b.jpg", b"b" * 700, size=2**40)
    detail = f"the archive ends after 1024 of the member's {2**40} bytes"
    for limit in (2**20, 2**50):
        assert scan(archive, limit)[1:] == [Gap(1024, 2560, Reason.truncated_shard, detail, "b.jpg")]


def test_every_truncation_ends_in_exactly_one_gap_up_to_the_end() -> None:
    archive = member("a.jpg", b"a" * 600) + member("b.jpg", b"b" * 600)
    for end in range(1, len(archive) + 1):
        *members, gap = scan(archive[:end])
        assert not [item for item in members if isinstance(item, Gap)]
        assert isinstance(gap, Gap)
        assert gap.end == end
        assert gap.reason == (Reason.not_a_tar if end < BLOCK else Reason.truncated_shard)
        whole = (end >= 512 + 600) + (end >= 1536 + 512 + 600)
        assert [item.name for item in members if isinstance(item, Member)] == ["a.jpg", "b.jpg"][:whole]


def test_a_cut_between_members_is_noticed_and_one_in_the_end_marker_is_harmless() -> None:
    whole = member("a.jpg", b"a")
    assert scan(whole)[1:] == [
        Gap(1024, 1024, Reason.truncated_shard, "the archive ends without an end marker at byte 1024")
    ]
    assert scan(whole + bytes(512)) == [Member("a.jpg", 512, 1, b"a")]


def test_bytes_behind_the_end_marker_are_a_gap_and_members_there_are_read() -> None:
    head = member("a.jpg", b"a") + END
    assert scan(head + b"junk" * 128)[1:] == [
        Gap(1024, 2560, Reason.damaged_header, "no valid header up to the end of the archive")
    ]
    assert [item.name for item in scan(head + member("b.jpg", b"b") + END) if isinstance(item, Member)] == [
        "a.jpg",
        "b.jpg",
    ]


def test_a_tail_of_zeros_is_suspicious_only_beyond_any_record_size() -> None:
    head = member("a.jpg", b"a")
    assert len(scan(head + bytes(MAX_PADDING_BYTES))) == 1
    gap = scan(head + bytes(MAX_PADDING_BYTES + BLOCK))[1]
    assert isinstance(gap, Gap)
    assert (gap.start, gap.end, gap.reason) == (1024, 1024 + MAX_PADDING_BYTES + BLOCK, Reason.truncated_shard)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", Reason.empty_shard),
        (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", Reason.not_a_tar),
        (b"<html>" + b"<p>no</p>" * 1000, Reason.not_a_tar),
        (random.Random(0).randbytes(10_000), Reason.not_a_tar),
        (b"PK\3\4" + bytes(1000), Reason.not_a_tar),
    ],
)
def test_what_is_no_archive_is_one_gap(content: bytes, reason: Reason) -> None:
    (gap,) = scan(content)
    assert isinstance(gap, Gap)
    assert (gap.start, gap.reason) == (0, reason)


@pytest.mark.parametrize("blocks", [1, 2, 20])
def test_only_end_blocks_is_an_archive_of_nothing(blocks: int) -> None:
    assert scan(bytes(BLOCK * blocks)) == []


def test_old_headers_without_a_magic_are_read() -> None:
    header = bytearray(512)
    header[:5], header[100:107], header[124:135] = b"a.jpg", b"0000644", b"00000000001"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    assert scan(bytes(header) + b"a" + bytes(511) + END) == [Member("a.jpg", 512, 1, b"a")]


@pytest.mark.parametrize("size", [b"00000000003\0", b"00000000003 ", b"         3 \0", b"\x80" + bytes(10) + b"\3"])
@pytest.mark.parametrize("mode", [b"0000644\0", b"000644 \0", b"   644 \0", b"0000644 ", bytes(8)])
@pytest.mark.parametrize("checksum", [b"%06o\0 ", b"%06o \0", b"%07o\0", b" %5o \0"])
def test_numbers_are_read_as_tar_bsdtar_and_others_write_them(size: bytes, mode: bytes, checksum: bytes) -> None:
    header = bytearray(member("a.jpg", b"abc"))
    header[100:108], header[124:136], header[148:156] = mode, size, b" " * 8
    header[148:156] = checksum % sum(header[:512])
    assert scan(bytes(header) + END) == [Member("a.jpg", 512, 3, b"abc")]


@pytest.mark.parametrize("flip", [1, 0x80])
def test_every_changed_byte_of_a_header_is_damage(flip: int) -> None:
    clean = member("d/a.jpg", b"abc", uid=1000, mtime=1_700_000_000, uname="u") + member("b.jpg", b"b") + END
    for at in range(512):
        archive = bytearray(clean)
        archive[at] ^= flip
        if at != 155:  # the space behind the checksum, which is no part of it
            assert scan(bytes(archive))[0] == Gap(0, 1024, Reason.damaged_header, "no valid header"), at


def test_a_checksum_of_signed_bytes_is_one() -> None:
    header = bytearray(member("a.jpg", b"abc", uname="\xe9"))
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % (sum(header[:512]) - 256 * sum(byte > 127 for byte in header[:512]))
    assert scan(bytes(header) + END) == [Member("a.jpg", 512, 3, b"abc")]


def test_a_file_whose_name_ends_in_a_slash_and_a_prefix_are_understood() -> None:
    prefixed = bytearray(member("a.jpg", b"abc"))
    prefixed[345:351], prefixed[148:156] = b"folder", b" " * 8
    prefixed[148:156] = b"%06o\0 " % sum(prefixed[:512])
    assert scan(bytes(prefixed) + END) == [Member("folder/a.jpg", 512, 3, b"abc")]
    assert scan(member("a.jpg/", b"") + END) == scan(member("a.jpg/", b"", tarfile.REGTYPE) + END)


def test_a_gzip_file_is_no_archive_at_this_level(tar_of: Callable[..., bytes]) -> None:
    (gap,) = scan(gzip.compress(tar_of([("a.jpg", struct.pack("<600I", *range(600)))])))
    assert isinstance(gap, Gap)
    assert gap.reason == Reason.not_a_tar


NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60)


@given(
    members=st.lists(st.tuples(NAMES.map(lambda name: name + ".jpg"), st.binary(max_size=1500)), max_size=6),
    format=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_what_tarfile_writes_is_read_back(
    tar_of: Callable[..., bytes],
    members: list[tuple[str, bytes]],
    format: int,  # noqa: A002
) -> None:
    archive = tar_of(members, format)
    read = scan(archive)
    assert [(item.name, item.data) for item in read if isinstance(item, Member)] == members
    assert len(read) == len(members)
    assert all(archive[item.offset : item.offset + item.size] == item.data for item in read if isinstance(item, Member))


@given(position=st.integers(0, 5 * 1024 - 1), noise=st.binary(min_size=1, max_size=1500))
def test_members_that_damage_does_not_touch_are_all_read(position: int, noise: bytes) -> None:
    spans = [(f"{index}.jpg", bytes([65 + index]) * 500) for index in range(5)]
    clean = b"".join(member(*span) for span in spans) + END
    archive = (clean[:position] + noise + clean[position + len(noise) :])[: len(clean)]
    intact = {
        name for index, (name, _) in enumerate(spans) if archive[index * 1024 :][:1024] == clean[index * 1024 :][:1024]
    }
    read = scan(archive)
    assert intact <= {item.name for item in read if isinstance(item, Member)}
    ends = [(item.start, item.end) for item in read if isinstance(item, Gap)]
    assert all(0 <= start <= end <= len(archive) for start, end in ends)
