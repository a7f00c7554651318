"""Files and folders of a command as another machine finds them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.main import get_command

from jobs.cli import app
from jobs.submit.parse import parse_command
from jobs.submit.places import (
    PATHS,
    SUBMITTABLE,
    Place,
    named_output,
    own_config,
    placed,
    require_absolute_weights,
    require_submittable,
)
from models.errors import ShoalError

HERE = Place(Path("/work place"), is_here=True, url="http://127.0.0.1:8265")
THERE = Place(Path("/work place"), is_here=False, url="http://10.0.0.5:8265")
NO_PATHS = {"after", "as_of", "backbone", "before", "cluster", "config", "dry_run", "generation", "keys"} | {
    "max_reject_fraction", "mode", "name", "prior_scale", "profile", "sets", "shard"
}  # fmt: skip
NOT_FOR_CLUSTERS = {"bench", "config", "jobs", "render", "status", "submit"}


def test_every_command_and_every_parameter_has_been_thought_of() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    assert set(commands) <= SUBMITTABLE | NOT_FOR_CLUSTERS
    assert set(commands) >= SUBMITTABLE
    parameters = {each.name for name in SUBMITTABLE for each in commands[name].params}
    assert parameters - {"help"} == PATHS | NO_PATHS


@pytest.mark.parametrize("words", [["config", "show"], ["bench", "list"], ["status", "x"]])
def test_commands_about_machines_are_not_submitted(words: list[str]) -> None:
    with pytest.raises(ShoalError, match=f"`shoal {words[0]}.* is not for a cluster"):
        require_submittable(parse_command(words))


def test_on_this_machine_relative_paths_are_below_the_working_folder() -> None:
    parsed = parse_command(["run", "in", "--output", "../out", "--json", "f.json", "--set", "report.images=1"])
    assert placed(parsed, HERE).words == [
        *("run", "/work place/in", "--output", "/work place/../out", "--set", "report.images=1"),
        *("--json", "/work place/f.json"),
    ]


def test_elsewhere_a_relative_path_is_refused_with_the_absolute_one() -> None:
    with pytest.raises(ShoalError, match=r"'in' is relative.*/work place/in"):
        placed(parse_command(["run", "in", "--output", "/out"]), THERE)


@pytest.mark.parametrize("place", [HERE, THERE])
def test_absolute_paths_and_urls_stay(place: Place) -> None:
    parsed = parse_command(["extract", "/a/x.tar", "s3://b/{0..9}.tar", "--output", "gs://c/t"])
    assert placed(parsed, place) == parsed


def test_the_demo_writes_where_it_would_have_been_written_from_here() -> None:
    assert placed(parse_command(["demo"]), HERE).words == ["demo", "--output", "/work place/shoal-demo"]
    with pytest.raises(ShoalError, match="'shoal-demo' is relative"):
        placed(parse_command(["demo"]), THERE)


def test_a_config_file_of_the_users_is_found_where_it_is_unpacked_and_a_shipped_one_by_its_name(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text("baseline: false\n")
    command = ["run", "/in", "--output", "/out", "-c"]
    assert placed(parse_command([*command, str(own)]), THERE).config == Path("config/mine.yaml")
    assert placed(parse_command([*command, "digits"]), THERE).config == Path("digits")


def test_a_backbone_is_a_name_unless_there_is_such_a_file(tmp_path: Path) -> None:
    (tmp_path / "trained").mkdir()
    place = Place(tmp_path, is_here=True, url="")
    found = {
        given: placed(parse_command(["extract", "/in", "--output", "/t", "--backbone", given]), place).values(
            "backbone"
        )[0]
        for given in ("timm/resnet18", "trained", "./new", "/a", "s3://b/a")
    }
    assert found == {
        "timm/resnet18": "timm/resnet18",
        "trained": f"{tmp_path}/trained",
        "./new": f"{tmp_path}/./new",
        "/a": "/a",
        "s3://b/a": "s3://b/a",
    }


@pytest.mark.parametrize("weights", ["default", "hub", "random", "/a/b.pth", "s3://a/b"])
def test_weights_that_any_folder_finds(weights: str) -> None:
    require_absolute_weights(weights)


def test_relative_weights_are_refused() -> None:
    with pytest.raises(ShoalError, match=r"backbone.weights is 'b.pth', a relative path"):
        require_absolute_weights("b.pth")


@pytest.mark.parametrize(
    "pattern", ["{/a,/b}/x-{0..9}.tar", "{s3://a,s3://b}/x.tar", "{/a,s3://b}/x.tar", "/a/{b,c}.tar", "{a"]
)
def test_parts_of_a_pattern_that_are_absolute_stay(pattern: str) -> None:
    parsed = parse_command(["run", pattern, "--output", "/o"])
    there = placed(parsed, HERE).values("source")
    assert there == ((f"/work place/{pattern}",) if pattern == "{a" else (pattern,))


def test_a_pattern_of_relative_parts_is_below_the_working_folder_and_a_mixed_one_is_refused(tmp_path: Path) -> None:
    for pattern in ("x-{0..9}.tar", "{a,b}/x.tar"):
        assert HERE.absolute_pattern(pattern) == f"/work place/{pattern}"
        with pytest.raises(ShoalError, match="is relative"):
            THERE.absolute_pattern(pattern)
    for mixed in ("{a,/b}/x.tar", "{~/a,~/b}/x.tar", "{a,s3://b}/x"):
        with pytest.raises(ShoalError, match="paths of several kinds"):
            HERE.absolute_pattern(mixed)
    (tmp_path / "{a,").mkdir()
    (tmp_path / "{a," / "b}").touch()  # braces can be part of a name
    assert Place(tmp_path, True, "").absolute_pattern("{a,/b}") == f"{tmp_path}/{{a,/b}}"


def test_braces_of_other_names_are_letters() -> None:
    assert placed(parse_command(["run", "/i", "--output", "{/a,/b}"]), HERE).values("output") == (
        "/work place/{/a,/b}",
    )


def test_a_home_folder_is_this_users_here_and_unknown_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    parsed = parse_command(["run", "~/{a,b}.tar", "--output", "~/o"])
    assert placed(parsed, HERE).words == ["run", "/home/me/{a,b}.tar", "--output", "/home/me/o"]
    with pytest.raises(ShoalError, match=r"in a home folder.*such as /home/me/"):
        placed(parsed, THERE)


def test_a_config_that_can_be_read_only_once_is_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for config in (pipe, tmp_path):
        with pytest.raises(ShoalError, match=r"no regular file.*write it to a file"):
            own_config(parse_command(["run", "/i", "--output", "/o", "-c", str(config)]))


@pytest.mark.parametrize(
    ("words", "output"),
    [
        (["run", "a", "--output", "b"], "b"),
        (["cluster", "t"], "t"),
        (["report", "t", "--output", "f"], "f"),
        (["show", "p"], None),
    ],
)
def test_what_a_command_writes(words: list[str], output: str | None) -> None:
    assert named_output(parse_command(words)) == output
