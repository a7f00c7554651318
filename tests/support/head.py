"""Real Ray clusters on this machine's loopback, with dashboard and token: machines that can be stopped, or that die."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

TAG = "SHOAL_TEST_MACHINE"  # in the environment of every process of a machine, and so of what they start
START_S = 90
OBJECT_STORE_BYTES = 150_000_000
_WORKER_PORTS = range(10002, 20000)  # which Ray keeps for itself


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    while True:
        with closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port not in _WORKER_PORTS:
            return port


@dataclass
class Machine:
    """`ray start --block` and everything that came of it."""

    process: subprocess.Popen[bytes]
    tag: str
    log: Path

    def pids(self) -> list[int]:
        """Every process of this machine that is alive: daemons, workers, drivers of jobs."""
        mark = f"{TAG}={self.tag}".encode()
        alive = _alive()
        ours = {pid for pid in alive if mark in _read(pid, "environ").split(b"\0")}
        # A process that gives itself a name, as Ray's do, may write it over its environment.
        while more := {pid for pid, (parent, _) in alive.items() if parent in ours} - ours:
            ours |= more
        return sorted(ours)

    def find(self, *words: str) -> list[int]:
        """Those whose command line has each of the words."""
        lines = {pid: _read(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace") for pid in self.pids()}
        return [pid for pid, line in lines.items() if all(word in line for word in words)]

    def stop(self) -> None:
        """As an operator stops it; what does not listen within 20 s is killed."""
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        self.kill()

    def kill(self) -> None:
        """As a power cut: SIGKILL to all of it, drivers included."""
        found: dict[int, int] = {}  # to when it was born; by then they may be orphans, who cannot be told from others
        while True:
            alive = _alive()
            found |= {pid: alive[pid][1] for pid in self.pids() if pid in alive}
            left = [pid for pid, born in found.items() if pid in alive and alive[pid][1] == born]
            if not left:
                break
            for pid in left:
                _kill(pid)
            time.sleep(0.05)
        self.process.wait(20)


@dataclass
class Head(Machine):
    """The head of a cluster."""

    address: str  # for RAY_ADDRESS
    dashboard: str  # for `shoal submit --address`
    metrics: str  # URL that Prometheus scrapes
    token: str | None
    folder: Path
    temp: Path  # short, because sockets are in it
    others: list[Machine] = field(default_factory=list)

    @property
    def env(self) -> dict[str, str]:
        """The environment of a client: this one's, with the head's token and address."""
        return {**_environment(self.token), "RAY_API_SERVER_ADDRESS": self.dashboard}

    def join(self, num_cpus: int = 1, resources: Mapping[str, float] | None = None) -> Machine:
        """One more machine, which is up when this returns, with files of its own.

        Two machines in one folder would remove each other's: the code of a job goes when the job leaves one of them.
        """
        number = len(self.others)
        temp = self.temp / f"m{number}"
        before = self.nodes()
        ports = ("--metrics-export-port", "--dashboard-agent-listen-port", "--runtime-env-agent-port")
        options = [
            *("--address", self.address, "--temp-dir", str(temp), "--resources", json.dumps(dict(resources or {}))),
            *(word for port in ports for word in (port, str(free_port()))),
        ]
        machine = _start(options, num_cpus, self.token, self.folder / f"machine{number}.log")
        self.others.append(machine)
        _wait(machine, lambda: self.nodes() > before)
        return machine

    def nodes(self) -> int:
        """Machines that are alive, as the dashboard says."""
        answer = json.loads(_get(f"{self.dashboard}/nodes?view=summary", self.token))
        return sum(each["raylet"].get("state") == "ALIVE" for each in answer["data"]["summary"])

    def stop(self) -> None:
        """The whole cluster."""
        for machine in self.others:
            machine.stop()
        super().stop()


@contextmanager
def head(folder: Path, *, num_cpus: int = 2, token: bool | str = True, port: int | None = None) -> Iterator[Head]:
    """A cluster of one machine, in 6 s; its log file goes to `folder`. Everything of it is gone in the end.

    `token`: none, a fresh one, or that one. A second cluster with the `port` (of the dashboard) and token of a first
    is found where the first was.
    """
    secret = secrets.token_hex(32) if token is True else token or None
    with _short_folder() as temp:
        started = _head(folder, temp, num_cpus, secret, port or free_port())
        try:
            _wait(started, lambda: started.nodes() > 0)
            yield started
        finally:
            for machine in (*started.others, started):
                Machine.stop(machine)


def _head(folder: Path, temp: Path, num_cpus: int, token: str | None, dashboard: int) -> Head:
    gcs, metrics = free_port(), free_port()
    options = [
        *("--head", "--node-ip-address", "127.0.0.1", "--port", str(gcs), "--temp-dir", str(temp)),
        *("--include-dashboard", "true", "--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard)),
        *("--metrics-export-port", str(metrics), "--dashboard-agent-listen-port", str(free_port())),
        *("--runtime-env-agent-port", str(free_port()), "--ray-client-server-port", str(free_port())),
    ]
    machine = _start(options, num_cpus, token, folder / "head.log")
    return Head(
        machine.process,
        machine.tag,
        machine.log,
        f"127.0.0.1:{gcs}",
        f"http://127.0.0.1:{dashboard}",
        f"http://127.0.0.1:{metrics}/metrics",
        token,
        folder,
        temp,
    )


def _start(options: list[str], num_cpus: int, token: str | None, log: Path) -> Machine:
    tag = secrets.token_hex(8)
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"),
        *("--num-cpus", str(num_cpus), "--object-store-memory", str(OBJECT_STORE_BYTES), *options),
    ]
    environment = {**_environment(token), TAG: tag}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    return Machine(process, tag, log)


def _environment(token: str | None) -> dict[str, str]:
    """Without what tests say of a Ray of their own, and with this interpreter as `python`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SHOAL_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', os.defpath)}"
    auth = {"RAY_AUTH_MODE": "disabled"} if token is None else {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    quick = {"OMP_NUM_THREADS": "1", "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
    return {**kept, **auth, **quick, "PATH": path}


def _wait(machine: Machine, is_up: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if machine.process.poll() is not None:
            break
        with suppress(OSError, http.client.HTTPException):
            if is_up():
                return
        time.sleep(0.2)
    tail = machine.log.read_text(errors="replace")[-2000:]
    raise RuntimeError(f"The machine was not up within {START_S} s; its log ends with:\n{tail}")


def _get(url: str, token: str | None) -> bytes:
    parts = urlsplit(url)
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    with closing(http.client.HTTPConnection(parts.netloc, timeout=10)) as connection:
        connection.request("GET", f"{parts.path}?{parts.query}", headers=headers)
        answer = connection.getresponse()
        body = answer.read()
    if answer.status != http.HTTPStatus.OK:
        raise ConnectionError(f"{url} answers {answer.status}: {body[:200]!r}")
    return body


@contextmanager
def _short_folder() -> Iterator[Path]:
    """Names of sockets have at most 107 characters, and Ray wants some 65 of them."""
    temp = Path(tempfile.mkdtemp(prefix="ray"))
    try:
        yield temp
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def _alive() -> dict[int, tuple[int, int]]:
    """Of every process its parent, and when it was born; the dead whose parents have not noticed are none."""
    found = {}
    for each in Path("/proc").iterdir():
        fields = _read(int(each.name), "stat").rpartition(b")")[2].split() if each.name.isdigit() else []
        if fields and fields[0] != b"Z":
            found[int(each.name)] = (int(fields[1]), int(fields[19]))
    return found


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:  # gone, or of another user
        return b""


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
