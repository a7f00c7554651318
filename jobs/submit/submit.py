"""`shoal submit`: a command of shoal, with the code of this working tree, on a cluster that runs."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.figures import Figures, Value
from jobs.submit.address import TOKEN, find_address
from jobs.submit.client import Client, Job, Node, is_here
from jobs.submit.package import LEFT_OUT, PACKAGES, Package, stage
from jobs.submit.parse import Parsed, parse_command
from jobs.submit.places import Place, own_config, placed, require_submittable
from jobs.submit.submission import (
    DRIVER,
    KEYS,
    Pin,
    Submission,
    check_settings,
    chosen_pins,
    driver_resource,
    has_idle_head,
    new_id,
)


@dataclass(frozen=True)
class Options:
    """What `shoal submit` itself is told."""

    address: str | None = None
    pin: Pin = "require"
    id: str | None = None
    driver: str | None = None


@dataclass(frozen=True)
class Handed:
    """A job as it is handed over, and the cluster it goes to."""

    client: Client
    submission: Submission
    config: Path | None  # the user's own file


def prepare(words: Sequence[str], options: Options) -> Handed:
    """All that can be wrong is found here, before anything is packed. Raises ShoalError."""
    parsed = parse_command(words)
    require_submittable(parsed)
    config = own_config(parsed)
    digest = check_settings(parsed)
    address = find_address(options.address)
    client = Client(address)
    nodes = client.nodes()
    place = Place(Path.cwd(), address.is_loopback and is_here(nodes), address.url)
    there = placed(parsed, place)
    id_ = new_id(there, options.id)
    driver = driver_resource(nodes, options.driver)
    _warn_of_keys(parsed)
    _warn_of_token(client)
    _warn_of_idle_head(nodes, driver)
    submission = Submission(there, digest, id_, options.pin, chosen_pins(options.pin), driver)
    return Handed(client, submission, config)


def planned(handed: Handed) -> Figures:
    """What would be sent, as --dry-run shows it."""
    with tempfile.TemporaryDirectory() as folder:
        package = _staged(handed, folder)
        versions = [{"package": name, "version": each} for name, each in handed.submission.pins.items()]
        values = {**_values(handed), **_packed(package), "entrypoint": handed.submission.entrypoint}
    return Figures("submit: dry run", values, {"pinned_versions": versions})


def submit(handed: Handed) -> Package:
    """Pack, upload and start. Raises ShoalError where the cluster refuses."""
    with tempfile.TemporaryDirectory() as folder:
        package = _staged(handed, folder)
        handed.client.submit(**handed.submission.options(package))
    return package


def figures(handed: Handed, package: Package, job: Job | None = None) -> Figures:
    """What was sent, and what became of it if anybody waited."""
    id_ = handed.submission.id
    ended: dict[str, Value] = {} if job is None else {"state": job.state, "exit_code": job.exit_code}
    if job is not None and job.started_ms and job.ended_ms:
        ended["seconds"] = (job.ended_ms - job.started_ms) / 1000
    after = {"watch": f"shoal jobs logs {id_} --follow", "stop": f"shoal jobs stop {id_}"} if job is None else {}
    return Figures("submit", {**_values(handed), **_packed(package), **ended, **after})


def packed_sentence(package: Package) -> str:
    """What left this machine, for people."""
    return (
        f"Packed {package.files:,} files, {package.size_bytes:,} bytes: the code of {', '.join(PACKAGES)}, and what "
        f"the command names as its config; left out: {LEFT_OUT}."
    )


def _warn_of_keys(parsed: Parsed) -> None:
    if parsed.values(KEYS):
        warnings.warn(
            "The cluster keeps the keys of removed samples in the job's entrypoint, after the samples are gone; to "
            "leave no trace, give them with --keys FILE, a file that the cluster's machines have.",
            stacklevel=2,
        )


def _warn_of_token(client: Client) -> None:
    if client.address.is_open and client.has_token:
        warnings.warn(
            f"{client.address.url} is not encrypted, and the token goes over the network as it is; use https or a "
            "tunnel.",
            stacklevel=2,
        )


def _warn_of_idle_head(nodes: Sequence[Node], driver: str | None) -> None:
    if driver is None and has_idle_head(nodes):
        warnings.warn(
            "The head has no CPUs for work, and yet the command itself, with fits that take one process, runs there: "
            f"no machine offers the resource {DRIVER}. Start one with --resources '{{\"{DRIVER}\": 1}}', or name "
            "another with --driver-resource.",
            stacklevel=2,
        )


def _staged(handed: Handed, folder: str) -> Package:
    return stage(Path(folder), handed.config, handed.submission.pins)


def _values(handed: Handed) -> dict[str, Value]:
    submission = handed.submission
    return {
        "job": submission.id,
        "address": handed.client.address.url,
        "run": submission.run,
        "command_line": f"shoal {submission.parsed.text}",
        "config": submission.config,
        "pin": submission.pin,
        "runs_on": f"a machine with the resource {submission.driver}" if submission.driver else "the head",
        "token": "yes" if handed.client.has_token else f"no; to use one, set {TOKEN}",
    }


def _packed(package: Package) -> dict[str, Value]:
    return {"packed_files": package.files, "packed_bytes": package.size_bytes, "left_out": LEFT_OUT}
