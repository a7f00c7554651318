"""How commands end: exit codes and sentences."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from pydantic import ValidationError

from jobs.context import RayConfig
from jobs.outcome import Missed, explain, sentences
from models.errors import ShoalError
from pipeline.tables.schema import TableError


def _raise(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


def _invalid() -> None:
    RayConfig(num_cpus=0)


@pytest.mark.parametrize(
    ("act", "code", "sentence"),
    [
        (_raise(ShoalError("Seen 1, expected 2;\n do 3.")), 2, "Seen 1, expected 2; do 3."),
        (_raise(TableError("No table here.")), 2, "No table here."),
        (_raise(Missed("Short by 2.")), 1, "Short by 2."),
        (_raise(KeyboardInterrupt()), 130, "Interrupted; what was committed is kept, and the same command continues"),
        (_raise(OSError(errno.ENOSPC, "No space left on device")), 2, "The disk is full; free some space"),
        (_invalid, 2, "num_cpus is 0 but should be greater than or equal to 1."),
        (lambda: Path("/nowhere/at/all").read_text(), 2, "/nowhere/at/all does not exist; check the path"),
        (lambda: Path("/").read_text(), 2, "/ is a folder, not a file; check the path"),
        (_raise(PermissionError(errno.EACCES, "denied", "/a")), 2, "/a may not be read or written by this user; "),
        (_raise(OSError(errno.ENAMETOOLONG, "File name too long", "/b")), 2, "/b file name too long; check the path"),
    ],
)
def test_what_users_can_put_right_is_one_line_and_an_exit_code(
    act: Callable[[], None], code: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as left, sentences():
        act()
    captured = capsys.readouterr()
    assert left.value.exit_code == code
    assert captured.err.startswith(sentence)
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize("defect", [ZeroDivisionError("x"), KeyError("a"), OSError("no file behind it")])
def test_a_defect_keeps_its_traceback(defect: Exception) -> None:
    assert explain(defect) is None
    with pytest.raises(type(defect)), sentences():
        raise defect


def test_a_wrong_value_names_its_model_where_there_is_no_key() -> None:
    with pytest.raises(ValidationError) as caught:
        RayConfig.model_validate(3)
    assert str(explain(caught.value)).startswith("RayConfig is 3 but is a section of settings")


def test_only_shoals_own_warnings_are_shown_and_as_sentences() -> None:
    """In a process of its own, since filters are the process's."""
    code = (
        "import sys, types, warnings\n"
        "from jobs.outcome import warn_in_sentences\n"
        "warn_in_sentences()\n"
        "def tell(name, text, kind):\n"
        "    exec(compile(f'import warnings; warnings.warn({text!r}, {kind})', name, 'exec'), {'__name__': name})\n"
        "tell('models.backbones', 'weights are\\nRANDOM', 'UserWarning')\n"
        "tell('umap.umap_', 'n_jobs overridden', 'UserWarning')\n"
        "tell('models.reduce', 'old', 'FutureWarning')\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stderr == "Warning: weights are RANDOM\n"
