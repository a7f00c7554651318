"""Files and folders of a command as another machine finds them."""

from __future__ import annotations

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


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(ShoalError, match="a name or a password") as raised:
        placed(parse_command(["run", "https://me:hunter2@a/x.tar", "--output", "/o"]), THERE)
    assert "hunter2" not in str(raised.value)


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
