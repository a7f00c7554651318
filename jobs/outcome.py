"""How a command ends when it does not end well: one sentence on stderr, and an exit code.

0: done. 1: done, but too many rows were rejected, or a benchmark misses its bar; results are kept.
2: not done, for the reason the sentence gives. 130: interrupted.
"""

from __future__ import annotations

import errno
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from models.errors import ShoalError

MISSED, REFUSED, INTERRUPTED = 1, 2, 130
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
    """Turn what users can put right into a sentence and an exit code; what is a defect keeps its traceback."""
    try:
        yield
    except KeyboardInterrupt:
        _leave("Interrupted; what was committed is kept, and the same command continues from there.", INTERRUPTED)
    except Missed as missed:
        _leave(str(missed), MISSED)
    except Exception as error:
        sentence = explain(error)
        if sentence is None:
            raise
        _leave(sentence, REFUSED)


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
    typer.echo(f"Warning: {' '.join(str(message).split())}", err=True)


def _leave(sentence: str, code: int) -> None:
    typer.echo(" ".join(sentence.split()), err=True)
    raise typer.Exit(code)
