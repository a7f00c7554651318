"""The command line: what it refuses, what it only plans, and what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner, Result

from jobs.bench.registry import BENCHMARKS
from jobs.cli import app
from jobs.config import RunConfig

HEAVY = ("torch", "ray", "umap", "sklearn", "faiss", "timm", "pyarrow", "deltalake", "matplotlib")


def shoal(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Six grey images of two labels."""
    source = tmp_path / "images"
    for index, label in enumerate(["cat", "dog"] * 3):
        (source / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), 40 * index, np.uint8)).save(source / label / f"{index}.png")
    return source


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["config", "show", "--set", "clustr.fit.seed=1"],
            "--set: there is no setting 'clustr.fit.seed'; the nearest is",
        ),
        (["config", "show", "--set", "cluster.fit.seed=x"], "cluster.fit.seed is 'x' but should be a valid integer"),
        (["config", "show", "--config", "/nowhere.yaml"], "/nowhere.yaml does not exist; check the path"),
        (["config", "show", "--config", "/"], "/ is a folder, not a file"),
        (["show", "/nowhere"], "There is nothing at /nowhere; give a table, a run folder, an artifact or a shard."),
        (["cluster", "/nowhere"], "There is nothing at /nowhere; give a table"),
        (["evaluate", "/nowhere"], "There is nothing at /nowhere; give a table"),
        (["report", "/nowhere"], "There is nothing at /nowhere; give a table"),
        (["assign", "/nowhere"], "There is nothing at /nowhere; give a table"),
        (["shards", "/nowhere", "--output", "/nowhere/else"], "/nowhere is not a folder; name a folder of images."),
        (
            ["run", "/nowhere", "--output", "/nowhere/else", "--dry-run"],
            "/nowhere does not exist; name an existing shard",
        ),
        (["show", "/", "--json", "/nowhere/figures.json"], "--json /nowhere/figures.json is in a folder that does not"),
        (["bench", "dmo"], "There is no benchmark 'dmo'; the nearest is 'demo'"),
        (["bench", "dpm-mnist", "--data", "/nowhere.npz"], "There is no data at /nowhere.npz; give the .npz file"),
    ],
)
def test_what_is_refused_is_one_line_on_stderr_and_exit_code_2(arguments: list[str], sentence: str) -> None:
    result = shoal(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(sentence), result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert not Path("/nowhere").exists()


@pytest.mark.parametrize("command", ["run", "shards", "extract", "import", "demo"])
def test_an_output_that_belongs_to_something_else_is_left_alone(command: str, tmp_path: Path, images: Path) -> None:
    output = tmp_path / "thesis"
    output.mkdir()
    (output / "thesis.tar").write_text("no shard of ours")
    (tmp_path / "x.npy").write_bytes(b"")
    before = snapshot(tmp_path)
    source = {"extract": str(output), "import": str(tmp_path / "x.npy"), "demo": None}.get(command, str(images))
    result = shoal(command, *([source] if source else []), "--output", output)
    assert result.exit_code == 2
    assert str(output) in result.stderr
    assert result.stderr.count("\n") == 1
    assert snapshot(tmp_path) == before


def test_a_plan_counts_the_inputs_and_touches_nothing(tmp_path: Path, images: Path) -> None:
    before = snapshot(tmp_path)
    result = shoal("run", images, "--output", tmp_path / "run", "--dry-run", "--set", "backbone.name=pixels")
    assert result.exit_code == 0, result.stderr
    plan, _, estimates = result.stdout.partition("steps\n")[2].partition("estimates\n")
    steps = [line.split()[0] for line in plan.splitlines()[1:]]
    assert steps == ["shards", "extract", "cluster", "baseline", "assign", "evaluate", "report"]
    assert f"6 images of {images} into" in plan
    assert "6 images, one after the other" in estimates
    assert "config digest" in result.stdout
    assert snapshot(tmp_path) == before


def test_shards_are_packed_and_then_kept(tmp_path: Path, images: Path) -> None:
    packed = tmp_path / "shards"
    first = shoal("shards", images, "--output", packed, "--json", tmp_path / "figures.json")
    assert first.exit_code == 0, first.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert {name: figures[name] for name in ("command", "images", "labels", "shards")} == {
        "command": "shards",
        "images": 6,
        "labels": 2,
        "shards": 1,
    }
    before = snapshot(packed)
    plan = shoal("shards", images, "--output", packed, "--dry-run")
    assert "(1 shards there)" in plan.stdout
    assert shoal("shards", images, "--output", packed).exit_code == 0
    assert snapshot(packed) == before


def test_a_shard_is_shown(tmp_path: Path, images: Path) -> None:
    shoal("shards", images, "--output", tmp_path / "shards")
    shown = shoal("show", tmp_path / "shards" / "shard-000000.tar").stdout
    rows = {tuple(line.split()) for line in shown.splitlines()}
    assert {("kind", "shard"), ("images", "6"), ("rejects", "0"), ("labels", "2"), ("png", "6")} <= rows


def test_settings_are_shown_as_yaml_that_reads_back(tmp_path: Path) -> None:
    shown = shoal("config", "show", "--set", "cluster.fit.seed=7").stdout
    assert yaml.safe_load(shown)["cluster"]["fit"]["seed"] == 7
    (tmp_path / "again.yaml").write_text(shown)
    assert shoal("config", "show", "--config", tmp_path / "again.yaml").stdout == shown


def test_the_schema_has_every_section() -> None:
    schema = json.loads(shoal("config", "schema").stdout)
    assert set(schema["properties"]) == set(RunConfig.model_fields)


def test_benchmarks_are_listed_with_their_bars() -> None:
    listed = shoal("bench", "list").stdout
    for benchmark in BENCHMARKS.values():
        assert benchmark.name in listed
        assert benchmark.bar in listed


def test_help_waits_for_nothing_heavy() -> None:
    code = f"import sys, jobs.cli, jobs.screen; print([name for name in {HEAVY} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_module_is_the_command() -> None:
    run = subprocess.run([sys.executable, "-m", "jobs", "--help"], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("Usage: shoal")
    for name in ("demo", "run", "shards", "extract", "cluster", "assign", "evaluate", "report", "show", "import"):
        assert f"\n  {name} " in run.stdout
