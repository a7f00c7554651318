"""Benchmark `submit`: from nothing to the first line that a submitted job says: a head is started, the demo submitted.

The head is a real one on this machine's loopback, with dashboard and token; the clock runs from its start to the
moment at which `shoal submit --watch` shows a line of shoal's own, which the command prints on the cluster before
it does anything else. Bar: 15 s, median of 3. Beside it the same for a second submission to a head that has had one,
and to the line with which the demo itself begins. Takes 2 minutes on 2 cores.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from jobs.bench.bars import Bar, Result, judged
from models.errors import ShoalError
from pipeline.progress import Progress

RUNS = 3
MOST_S = 15.0
UP_S = 120
_OURS = re.compile(r"\d\d:\d\d:\d\d ")  # how the watch begins what is shoal's own
_JOB = re.compile(r"Job (\S+) on ")


@dataclass(frozen=True)
class Start:
    """Seconds since the beginning, as somebody sees them who waits."""

    head: float  # until its dashboard can be reached; 0 if it was there
    accepted: float  # the cluster has the job
    first_line: float
    started: float  # the demo itself begins: settings read, everything imported


def run(data: Path | None, on_progress: Progress, runs: int = RUNS) -> Result:
    """Raises ShoalError where data are given, and where no head comes up or the job says nothing."""
    if data is not None:
        raise ShoalError(f"--data {data} has no use here: the demo's digits come with scikit-learn.")
    cold, warm = [], []
    for number in range(runs):
        on_progress("bench, head and job", number, runs)
        with tempfile.TemporaryDirectory(prefix="ray") as folder:  # a short name: Ray's sockets are in it
            began = time.monotonic()
            with _head(Path(folder)) as (url, env):
                cold.append(_submitted(Path(folder, "cold"), url, env, began, time.monotonic() - began))
                warm.append(_submitted(Path(folder, "warm"), url, env, time.monotonic(), 0.0))
    on_progress("bench, head and job", runs, runs)
    bars = [Bar("seconds to the first line, median", median(each.first_line for each in cold), most=MOST_S)]
    values = {
        "runs": runs,
        "first_line_of_a_second_job_seconds": median(each.first_line for each in warm),
        "demo_started_seconds": median(each.started for each in cold),
        "demo_started_of_a_second_job_seconds": median(each.started for each in warm),
    }
    return judged(
        "submit", bars, values, {"cold": [asdict(each) for each in cold], "warm": [asdict(each) for each in warm]}
    )


def _submitted(output: Path, url: str, env: Mapping[str, str], began: float, head_s: float) -> Start:
    """Submit the demo, wait for its first lines, and stop it."""
    command = [*_shoal("submit"), "--address", url, "--watch", "demo", "--output", str(output)]
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as watching:
        moments: dict[str, float] = {}
        lines: list[str] = []
        for line in watching.stderr or ():
            lines.append(line)
            seconds = time.monotonic() - began
            if found := _JOB.match(line):
                id_ = found.group(1)
                moments["accepted"] = seconds
            if _OURS.match(line):
                moments.setdefault("first_line", seconds)
                if " started demo" in line:
                    moments["started"] = seconds
                    break
        watching.send_signal(signal.SIGINT)
    if len(moments) < 3:
        raise ShoalError(f"The demo was submitted and did not begin: {''.join(lines)[-500:]}")
    subprocess.run([*_shoal("jobs"), "stop", id_, "--address", url], env=env, capture_output=True, check=False)
    return Start(head_s, **moments)


@contextmanager
def _head(folder: Path) -> Iterator[tuple[str, Mapping[str, str]]]:
    """A head on loopback: its dashboard, and the environment of who may use it."""
    port, dashboard = _free_port(), _free_port()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SHOAL_"))}
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    env = {**kept, **token, "PATH": path, "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
    options = [
        *("--head", "--block", "--disable-usage-stats", "--node-ip-address", "127.0.0.1", "--port", str(port)),
        *("--include-dashboard", "true", "--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard)),
        *("--dashboard-agent-listen-port", str(_free_port()), "--temp-dir", str(folder), "--num-cpus", "2"),
        *("--ray-client-server-port", str(_free_port()), "--object-store-memory", "200000000"),
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", "start", *options],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            _wait_for(dashboard, process)
            yield f"http://127.0.0.1:{dashboard}", env
        finally:
            process.terminate()  # which stops all that it started


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + UP_S
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), closing(socket.create_connection(("127.0.0.1", port), timeout=1)):
            return
        time.sleep(0.05)
    raise ShoalError(f"`ray start --head` has no dashboard after {UP_S} s, or ended; try it by hand.")


def _shoal(command: str) -> list[str]:
    return [sys.executable, "-m", "jobs", command]


def _free_port() -> int:
    """Outside of the ports that Ray keeps for its workers."""
    while True:
        with closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if not 10001 < port < 20000:
            return port
