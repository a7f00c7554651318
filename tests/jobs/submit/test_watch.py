"""A job's log for people, and its end for shells."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from typing import Any

import pytest
from dashboard import Dashboard

from jobs.submit.client import Job
from jobs.submit.control import _row
from jobs.submit.watch import Log, as_line, ending, exit_code, follow, sentence
from models.errors import ShoalError


def line(event: str, **more: Any) -> str:
    return json.dumps({"time": "2026-11-22T18:00:01.250Z", "level": "info", "event": event, **more})


def shown(*pieces: str, bars: bool = False) -> tuple[str, list[tuple[str, int, int | None]]]:
    out, told = io.StringIO(), []

    def listen(step: str, done: int, total: int | None) -> None:
        told.append((step, done, total))

    log = Log(listen, bars, out)
    for piece in pieces:
        log.take(piece)
    log.close()
    return out.getvalue(), told


@pytest.mark.parametrize(
    ("event", "more", "said"),
    [
        ("progress", {"step": "extract", "done": 1200, "total": 5000}, "18:00:01 extract: 1,200 of 5,000"),
        ("progress", {"step": "fit", "done": 3, "total": None, "detail": "K 12"}, "18:00:01 fit, K 12: 3"),
        ("progress", {"step": "fit"}, "18:00:01 fit"),
        ("started", {"command": "run", "run": "ab", "attempt": 2}, "18:00:01 started run, run ab, attempt 2"),
        ("finished", {"command": "run", "seconds": 61.4}, "18:00:01 finished run after 61 s"),
        ("failed", {"level": "error", "message": "No such table."}, "18:00:01 error: No such table."),
        ("warning", {"level": "warning", "message": "Odd."}, "18:00:01 warning: Odd."),
        ("placed", {"message": "shoal 0.1.0 on a"}, "18:00:01 shoal 0.1.0 on a"),
    ],
)
def test_lines_of_shoal_are_sentences(event: str, more: dict[str, Any], said: str) -> None:
    found = as_line(line(event, **more))
    assert found is not None
    assert sentence(found) == said


@pytest.mark.parametrize("text", ["", "nmi 0.94", "{", "{}", '{"time": 1}', "[1]", '{"a": ' * 5000])
def test_lines_of_others_are_none_of_ours(text: str) -> None:
    assert as_line(text) is None


def test_pieces_may_end_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    whole = f"one\n{line('placed', message='x')}\ntwo"
    for cut in range(len(whole)):
        printed, _ = shown(whole[:cut], whole[cut:])
        assert printed == "one\ntwo\n"
        assert capsys.readouterr().err == "18:00:01 x\n"


def test_progress_is_bars_on_a_terminal_and_lines_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    text = f"{line('progress', step='fit', done=3, total=9, detail='K 12')}\n"
    assert shown(text, bars=True) == ("", [("fit, K 12", 3, 9)])
    assert capsys.readouterr().err == ""
    assert shown(text) == ("", [])
    assert capsys.readouterr().err == "18:00:01 fit, K 12: 3 of 9\n"


def test_nothing_that_a_job_says_steers_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "a\x1b[2J\x9b\u202eb\rc"
    printed, told = shown(
        f"{hostile}\n{line('warning', message=hostile)}\n{line('progress', step=hostile, done=1, total=1)}\n", bars=True
    )
    seen = printed + capsys.readouterr().err + told[0][0]
    assert seen.count("a\\x1b[2J\\x9b\\u202eb\\rc") == 3
    assert not set(seen) & {"\x1b", "\x9b", "\u202e", "\r"}


@pytest.mark.parametrize(
    ("state", "code", "expected"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 1, 1),
        ("FAILED", 2, 2),
        ("FAILED", 130, 130),
        ("FAILED", -9, 137),
        ("FAILED", -15, 143),
        ("FAILED", 137, 137),
        ("FAILED", None, 2),
        ("STOPPED", None, 130),
        ("STOPPED", 1, 130),
    ],
)
def test_exit_codes_are_the_commands_own(state: str, code: int | None, expected: int) -> None:
    assert exit_code(Job("j", state, exit_code=code)) == expected


@pytest.mark.parametrize(
    ("job", "said"),
    [
        (Job("j", "SUCCEEDED", exit_code=0), "Job j succeeded."),
        (Job("j", "STOPPED"), "submit the same command again"),
        (Job("j", "FAILED", exit_code=2), "exit code 2"),
        (Job("j", "FAILED", exit_code=-9), "ended by signal 9; submit the same command again"),
        (Job("j", "FAILED", exit_code=127), "no `python` on the PATH"),
        (Job("j", "FAILED", "\nruntime_env setup failed: x\n  stack"), "runtime_env setup failed: x"),
        (Job("j", "FAILED"), "does not say why"),
    ],
)
def test_endings_say_what_to_do(job: Job, said: str) -> None:
    assert said in ending(job)
    assert "\n" not in ending(job)


BROKEN = (500, "Traceback:\n  stack\nUnicodeDecodeError: byte 0xff.")


def test_a_log_that_cannot_be_had_is_said_once_and_the_job_is_followed_to_its_end(dashboard: Dashboard) -> None:
    dashboard.tell("RUNNING", "RUNNING", "FAILED")
    dashboard.tell((200, {"logs": "one"}), BROKEN, path="/api/jobs/j/logs")
    printed: list[str] = []
    with pytest.warns(UserWarning, match="What job j says cannot be shown.*UnicodeDecodeError: byte 0xff") as warned:
        job = follow(dashboard.client, "j", printed.append)
    assert (job.state, printed, len(warned)) == ("FAILED", ["one"], 1)


def test_a_log_that_comes_back_is_shown_from_where_it_was(dashboard: Dashboard) -> None:
    dashboard.tell("RUNNING", "RUNNING", "SUCCEEDED")
    dashboard.tell((200, {"logs": "one"}), BROKEN, (200, {"logs": "one\ntwo"}), path="/api/jobs/j/logs")
    printed: list[str] = []
    with pytest.warns(UserWarning, match="cannot be shown"):
        follow(dashboard.client, "j", printed.append)
    assert printed == ["one", "\ntwo"]


def test_whoever_is_not_let_in_any_more_is_told(dashboard: Dashboard) -> None:
    dashboard.tell("RUNNING")
    dashboard.tell((403, "Forbidden: Invalid authentication token"), path="/api/jobs/j/logs")
    with pytest.raises(ShoalError, match="does not accept this token"):
        follow(dashboard.client, "j", print)


def test_what_a_command_prints_is_utf8_whatever_the_machine_has() -> None:
    code = "from jobs.submit.entry import _speak_utf8 as speak; speak(); print('\\udcff\\xe4')"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONIOENCODING": "latin-1"}, capture_output=True, check=True
    )
    assert done.stdout.decode() == "\\udcff\xe4\n"


def test_a_job_in_the_list() -> None:
    job = Job("j", "FAILED", "", 2, 1_000, 3_500, "exec x", {"shoal_command": "run a", "shoal_run": "ab"})
    assert _row(job) == {
        "job": "j",
        "state": "FAILED",
        "command_line": "run a",
        "run": "ab",
        "started": "1970-01-01T00:00:01Z",
        "seconds": 2.5,
        "exit_code": 2,
    }
    assert _row(Job("j", "PENDING", entrypoint="other's"))["command_line"] == "other's"
