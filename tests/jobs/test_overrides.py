"""Keys, YAML files and `--set`: what is understood, and the sentence for what is not."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from jobs.config import RunConfig
from jobs.overrides import dotted_keys, explain, merge, nearest, parse_sets, read_yaml
from models.config import Config
from models.errors import ShoalError

KEYS = sorted(dotted_keys(RunConfig))


class Ring(Config):
    kind: Literal["ring"] = "ring"
    radius_m: float = Field(default=1.0, gt=0)


class Box(Config):
    kind: Literal["box"] = "box"
    width_m: float = 2.0
    corners: Literal["sharp", "round"] = "sharp"


class Tree(Config):
    shape: Annotated[Ring | Box, Field(discriminator="kind")] = Ring()
    extra: Box | None = None
    free: dict[str, int] = Field(default_factory=dict)


def test_keys_are_those_of_every_member_of_a_union() -> None:
    assert set(dotted_keys(Tree)) == {
        "shape",
        "shape.kind",
        "shape.radius_m",
        "shape.width_m",
        "shape.corners",
        "extra",
        "extra.kind",
        "extra.width_m",
        "extra.corners",
        "free",
    }


def test_values_are_yaml() -> None:
    tree = parse_sets(["shape.radius_m=2.5", "extra=null", "free={a: 1}"], Tree)
    assert tree == {"shape": {"radius_m": 2.5}, "extra": None, "free": {"a": 1}}


def test_of_one_key_given_twice_the_last_counts() -> None:
    assert parse_sets(["shape.radius_m=1", "shape.radius_m=2"], Tree) == {"shape": {"radius_m": 2}}


def test_a_value_may_contain_the_equals_sign() -> None:
    assert parse_sets(["shape.kind=a=b"], Tree) == {"shape": {"kind": "a=b"}}


@given(st.permutations(["shape.kind=box", "shape.width_m=3", "shape.corners=round"]))
def test_the_order_of_sets_does_not_matter(sets: list[str]) -> None:
    merged = merge(Tree().model_dump(), parse_sets(sets, Tree))
    assert Tree.model_validate(merged).shape == Box(width_m=3.0, corners="round")


def test_another_kind_drops_the_settings_of_the_one_before() -> None:
    base = Tree(shape=Ring(radius_m=7.0)).model_dump()
    assert merge(base, {"shape": {"kind": "box"}})["shape"] == {"kind": "box"}
    assert merge(base, {"shape": {"kind": "ring"}})["shape"] == {"kind": "ring", "radius_m": 7.0}


def test_merging_changes_neither_side() -> None:
    base, changes = {"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}
    assert merge(base, changes) == {"a": {"b": 3, "c": 2}}
    assert (base, changes) == ({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}})


@given(data=st.data(), key=st.sampled_from(KEYS), letter=st.sampled_from(string.ascii_lowercase + "_"))
def test_a_typo_of_one_letter_names_the_key_that_was_meant(data: st.DataObject, key: str, letter: str) -> None:
    at = data.draw(st.integers(0, len(key) - 1))
    typo = data.draw(
        st.sampled_from([key[:at] + key[at + 1 :], key[:at] + letter + key[at:], key[:at] + letter + key[at + 1 :]])
    )
    assume(typo != key and _one_letter_from(typo) == [key])
    with pytest.raises(ShoalError, match="there is no setting") as caught:
        parse_sets([f"{typo}=1"], RunConfig)
    assert f"the nearest is {key!r}" in str(caught.value)


def _one_letter_from(typo: str) -> list[str]:
    """Keys that differ from `typo` by at most one letter."""
    letters = ["", *string.ascii_lowercase, "_", "."]
    inserted = {typo[:i] + letter + typo[i:] for i in range(len(typo) + 1) for letter in letters}
    replaced = {typo[:i] + letter + typo[i + 1 :] for i in range(len(typo)) for letter in letters}
    return [key for key in KEYS if key in inserted | replaced]


def test_the_nearest_key_to_itself_is_itself() -> None:
    assert [nearest(key, set(KEYS)) for key in KEYS] == KEYS


def test_a_file_is_read_and_an_empty_one_says_nothing(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("# a comment\nshape: {kind: box}\n")
    assert read_yaml(file, Tree) == {"shape": {"kind": "box"}}
    file.write_text("# only a comment\n")
    assert read_yaml(file, Tree) == {}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("shape: {kidn: box}", "there is no setting 'shape.kidn'; the nearest is 'shape.kind'."),
        ("- a\n- b\n", "holds ['a', 'b'] but settings are a mapping"),
        ("shape: !!python/object/apply:os.system ['touch {marker}']", "is not a plain YAML file (could not determine"),
        ("shape: [", "is not a plain YAML file (while parsing"),
        ("a: &a {b: *a}", "the alias *a: write the values out; aliases are not read"),
        ("a: 2024-13-01", "it has a value that is none: month must be in 1..12"),
        (f"a: {'9' * 5_000}", "it has a value that is none: Exceeds the limit"),
        ("a: !!int ''", "it has a value that is none"),
        ("a: !!bool maybe", "it has a value that is none"),
        ("a: !!timestamp soon", "it has a value that is none"),
    ],
)
def test_a_wrong_file_is_one_sentence_with_its_name(tmp_path: Path, text: str, sentence: str) -> None:
    file, marker = tmp_path / "run.yaml", tmp_path / "marker"
    file.write_text(text.replace("{marker}", str(marker)))
    with pytest.raises(ShoalError) as caught:
        read_yaml(file, Tree)
    assert sentence in str(caught.value)
    assert str(file) in str(caught.value)
    assert not marker.exists()


def test_bytes_that_are_no_text_are_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ShoalError, match="is not a plain YAML file"):
        read_yaml(file, Tree)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("shape.radius_m", "--set shape.radius_m has no value; write it as --set shape.radius_m=VALUE."),
        ("shpe.radius_m=1", "--set: there is no setting 'shpe.radius_m'; the nearest is 'shape.radius_m'."),
        ("shape={radius: 1}", "--set: there is no setting 'shape.radius'; the nearest is 'shape.radius_m'."),
        ("free=[1", "--set free=[1 is not a YAML value"),
    ],
)
def test_a_wrong_set_is_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ShoalError) as caught:
        parse_sets([text], Tree)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"shape": {"radius_m": -1}}, "shape.radius_m is -1 but should be greater than 0."),
        ({"shape": {"kind": "bix"}}, "shape.kind is 'bix' but should be one of 'ring', 'box'."),
        ({"shape": 3}, "shape is 3 but is a section of settings; write them as shape.NAME."),
        ({"extra": {"corners": "odd"}}, "extra.corners is 'odd' but should be 'sharp' or 'round'."),
        (
            {"shape": {"width_m": 1}},
            "shape of kind 'ring' has no setting 'width_m'; leave it out, or choose a shape.kind that has it.",
        ),
        ({"free": {"a": "b"}, "extra": 1}, "extra is 1 but is a section of settings"),
    ],
)
def test_a_wrong_value_is_one_sentence_with_its_key(changes: dict[str, object], sentence: str) -> None:
    tree = merge(Tree().model_dump(), changes)
    with pytest.raises(ValidationError) as caught:
        Tree.model_validate(tree)
    assert explain(caught.value, tree).startswith(sentence)


def test_several_wrong_values_are_counted() -> None:
    tree = {"shape": {"kind": "box", "width_m": "w", "corners": "c"}}
    with pytest.raises(ValidationError) as caught:
        Tree.model_validate(tree)
    assert explain(caught.value, tree).endswith("(and 1 more like it).")
