"""One version of everything: pyproject, the lock files, the image, its tags, and what manifests say of Ray."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
DOCKER = INFRA / "docker"
TARGET = {  # what the lock files are for
    "platform_system": "Linux",
    "platform_machine": "x86_64",
    "sys_platform": "linux",
    "python_version": "3.11",
    "python_full_version": "3.11.15",
    "extra": "",
}
LINE = re.compile(r"([a-z0-9-]+)==([^\s]+)( --hash=sha256:[0-9a-f]{64})?")
OF_CUDA = re.compile(r"cuda-|nvidia-|triton$")


@cache
def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


@cache
def lock(variant: str) -> dict[str, str]:
    """Name to version."""
    lines = [line for line in lines_of(variant) if not line.startswith("#")]
    return {name: version for name, version, _ in (_parts(line) for line in lines)}


def lines_of(variant: str) -> list[str]:
    return (DOCKER / f"requirements-{variant}.lock").read_text().splitlines()


def _parts(line: str) -> tuple[str, str, str | None]:
    found = LINE.fullmatch(line)
    assert found, f"not NAME==VERSION --hash=sha256:DIGEST: {line}"
    return found[1], found[2], found[3]


def direct(variant: str) -> list[Requirement]:
    """What shoal asks for in an image; faiss-cpu stands for faiss-gpu where there is no GPU."""
    extra = project()["optional-dependencies"]["efficientnet"]
    found = [Requirement(each) for each in [*project()["dependencies"], *extra]]
    found = [each for each in found if each.marker is None or each.marker.evaluate(TARGET)]
    for each in found:
        if variant == "cpu" and each.name == "faiss-gpu":
            each.name = "faiss-cpu"
    return found


def texts() -> list[tuple[Path, str]]:
    """Everything written in infra, and the README."""
    paths = [path for path in sorted(INFRA.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    return [(path.relative_to(ROOT), path.read_text()) for path in [*paths, ROOT / "README.md"]]


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_what_pyproject_asks_for_is_locked_at_a_version_it_admits(variant: str) -> None:
    asked = {canonicalize_name(each.name): each.specifier for each in direct(variant)}
    assert len(asked) > 20
    assert {name: str(admits) for name, admits in asked.items() if lock(variant).get(name) not in admits} == {}


def test_the_two_lock_files_differ_in_cuda_only() -> None:
    cpu, cuda = lock("cpu"), lock("cuda")
    assert {name: cpu[name] for name in cpu.keys() & cuda.keys() if cpu[name] != cuda[name]} == {}
    assert cpu.keys() - cuda.keys() == {"faiss-cpu"}
    assert {name for name in cuda.keys() - cpu.keys() if not OF_CUDA.match(name)} == {"faiss-gpu"}
    assert cpu["faiss-cpu"] == cuda["faiss-gpu"]


def test_every_line_has_a_digest_but_those_whose_wheels_come_from_elsewhere() -> None:
    without = {
        variant: [_parts(line)[0] for line in lines_of(variant) if line[0] != "#" and not _parts(line)[2]]
        for variant in ("cpu", "cuda")
    }
    assert without == {"cpu": ["torch", "torchvision"], "cuda": []}


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_a_lock_file_names_no_host_and_nothing_twice(variant: str) -> None:
    text = "\n".join(lines_of(variant))
    assert not re.search(r"://|--index|--find-links|\.(org|com|net|io)\b", text)
    names = [_parts(line)[0] for line in lines_of(variant) if not line.startswith("#")]
    assert len(names) == len(set(names)) > 100


def test_the_lock_files_are_for_the_python_of_the_image_which_pyproject_admits() -> None:
    python = re.search(r"^ARG PYTHON=(\S+)$", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)
    assert python and python[1] == TARGET["python_version"]
    assert f"{python[1]}.0" in SpecifierSet(project()["requires-python"])
    assert any(f"Python {python[1]}" in line for line in lines_of("cuda") if line.startswith("#"))


def test_images_have_the_version_of_shoal_and_a_variant_that_exists() -> None:
    tags = {(str(path), tag) for path, text in texts() for tag in re.findall(r"\bshoal:(\d[\w.-]*)", text)}
    assert {Path(path).parts[1] for path, _ in tags} >= {"docker", "kuberay", "ray-up"}
    known = {f"{project()['version']}-cpu", f"{project()['version']}-cuda"}
    assert {(path, tag) for path, tag in tags if tag not in known} == set()


def test_the_image_says_which_shoal_it_is() -> None:
    label = re.search(r'image\.version="([^"]+)"', (DOCKER / "Dockerfile").read_text())
    assert label and label[1] == project()["version"]


def test_ray_is_one_version_everywhere() -> None:
    stated = {(str(path), each) for path, text in texts() for each in re.findall(r"rayVersion: *[\"']?([\d.]+)", text)}
    assert stated, "no manifest states a rayVersion"
    assert {each for _, each in stated} == {lock("cuda")["ray"]}
