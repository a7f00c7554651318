"""What every command does with its job: settings, a plan or a run, figures. Imports what it needs when it is called."""
# ruff: noqa: PLC0415

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.outcome import Missed
from models.errors import ShoalError

if TYPE_CHECKING:
    from jobs.config import RunConfig
    from jobs.figures import Figures
    from jobs.steps import Job


def carry_out(
    job: Callable[[RunConfig], Job], file: Path | None, sets: list[str], dry_run: bool, json: Path | None
) -> None:
    """Run the job of the settings, or print its plan."""
    from jobs.config import digest, resolve
    from jobs.steps import planned

    settings = resolve(file, sets)
    if dry_run:
        finish(planned(job(settings), digest(settings)), json)
    else:
        run_now(job(settings), json)


def run_now(job: Job, json: Path | None) -> None:
    """Run a job and show its figures. Raises ShoalError, before it runs, where JSON could not be written after."""
    from jobs.screen import progress

    if json is not None and not json.absolute().parent.is_dir():
        raise ShoalError(f"--json {json} is in a folder that does not exist; make {json.absolute().parent} first.")
    with progress() as on_progress:
        figures = job.run(on_progress)
    finish(figures, json)


def finish(figures: Figures, json: Path | None) -> None:
    """Show figures, and write them. Raises Missed where they fall short."""
    from jobs.figures import write_json
    from jobs.screen import show as show_figures

    show_figures(figures)
    if json is not None:
        write_json(figures, json)
    if figures.shortfall:
        raise Missed(figures.shortfall)


def backbone_sets(backbone: str | None, sets: list[str]) -> list[str]:
    """`sets` with those that `--backbone` means."""
    if backbone is None:
        return sets
    from jobs.backbone import with_backbone

    return with_backbone(backbone, sets)


def reject_sets(fraction: float | None) -> list[str]:
    """What `--max-reject-fraction` means."""
    return [] if fraction is None else [f"max_reject_fraction={fraction}"]
