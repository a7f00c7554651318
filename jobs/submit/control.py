"""`shoal jobs`: which jobs a cluster has, and an end to one."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from jobs.figures import Figures, Row
from jobs.submit.client import Client, Job, UnreachableError
from jobs.submit.submission import STOP_S
from jobs.submit.watch import EVERY_S
from models.errors import ShoalError

_MARGIN_S = 30  # for the cluster to notice
_NOTES = {
    "STOPPED": "submit the same command again, and it continues",
    "SUCCEEDED": "it was done before it was stopped",
    "FAILED": "it failed before it was stopped",
}


def listing(client: Client) -> Figures:
    """All jobs that were submitted, the newest first."""
    return Figures("jobs list", {"address": client.address.url}, {"jobs": [_row(job) for job in client.jobs()]})


def stop(client: Client, id_: str) -> Figures:
    """Ask a job to end, and wait until it has. Raises ShoalError if it does not."""
    before = client.job(id_)
    if before.is_over:
        return Figures("jobs stop", {"job": id_, "state": before.state, "note": "it had ended before"})
    client.stop(id_)
    began = time.monotonic()
    while not (job := _asked(client, before)).is_over:
        if time.monotonic() - began > STOP_S + _MARGIN_S:
            raise ShoalError(
                f"Job {id_} is not known to be over {STOP_S + _MARGIN_S} s after it was told to stop; look at "
                f"`shoal jobs logs {id_}`, and try again."
            )
        time.sleep(EVERY_S)
    seconds = time.monotonic() - began
    return Figures("jobs stop", {"job": id_, "state": job.state, "seconds": seconds, "note": _NOTES[job.state]})


def _asked(client: Client, before: Job) -> Job:
    """The job as it is now; as it was where nobody answers, which may pass."""
    try:
        return client.job(before.id)
    except UnreachableError:
        return before


def _row(job: Job) -> Row:
    ended = job.ended_ms or int(time.time() * 1000)
    return {
        "job": job.id,
        "state": job.state,
        "command_line": job.metadata.get("shoal_command", job.entrypoint),
        "run": job.metadata.get("shoal_run"),
        "started": None if job.started_ms is None else _moment(job.started_ms),
        "seconds": None if job.started_ms is None else (ended - job.started_ms) / 1000,
        "exit_code": job.exit_code,
    }


def _moment(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
