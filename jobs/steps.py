"""What every command is: a plan that touches nothing, and a run that skips what is done."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Protocol

from jobs.figures import Figures
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


class Job(Protocol):
    """A command with its arguments."""

    def plan(self) -> list[Step]:
        """What `run` would do now. Reads inputs and tables, writes nothing. Raises what `run` would refuse."""
        ...

    def run(self, on_progress: Progress) -> Figures:
        """Do what is not done yet, and return the figures of all of it."""
        ...


def planned(job: Job, config_digest: str) -> Figures:
    """The plan of a job as figures; nothing is done."""
    return Figures("plan", {"config_digest": config_digest}, {"steps": [asdict(step) for step in job.plan()]})
