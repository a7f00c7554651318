"""Names to keys as WebDataset makes them, and paths to keys that survive it."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from webdataset.tariterators import base_plus_ext

from pipeline.ingest.names import is_image, is_shard, is_unsafe, label_of, split_name, unique_keys


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a.jpg", ("a", "jpg")),
        ("a.JPG", ("a", "jpg")),
        ("d.x/a.seg.png", ("d.x/a", "seg.png")),
        ("./a.jpg", ("./a", "jpg")),
        ("日本/猫.jpeg", ("日本/猫", "jpeg")),
        (".hidden.jpg", None),
        ("d/.hidden", None),
        ("README", None),
        ("a.", None),
        ("", None),
        ("__meta__/a.jpg", None),
        ("__meta__", None),
        ("__a__.jpg", ("__a__", "jpg")),
    ],
)
def test_names_are_split_at_the_first_dot_of_the_last_part(name: str, parts: tuple[str, str] | None) -> None:
    assert split_name(name) == parts


@given(name=st.text(st.sampled_from("ab._/Ä-"), max_size=12))
def test_the_split_is_webdatasets(name: str) -> None:
    key, suffix = base_plus_ext(name)
    hidden = key is not None and key.endswith("/")  # its pattern makes "d/" of "d/._a.jpg", which macOS leaves behind
    skipped = key is None or hidden or not suffix or re.match(r"__[^/]*__($|/)", name)
    assert split_name(name) == (None if skipped else (key, suffix.lower()))


def test_extensions_count_in_any_case() -> None:
    assert [name for name in ("a.JPG", "b.tar.Png", "c.txt", "jpg.d", "e") if is_image(name)] == ["a.JPG", "b.tar.Png"]
    assert [name for name in ("a.TAR", "b.tar.gz", "c.tgz", "d.tar.bz2", "tar") if is_shard(name)] == [
        "a.TAR",
        "b.tar.gz",
        "c.tgz",
    ]


def test_unsafe_names_lead_out_of_a_folder() -> None:
    names = ["/a.jpg", "../a.jpg", "d/../../a.jpg", "a..b.jpg", "..a.jpg", "d/a.jpg"]
    assert [name for name in names if is_unsafe(name)] == ["/a.jpg", "../a.jpg", "d/../../a.jpg"]


def test_the_label_is_the_first_folder() -> None:
    assert [label_of(path) for path in ("cats/a.jpg", "cats/big/a.jpg", "a.jpg")] == ["cats", "cats", None]


def test_keys_by_hand() -> None:
    paths = [
        "cat.v2.JPG",
        "cat_v2.jpg",
        "cat_v2-1.jpg",
        "v1.0/a.jpg",
        "v1.0/a.png",
        "__x__/a.jpg",
        "a\nb.jpg",
        "caf\udce9.gif",
    ]
    assert unique_keys(paths) == [
        "cat_v2",
        "cat_v2-1",
        "cat_v2-1-1",
        "v1.0/a",
        "v1.0/a-1",
        "_x__/a",
        "a_b",
        "caf\\xe9",
    ]


PARTS = st.text(st.sampled_from("ab._-Ä\n"), min_size=1, max_size=5).filter(lambda part: not part.startswith("."))


@given(paths=st.lists(st.lists(PARTS, min_size=1, max_size=3).map("/".join), unique=True, max_size=20))
@example(paths=["_____/a"])
def test_keys_are_unique_and_come_back_from_member_names(paths: list[str]) -> None:
    keys = unique_keys([f"{path}.jpg" for path in paths])
    assert len(set(keys)) == len(paths)
    assert [split_name(f"{key}.jpg") for key in keys] == [(key, "jpg") for key in keys]
