"""Progress: bars on a terminal, nothing anywhere else."""

from __future__ import annotations

import pytest

from jobs.screen import progress
from pipeline.progress import silent


def test_nothing_is_drawn_into_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    with progress() as on_progress:
        assert on_progress is silent
    assert capsys.readouterr() == ("", "")


def test_a_step_is_one_bar_on_stderr_whatever_follows_its_comma(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # what makes a terminal of a pipe, for rich
    monkeypatch.setenv("COLUMNS", "120")
    with progress() as on_progress:
        on_progress("fit, 3 clusters", 1, None)
        on_progress("fit, 4 clusters", 2, None)
        on_progress("extract", 5, 8)
    captured = capsys.readouterr()
    assert captured.out == ""
    last = captured.err.rpartition("fit, 4 clusters")[2]
    assert "2/?" in last
    assert "5/8" in last
    assert "fit, 3 clusters" not in last
