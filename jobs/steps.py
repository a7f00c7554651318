"""What every command is: a plan that touches nothing, and a run that skips what is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from jobs.estimate.facts import Estimate
from jobs.figures import Figures, Row, Value
from jobs.rates import Rate
from pipeline.progress import Progress


class State(StrEnum):
    """What a run would do about a step."""

    TO_DO = "to do"
    PARTLY = "partly done"
    CHECKED = "there, kept if unchanged"
    DONE = "done, skipped"


@dataclass(frozen=True)
class Step:
    """One line of a plan."""

    step: str
    what: str  # inputs counted, and where the output goes
    state: State = State.TO_DO
    estimate: Estimate | None = None  # of what it will take, where enough is known


class Job(Protocol):
    """A command with its arguments."""

    def plan(self) -> list[Step]:
        """What `run` would do now. Reads inputs and tables, writes nothing. Raises what `run` would refuse."""
        ...

    def run(self, on_progress: Progress) -> Figures:
        """Do what is not done yet, and return the figures of all of it."""
        ...


def planned(job: Job, config_digest: str) -> Figures:
    """The plan of a job as figures; nothing is done. Estimates are beside the steps that have one."""
    plan = job.plan()
    steps: list[Row] = [{"step": step.step, "what": step.what, "state": step.state} for step in plan]
    values: dict[str, Value] = {"config_digest": config_digest}
    known = [step.estimate.seconds for step in plan if step.estimate is not None]
    if known and None not in known:
        values["estimated_seconds"] = _rounded(sum(seconds for seconds in known if seconds is not None))
    return Figures("plan", values, {"steps": steps} | _estimates(plan))


def _estimates(plan: Sequence[Step]) -> dict[str, list[Row]]:
    """Two digits of each figure, for there are no more in it, and its rates; nothing where none is known."""
    known = [(step.step, step.estimate) for step in plan if step.estimate is not None]
    rates = {name: rate for _, estimate in known for name, rate in estimate.rates.items()}
    if not known:
        return {}
    return {"estimates": [_estimate(*each) for each in known], "rates": [_rate(*each) for each in rates.items()]}


def _estimate(step: str, estimate: Estimate) -> Row:
    return {
        "step": step,
        "seconds": _rounded(estimate.seconds),
        "within_factor": estimate.within,
        "worker_memory_bytes": _rounded(estimate.worker_bytes),
        "driver_memory_bytes": _rounded(estimate.driver_bytes),
        "bytes_read": _rounded(estimate.bytes_read),
        "bytes_written": _rounded(estimate.bytes_written),
        "how": estimate.how,
    }


def _rate(name: str, rate: Rate) -> Row:
    return {"rate": name, "value": rate.value, "unit": rate.unit, "within_factor": rate.within, "source": rate.source}


def _rounded(value: float | None) -> float | int | None:
    if value is None or value == 0:
        return value
    rounded = float(f"{value:.2g}")
    return int(rounded) if rounded >= 10 else rounded
