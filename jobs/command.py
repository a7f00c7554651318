"""What every command does with its job: settings, a plan or a run, figures. Imports what it needs when it is called."""
# ruff: noqa: PLC0415

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.journal import FINISHED, Journal, Work, current
from jobs.outcome import Missed, ended
from models.errors import ShoalError

if TYPE_CHECKING:
    from jobs.config import RunConfig
    from jobs.figures import Figures
    from jobs.steps import Job
    from pipeline.tables.place import Place


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
        run_now(job(settings), json, digest(settings))


def run_now(job: Job, json: Path | None, config: str | None = None) -> None:
    """Run a job, tell how far it is, and show its figures; `config` is the digest of its settings.

    Raises ShoalError, before it runs, where JSON could not be written after.
    """
    from jobs.figures import plain
    from jobs.screen import progress

    require_folder(json)
    with _told(job, config) as journal:
        with progress(journal) as on_progress:
            figures = job.run(on_progress)
        finish(figures, json)
        journal.end(FINISHED, 0, None, plain(figures.values))


def require_folder(json: Path | None) -> None:
    """Raise ShoalError where JSON could not be written after the work."""
    if json is not None and not json.absolute().parent.is_dir():
        raise ShoalError(f"--json {json} is in a folder that does not exist; make {json.absolute().parent} first.")


@contextmanager
def _told(job: Job, config: str | None) -> Iterator[Journal]:
    """Whatever becomes of the job is told."""
    output = getattr(job, "output", None)  # of the jobs that have one, runs and trainings write a folder of their own
    output = output if isinstance(output, str) else None
    command = current().command or type(job).__name__.lower()
    with Journal(Work(command, config, output=output), partial(home, output)) as journal:
        try:
            yield journal
        except BaseException as error:
            state, code, sentence = ended(error)
            journal.end(state, code, sentence or f"{type(error).__name__}: {error}")
            raise


def finish(figures: Figures, json: Path | None) -> None:
    """Write figures, and show them to whoever is still there. Raises Missed where they fall short."""
    from jobs.figures import write_json
    from jobs.screen import show as show_figures

    if json is not None:
        write_json(figures, json)
    with suppress(BrokenPipeError, SystemExit):  # rich's way to say that nobody reads: what was done is done
        show_figures(figures)
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


def home(output: str | None) -> Place | None:
    """The folder of a run or a training, once it is marked as such; None for any other output."""
    from jobs.folder import MARKER
    from pipeline.tables.place import place
    from pipeline.tables.schema import TableError
    from pipeline.train.learn_folder import MARKER as TRAINING

    if output is None:
        return None
    try:
        folder = place(output).absolute()
        return folder if any((folder / marker).is_file() for marker in (MARKER, TRAINING)) else None
    except (OSError, ShoalError, TableError):
        return None  # which the job itself will say
