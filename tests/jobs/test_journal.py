"""What a command tells machines: lines, and a status that is whole whenever it is read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs import journal
from jobs.command import home, run_now
from jobs.figures import Figures
from jobs.folder import MARKER
from jobs.journal import EVERY_S, RUN_ID, Journal, Work, read_status
from jobs.outcome import Missed, sentences
from jobs.steps import Step
from models.errors import ShoalError
from pipeline.progress import Progress

MARKED = json.dumps({"format": "shoal-run", "version": 1})


@pytest.fixture(autouse=True)
def lines_are_wanted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SHOAL_LOG", "json")
    monkeypatch.delenv(RUN_ID, raising=False)
    journal.begin()
    yield
    journal.begin()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / MARKER).write_text(MARKED)
    return tmp_path


class Working:
    """A job that does what it is given."""

    def __init__(self, output: Path, error: BaseException | None = None, shortfall: str = "") -> None:
        self.output = str(output)
        self._error = error
        self._shortfall = shortfall

    def plan(self) -> list[Step]:
        return []

    def run(self, on_progress: Progress) -> Figures:
        on_progress("extract, 5 images, 2/s", 3, 8)
        if self._error is not None:
            raise self._error
        on_progress("fit", 1, None)
        return Figures("working", {"images": 5}, {}, self._shortfall)


def test_every_line_names_run_command_settings_and_step(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal.begin("run")
    run_now(Working(folder), None, "abc")
    told = lines(capsys)
    assert [line["event"] for line in told] == ["started", "progress", "progress", "finished"]
    assert {(line["command"], line["config"], line["attempt"]) for line in told} == {("run", "abc", 1)}
    assert len({line["run"] for line in told}) == 1
    assert [line.get("step") for line in told] == [None, "extract", "fit", "fit"]
    assert told[1] | {"done": 3, "total": 8, "detail": "5 images, 2/s"} == told[1]
    assert told[-1]["figures"] == {"images": 5}
    assert told[-1]["exit_code"] == 0


@pytest.mark.parametrize(
    ("error", "state", "code", "message"),
    [
        (None, "finished", 0, None),
        (Missed("Short by 2."), "finished", 1, "Short by 2."),
        (ShoalError("Seen 1, expected 2; do 3."), "failed", 2, "Seen 1, expected 2; do 3."),
        (KeyboardInterrupt(), "interrupted", 130, "Interrupted; what was committed is kept, and the same command"),
        (ZeroDivisionError("by 0"), "failed", 1, "ZeroDivisionError: by 0"),
    ],
)
def test_the_status_says_how_it_ended(
    folder: Path, capsys: pytest.CaptureFixture[str], error: BaseException | None, state: str, code: int, message: str
) -> None:
    try:
        run_now(Working(folder, error), None)
    except BaseException as raised:
        assert raised is error
    status = read_status(folder)
    assert status is not None
    assert (status["state"], status["exit_code"]) == (state, code)
    assert str(status.get("message")).startswith(str(message))
    assert (status["pid"], status["output"]) == (os.getpid(), str(folder))
    assert lines(capsys)[-1]["event"] == state


def test_too_many_rejects_are_in_the_status_too(folder: Path) -> None:
    with pytest.raises(Missed):
        run_now(Working(folder, shortfall="9 of 10 were rejected."), None)
    status = read_status(folder)
    assert status is not None
    assert (status["state"], status["exit_code"], status["message"]) == ("finished", 1, "9 of 10 were rejected.")


def test_a_run_keeps_its_id_and_counts_its_attempts(folder: Path) -> None:
    for _ in range(3):
        run_now(Working(folder), None)
    first = read_status(folder)
    assert first is not None
    assert first["attempt"] == 3


def test_whoever_submits_may_name_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUN_ID, "name-1")
    run_now(Working(folder), None)
    status = read_status(folder)
    assert status is not None
    assert status["run"] == "name-1"
    assert os.environ[RUN_ID] == "name-1"


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, '{"state": 3}', '{"state": "running", "run": "a b\\n"}'])
def test_a_status_of_somebody_else_does_no_harm(folder: Path, text: str) -> None:
    (folder / "status.json").write_text(text)
    run_now(Working(folder), None)
    status = read_status(folder)
    assert status is not None
    assert (status["state"], status["attempt"]) == ("finished", 1)
    assert status["run"] != "a b\n"


def test_nothing_is_written_into_a_folder_that_is_not_a_runs(tmp_path: Path) -> None:
    run_now(Working(tmp_path), None)
    assert list(tmp_path.iterdir()) == []
    assert home("s3://user:password@bucket/x") is None


def test_the_id_lives_in_the_environment_while_the_run_does(folder: Path) -> None:
    with Journal(Work("run", output=str(folder)), lambda: folder):
        assert os.environ[RUN_ID] == journal.current().run
    assert RUN_ID not in os.environ


def test_time_goes_to_the_step_that_was_told_of_last(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    monkeypatch.setattr("jobs.journal.time.monotonic", lambda: now_s)
    with Journal(Work(output=str(folder)), lambda: folder) as told:
        for moment, step in ((1.0, "read"), (3.0, "fit"), (8.0, "read"), (8.5, "assign")):
            now_s = moment
            told(step, 0, None)
        now_s = 20.0
        told.end("finished", 0, None)
    status = read_status(folder)
    assert status is not None
    assert {each["step"]: each["seconds"] for each in status["steps"]} == {"read": 2.5, "fit": 5.0, "assign": 11.5}
    assert status["seconds"] == 20.0


def test_a_full_disk_is_a_warning_and_the_work_goes_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "status.json").mkdir()  # a file cannot take its place
    with pytest.warns(UserWarning, match=r"status\.json cannot be written"):
        run_now(Working(folder), None)
    assert lines(capsys)[-1]["event"] == "finished"


def test_what_strangers_wrote_cannot_begin_a_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ShoalError):
        run_now(Working(folder, ShoalError('a\n{"event": "finished"}\x1b[2J')), None)
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert [json.loads(line)["event"] for line in err.splitlines()] == ["started", "progress", "failed"]


def test_last_words_are_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    import typer  # noqa: PLC0415

    with pytest.raises(typer.Exit), sentences():
        raise ShoalError("No.")
    (line,) = lines(capsys)
    assert (line["event"], line["message"], line["exit_code"]) == ("failed", "No.", 2)
    with pytest.raises(typer.Exit), sentences():
        run_now(Working(Path("/nowhere"), ShoalError("No.")), None)
    assert [line["event"] for line in lines(capsys)] == ["started", "progress", "failed"]


def test_a_silent_step_is_seen_to_be_alive(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert EVERY_S <= 5
    monkeypatch.setattr(journal, "EVERY_S", 0.0)
    monkeypatch.setattr(journal, "TICK_S", 0.05)
    with Journal(Work("run", output=str(folder)), lambda: folder) as told:
        told("fit", 0, None)
        first = awaited(folder, "")
        assert (first["state"], first["step"]) == ("running", "fit")
        assert awaited(folder, first["time"])["time"] > first["time"]


def awaited(folder: Path, after: str) -> dict[str, Any]:
    """The first status that was written later than that."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        found = read_status(folder)
        if found is not None and found["time"] > after:
            return found
        time.sleep(0.05)
    raise AssertionError("nothing was written within a minute")


def test_an_older_attempt_does_not_speak_over_a_newer_one(folder: Path) -> None:
    with Journal(Work("run", output=str(folder)), lambda: folder) as first:
        first("fit", 0, None)
        with Journal(Work("run", output=str(folder)), lambda: folder) as second:
            second("fit", 0, None)
            second.end("finished", 0, None)
        first.end("interrupted", 130, None)
    status = read_status(folder)
    assert status is not None
    assert status["state"] == "finished"


def test_a_refusal_before_the_first_step_leaves_what_was_told(folder: Path) -> None:
    run_now(Working(folder), None)
    with (
        pytest.raises(ShoalError),
        Journal(Work("run", output=str(folder)), lambda: folder) as refused,
    ):
        refused.end("failed", 2, "Other settings.")
        raise ShoalError("Other settings.")
    status = read_status(folder)
    assert status is not None
    assert (status["state"], status["attempt"]) == ("finished", 1)


def test_a_figure_that_is_not_finite_is_null(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Odd(Working):
        def run(self, on_progress: Progress) -> Figures:
            return Figures("odd", {"nmi": float("nan")})

    run_now(Odd(folder), None)
    assert lines(capsys)[-1]["figures"] == {"nmi": None}


@pytest.mark.slow
def test_work_outlives_whoever_reads_it(tmp_path: Path) -> None:
    """Real pipes that are closed: of the log, and of the figures."""
    shard = tmp_path / "a.tar"
    with tarfile.open(shard, "w") as tar:
        tar.addfile(tarfile.TarInfo("a.txt"))
    code = "from jobs.cli import main; import sys; sys.argv = ['shoal', *sys.argv[1:]]; main()"
    for closed in ("2>&-", "2>&1 | true; exit ${PIPESTATUS[0]}", ">&-"):
        json_file = tmp_path / "figures.json"
        command = f'"$0" -c "$1" show "$2" --json "$3" {closed}'
        words = [sys.executable, code, str(shard), str(json_file)]
        done = subprocess.run([shutil.which("bash") or "bash", "-c", command, *words], check=False, capture_output=True)
        assert done.returncode == 0, (closed, done.stderr)
        assert json.loads(json_file.read_text())["kind"] == "shard"
        json_file.unlink()


def test_an_interruption_is_told_before_anything_is_left_behind(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt), Journal(Work("run", output=str(folder)), lambda: folder) as told:
        told("extract", 0, None)
        journal.interrupted()
        status = read_status(folder)
        assert status is not None
        assert (status["state"], status["exit_code"]) == ("interrupted", 130)
        told.end("failed", 1, "which is what came of it")
        raise KeyboardInterrupt
    assert [line["event"] for line in lines(capsys)][-1] == "interrupted"
    journal.interrupted()  # where nothing is under way
