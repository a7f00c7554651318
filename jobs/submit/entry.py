"""Where a submitted job starts on the cluster: `python -m jobs.submit.entry -- COMMAND...`.

Sees that the versions are the sender's, and then is `shoal COMMAND...` in the same process, so that signals reach it.
"""
# ruff: noqa: PLC0415

from __future__ import annotations

import io
import json
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

from jobs.journal import Work, as_json, last_words
from jobs.submit.pins import PYTHON, differences, installed, read_pins

REFUSED = 2


def main(arguments: list[str]) -> None:
    """Check, then run. Exits with 2 where versions differ."""
    if arguments[:1] != ["--"] or len(arguments) == 1:
        _leave("jobs.submit.entry is given `-- COMMAND...`: what follows `shoal` on a command line.")
    _speak_utf8()
    wanted = read_pins(Path(__file__).parents[2])
    problem = complaint(wanted)
    if problem is not None:
        _leave(problem)
    _tell(greeting(wanted))
    from jobs import cli

    sys.argv = ["shoal", *arguments[1:]]
    cli.main()


def complaint(wanted: Mapping[str, str]) -> str | None:
    """The sentence about versions that are not the sender's; None if all are."""
    found = differences(wanted)
    if not found:
        return None
    listed = ", ".join(f"{name} is {here or 'missing'} but {there} was sent" for name, (there, here) in found.items())
    return (
        f"The cluster has other versions than the sender: {listed}; install those on the cluster, or submit with "
        "--pin install (which installs them for the job, except Ray) or --pin off (results may then differ)."
    )


def greeting(wanted: Mapping[str, str]) -> str:
    """What runs where."""
    here = ".".join(platform.python_version_tuple()[:2])
    sent = wanted.get(PYTHON, here)
    python = f"Python {platform.python_version()}" + ("" if sent == here else f" (the sender has {sent})")
    versions = "versions as sent" if wanted else "versions not compared"
    return f"shoal {installed('shoal')} on {platform.node()}, {python}, {versions}"


def _speak_utf8() -> None:
    """For one byte that is no UTF-8, Ray gives nothing of a job's log."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def _tell(sentence: str) -> None:
    if as_json():
        sentence = json.dumps(Work().line("info", "placed", message=sentence))
    sys.stderr.write(f"{sentence}\n")
    sys.stderr.flush()


def _leave(sentence: str) -> None:
    if as_json():
        last_words(sentence, REFUSED)
    else:
        sys.stderr.write(f"{sentence}\n")
    raise SystemExit(REFUSED)


if __name__ == "__main__":
    main(sys.argv[1:])
