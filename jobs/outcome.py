"""How a command ends when it does not end well: one sentence on stderr, and an exit code.

0: done. 1: done, but too many rows were rejected, or a benchmark misses its bar; results are kept.
2: not done, for the reason the sentence gives. 130: interrupted.
"""

from __future__ import annotations

import errno
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer

from jobs import journal
from jobs.brief import legible
from models.errors import ShoalError

MISSED, REFUSED, INTERRUPTED = 1, 2, journal.CODE_OF_INTERRUPTED
_PROBLEMS: dict[type[OSError], str] = {
    FileNotFoundError: "does not exist",
    PermissionError: "may not be read or written by this user",
    IsADirectoryError: "is a folder, not a file",
    NotADirectoryError: "is not a folder",
    FileExistsError: "exists already",
}


class Missed(Exception):  # noqa: N818  not an error: everything asked for was done
    """The work is done and kept, but falls short of what was asked of it; the message says by how much."""


@contextmanager
def sentences() -> Iterator[None]:
    """Turn what users can put right into a sentence and an exit code; what is a defect keeps its traceback.

    SIGTERM, by which schedulers and `shoal jobs stop` end a job, is Ctrl-C.
    """
    journal.begin()
    with _interrupted_by_sigterm():
        try:
            yield
        except (KeyboardInterrupt, Missed, Exception) as error:
            state, code, sentence = ended(error)
            if sentence is None:
                raise
            _leave(sentence, code, state)


def ended(error: BaseException) -> tuple[str, int, str | None]:
    """The state in which an error leaves the work, the exit code, and the sentence: None for a defect of shoal."""
    if isinstance(error, KeyboardInterrupt):
        return journal.INTERRUPTED, INTERRUPTED, journal.SENTENCE_OF_INTERRUPTED
    if isinstance(error, Missed):
        return journal.FINISHED, MISSED, str(error)
    explained = explain(error) if isinstance(error, Exception) else None
    return journal.FAILED, 1 if explained is None else REFUSED, explained


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only there signals have handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


def explain(error: Exception) -> str | None:
    """The sentence for an error that the user can put right, None for a defect of shoal."""
    # Imported when something went wrong, so that `shoal --help` need not wait for them.
    from pydantic import ValidationError  # noqa: PLC0415

    from jobs.overrides import explain as explain_setting  # noqa: PLC0415
    from pipeline.tables.schema import TableError  # noqa: PLC0415

    if isinstance(error, ShoalError | TableError):
        return str(error)
    if isinstance(error, ValidationError):
        return explain_setting(error)
    return _file_problem(error) if isinstance(error, OSError) else None


def _file_problem(error: OSError) -> str | None:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "The disk is full; free some space, and the same command continues from what is committed."
    if error.filename is None:
        return None
    problem = _PROBLEMS.get(type(error), (error.strerror or str(error)).lower())
    return f"{error.filename} {problem}; check the path and its owner."


def warn_in_sentences() -> None:
    """Show shoal's own warnings as sentences on stderr, and nobody else's: libraries warn about each other."""
    warnings.simplefilter("ignore")
    warnings.filterwarnings("always", category=UserWarning, module=r"(models|pipeline|jobs)\.")
    warnings.showwarning = _show_warning


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    sentence = " ".join(str(message).split())
    if journal.as_json():
        journal.warn(sentence)
    else:
        typer.echo(f"Warning: {legible(sentence)}", err=True)


def _leave(sentence: str, code: int, state: str) -> None:
    sentence = " ".join(sentence.split())
    if journal.as_json():
        journal.last_words(sentence, code, state)
    else:
        typer.echo(legible(sentence), err=True)
    raise typer.Exit(code)
