"""Imports go one way, and each package name has one owner."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[2]
PACKAGES = ("models", "pipeline", "jobs")


def sources(*packages: str) -> list[Path]:
    found = [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]
    assert found
    return found


def test_the_contracts_of_pyproject_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert lint_imports(config_filename="pyproject.toml", no_cache=True) == 0


def uses_of_ray_data(tree: ast.AST) -> Iterator[int]:
    """Lines where `ray.data` is imported or reached, which import-linter cannot tell from `ray`."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names = [f"{node.value.id}.{node.attr}"]
        if any(name == "ray.data" or name.startswith("ray.data.") for name in names):
            yield node.lineno


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        ("import ray.data", [1]),
        ("import ray\nray.data.from_items([])", [2]),
        ("from ray import data", [1]),
        ("from ray.data import Dataset", [1]),
        ("from ray.data.context import DataContext", [1]),
        ("import ray\nray.init()", []),
        ("import ray.database", []),
        ("array.data", []),
    ],
)
def test_the_search_for_ray_data_finds_it(code: str, lines: list[int]) -> None:
    assert list(uses_of_ray_data(ast.parse(code))) == lines


def test_ray_data_is_the_pipelines_alone() -> None:
    outside = {
        path.relative_to(ROOT): list(uses_of_ray_data(ast.parse(path.read_text())))
        for path in sources("models", "jobs")
    }
    assert {path: lines for path, lines in outside.items() if lines} == {}
    inside = [path for path in sources("pipeline") if list(uses_of_ray_data(ast.parse(path.read_text())))]
    assert inside  # else the search above looks for something that is gone


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_name_belongs_to_shoal_alone(package: str) -> None:
    assert set(packages_distributions()[package]) == {"shoal"}


def test_no_module_is_a_drawer_for_everything() -> None:
    drawers = {"utils", "util", "common", "helpers", "helper", "core", "misc"}
    assert [path for path in sources(*PACKAGES) if drawers & {path.stem, *path.relative_to(ROOT).parts}] == []
