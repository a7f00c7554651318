"""`shoal status RUN`: is it going, how far is it, how did it end? Of a run's folder, or of a job on a cluster."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from jobs.figures import Figures, Row, Value
from jobs.journal import EVERY_S, FINISHED, INTERRUPTED, RUNNING, read_status
from jobs.steps import Step
from models.errors import ShoalError
from pipeline.progress import Progress
from pipeline.tables.collection import RUN_FOLDER, Collection
from pipeline.tables.describe import describe
from pipeline.tables.place import Place, place
from pipeline.tables.schema import TableError
from pipeline.tables.storage import is_url

LOST = "lost"
_SILENT_S, _SILENT_STORE_S = 60, 180  # without a word a run is taken for dead; clocks of machines differ
_GONE_S = 2 * EVERY_S  # if besides its process is no more
_KNOWN = ("run", "command", "attempt", "config", "step", "done", "total", "detail")
_AFTER = ("started", "seconds", "exit_code", "message", "host", "pid", "job", "output")


@dataclass(frozen=True)
class Status:
    """What a run says of itself; nothing is changed."""

    run_: str  # folder, URL, or the id of a submitted job
    address: str | None = None  # of the cluster that is asked about a job

    def plan(self) -> list[Step]:
        """Looking is all there is."""
        return [Step("status", self.run_)]

    def run(self, on_progress: Progress) -> Figures:
        """Raises ShoalError where nothing is known of such a run."""
        if "/" in self.run_ or is_url(self.run_) or place(self.run_).exists():
            folder = place(self.run_).absolute()
            return figures_of(folder, _required(folder), {})
        return self._of_job()

    def _of_job(self) -> Figures:
        from jobs.submit.client import find_job  # noqa: PLC0415  Ray's client, which folders do not need

        job = find_job(self.run_, self.address)
        told: dict[str, Value] = {"job": self.run_, "job_state": job.state, "job_exit_code": job.exit_code}
        output = job.metadata.get("shoal_output")
        folder = _folder(output)
        status = read_status(folder) if folder is not None else None
        if folder is None or status is None or status.get("job") != self.run_:  # or it tells of another run
            where = f"its output {output}" if output else "no output of its own"
            about = {name: job.metadata.get(f"shoal_{name}") for name in ("run", "command", "config")}
            told["note"] = f"nothing can be read here of {where}; `shoal jobs logs {self.run_}` has what it said"
            return Figures("status", {**told, **about})
        return figures_of(folder, status, told)


def figures_of(folder: Place, status: Mapping[str, Any], more: Mapping[str, Value]) -> Figures:
    """A status in figures, with what is in the table of the run by now."""
    state, note = judged(status, datetime.now(UTC))
    values: dict[str, Value] = {"path": str(folder), "state": state, **more, "note": note}
    values |= {name: _plain(status.get(name)) for name in (*_KNOWN, "time", *_AFTER)}
    shown = {name: value for name, value in values.items() if value is not None}
    listed = status.get("steps")
    steps = [_step(each) for each in listed if isinstance(each, Mapping)] if isinstance(listed, list) else []
    table, generations = _table(folder)
    return Figures("status", shown | table, {"steps": steps, "generations": generations})


def judged(status: Mapping[str, Any], now: datetime) -> tuple[str, str | None]:
    """The state, and what follows from it: a run that has said nothing for long, or whose process is gone, is lost."""
    state = str(status.get("state"))
    if state == INTERRUPTED:
        return state, "the same command continues"
    if state != RUNNING:
        return state, None if state == FINISHED else "when the cause is mended, the same command continues"
    heard = _moment(status.get("time"))
    if heard is None:
        return LOST, "its last word has no time; the same command continues"
    silence_s = (now - heard).total_seconds()
    patience_s = _SILENT_STORE_S if "://" in str(status.get("output") or "") else _SILENT_S
    if silence_s <= (_GONE_S if _is_gone(status) else patience_s):
        return state, None
    return LOST, f"no sign of life for {silence_s:,.0f} s; the same command continues"


def _required(folder: Place) -> dict[str, Any]:
    status = read_status(folder)
    if status is None:
        raise ShoalError(
            f"{folder} has no status: give the --output of `shoal run`, `demo` or `train`, or the id of a job; "
            "`shoal show` tells what any table or artifact is."
        )
    return status


def _is_gone(status: Mapping[str, Any]) -> bool:
    """Whether it ran on this machine and its process is no more."""
    pid = status.get("pid")
    if status.get("host") != socket.gethostname() or not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False  # somebody else's, or no number of a process
    return False


def _folder(output: str | None) -> Place | None:
    try:
        return place(output).absolute() if output else None
    except (ShoalError, TableError):
        return None  # nothing that a status could be in


def _moment(text: object) -> datetime | None:
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return found if found.tzinfo is not None else None


def _step(each: Mapping[str, Any]) -> Row:
    return {name: _plain(each.get(name)) for name in ("step", "done", "total", "seconds")}


def _plain(value: object) -> Value:
    """What a file may hold, as a figure."""
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


def _table(folder: Place) -> tuple[dict[str, Value], Sequence[Row]]:
    """Counts of the run's table and its newest generations; nothing where there is none, or it is being made."""
    try:
        if Collection.find(folder / RUN_FOLDER) is None:
            return {}, ()
        found = describe(folder)
    except (OSError, ShoalError, TableError):
        return {}, ()
    samples = found["samples"]
    counts: dict[str, Value] = {}
    if samples is not None:
        counts = {"images": samples["rows"]["ok"], "rejects": samples["rows"]["rejected"], "shards": samples["shards"]}
    generations: list[Row] = [
        {
            "clustering": name,
            "generation": all_[-1]["generation"],
            **all_[-1]["rows"],
            "decision": all_[-1]["decision"],
            "created_at": str(all_[-1]["created_at"]),
        }
        for name, all_ in found["clusterings"].items()
        if all_
    ]
    return counts, generations
