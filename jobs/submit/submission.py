"""A job as it is handed to the cluster: what it runs, under which name, where, with which code."""
# ruff: noqa: PLC0415

from __future__ import annotations

import hashlib
import json
import re
import secrets
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from jobs.journal import LOG, RUN_ID
from jobs.submit.client import Node
from jobs.submit.package import Package
from jobs.submit.parse import Parsed
from jobs.submit.pins import installed, pins, requirements
from jobs.submit.places import named_output, names_stored, require_absolute_weights
from models.errors import ShoalError

Pin = Literal["require", "install", "off"]
PINS: tuple[Pin, ...] = ("require", "install", "off")
DRIVER = "shoal_driver"  # custom resource of machines that may run the command itself
KEYS = "keys"  # argument of `remove`
STOP_S = 30  # for the command to end in order, before Ray kills it (its own default is 3)
# Options that are settings, as jobs/cli.py reads them.
_SETTINGS = {
    "max_reject_fraction": "max_reject_fraction",
    "mode": "recluster.mode",
    "prior_scale": "cluster.algorithm.prior_scale",
}


@dataclass(frozen=True)
class Submission:
    """One job to be."""

    parsed: Parsed  # with paths as the cluster has them
    config: str | None  # digest of the settings; None where a backbone's artifact, which is there, has a say
    id: str
    pin: Pin
    pins: Mapping[str, str]
    driver: str | None = None  # custom resource of the machine that the command runs on

    @property
    def run(self) -> str:
        """The run's id: the same command with the same output is the same run, and continues it."""
        return run_id(self.parsed)

    @property
    def entrypoint(self) -> str:
        """What a shell on the cluster runs; `exec`, so that signals meet no shell on their way."""
        return shlex.join(["exec", "python", "-m", "jobs.submit.entry", "--", *self.parsed.words])

    def runtime_env(self, package: Package) -> dict[str, Any]:
        """Code, environment and, where they are to be installed, packages."""
        env = {LOG: "json", RUN_ID: self.run, "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S)}
        install = {"pip": requirements(self.pins)} if self.pin == "install" else {}
        return {"working_dir": str(package.folder), "env_vars": env, **install}

    def metadata(self) -> dict[str, str]:
        """What the dashboard and `shoal jobs` show."""
        output = named_output(self.parsed)
        report = f"{output.rstrip('/')}/report.html" if output and self.parsed.command in ("run", "demo") else None
        told = {
            "shoal_run": self.run,
            "shoal_command": without_keys(self.parsed),
            "shoal_config": self.config,
            "shoal_output": output,
            "shoal_report": report,
            "shoal_version": installed("shoal"),
            "shoal_pins": _digest(self.pins) if self.pins else None,
        }
        return {name: value for name, value in told.items() if value is not None}

    def options(self, package: Package) -> dict[str, Any]:
        """As Ray's `submit_job` takes them."""
        return {
            "entrypoint": self.entrypoint,
            "submission_id": self.id,
            "runtime_env": self.runtime_env(package),
            "metadata": self.metadata(),
            "entrypoint_resources": {self.driver: 1} if self.driver else None,
        }


def check_settings(parsed: Parsed) -> str | None:
    """Resolve the settings as the command will, from here, and return their digest.

    None for a command without settings, and where an artifact on the cluster has a say. Raises ShoalError for what the
    command would refuse.
    """
    from jobs.backbone import with_backbone
    from jobs.config import digest, resolve

    if parsed.command == "show":
        return None
    sets, stored = parsed.sets, False
    for backbone in parsed.values("backbone"):
        stored = names_stored(backbone, Path.cwd())
        sets = sets if stored else with_backbone(backbone, sets)
    said = [f"{_SETTINGS[name]}={value}" for name in _SETTINGS for value in parsed.values(name)]
    config = parsed.config or (Path("digits") if parsed.command == "demo" else None)
    settings = resolve(config, [*sets, *said])
    require_absolute_weights(settings.backbone.weights)
    return None if stored else digest(settings)


def without_keys(parsed: Parsed) -> str:
    """The command line for whoever sees the cluster's jobs: of `remove`, how many keys, and not which."""
    count = len(parsed.values(KEYS))
    rest = replace(parsed, given=tuple(each for each in parsed.given if each.name != KEYS))
    return f"{rest.text} ({count} keys)" if count else parsed.text


def new_id(parsed: Parsed, given: str | None) -> str:
    """`given`, or one that names the run and is new. Raises ShoalError for what cannot be part of a URL."""
    if given is None:
        return f"shoal-{run_id(parsed)}-{secrets.token_hex(3)}"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", given):
        raise ShoalError(f"--id is {given!r} but letters, digits, `_`, `.` and `-` are expected; give another.")
    return given


def run_id(parsed: Parsed) -> str:
    """12 hex digits of the command's name, its output and `--name`, or of all its words where it has no output."""
    output = named_output(parsed)
    if output is None:
        return _digest(parsed.words)
    return _digest([parsed.command, output.rstrip("/"), *parsed.values("name")])


def chosen_pins(pin: Pin) -> Mapping[str, str]:
    """The versions that go with the job."""
    return {} if pin == "off" else pins()


def driver_resource(nodes: Sequence[Node], given: str | None) -> str | None:
    """The resource of the machine that the command is to run on; None: the head, by Ray's default.

    A head without CPUs is there to coordinate. A fit in one process takes place in the command itself, so that it
    goes to a machine that has the resource `shoal_driver`, if any has.
    """
    if given is not None:
        return given or None
    offered = any(DRIVER in node.resources for node in nodes)
    return DRIVER if offered and has_idle_head(nodes) else None


def has_idle_head(nodes: Sequence[Node]) -> bool:
    """Whether the head is known to have no CPUs for work."""
    return any(node.is_head and not node.resources.get("CPU") for node in nodes)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
