"""Commands for other machines: parsed by the real parser, written again so that they mean the same."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.submit.parse import parse_command
from models.errors import ShoalError

VALUES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)


def test_a_command_by_hand() -> None:
    parsed = parse_command(["run", "in put", "--output=o", "-c", "digits", "--set", "a.b=c", "--set=x=-1", "--dry-run"])
    assert (parsed.command, parsed.values("source"), parsed.values("output")) == ("run", ("in put",), ("o",))
    assert (str(parsed.config), parsed.sets, parsed.values("backbone")) == ("digits", ["a.b=c", "x=-1"], ())
    assert parsed.text == "run 'in put' --output o --config digits --set a.b=c --set x=-1 --dry-run"


@settings(max_examples=20)
@given(source=VALUES, output=VALUES, sets=st.lists(VALUES, max_size=3))
def test_what_is_written_again_means_the_same_whatever_the_words_are(source: str, output: str, sets: list[str]) -> None:
    words = ["run", f"--output={output}", *[f"--set={each}" for each in sets], "--", source]
    parsed = parse_command(words)
    assert (parsed.values("source"), parsed.values("output"), parsed.sets) == ((source,), (output,), sets)
    assert parse_command(parsed.words) == parsed
    assert parse_command(shlex.split(parsed.text)) == parsed


def test_arguments_that_look_like_options_stay_arguments() -> None:
    parsed = parse_command(["remove", "table", "--", "-key", "--output"])
    assert parsed.values("keys") == ("-key", "--output")
    assert parse_command(parsed.words) == parsed


def test_other_values_keep_everything_else() -> None:
    parsed = parse_command(["extract", "a", "b", "--output", "t", "--profile"])
    moved = parsed.with_values({"inputs": ["/x/a", "/x/b"], "output": ["/x/t"], "config": ["never given"]})
    assert moved.words == ["extract", "/x/a", "/x/b", "--output", "/x/t", "--profile"]


def test_a_command_of_a_group() -> None:
    assert parse_command(["config", "show", "-c", "digits"]).command == "config show"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "There is no command of shoal; give one of"),
        (["shoal", "run"], "'shoal' is no command of shoal; give one of"),
        (["config"], "no command of shoal config; give one of schema, show"),
        (["run", "in"], "shoal run: Missing option '--output'"),
        (["run", "in", "--outptu", "o"], "No such option: --outptu"),
        (["run", "in", "more", "--output", "o"], "unexpected extra argument"),
        (["cluster", "t", "--prior-scale", "much"], "'--prior-scale'"),
    ],
)
def test_what_shoal_would_refuse_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(ShoalError, match=said):
        parse_command(words)
