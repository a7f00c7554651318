"""Events for TensorBoard: what is read back, and that a disk which is full or closed stops nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from event_files import events_of

from pipeline.train.events import EventLog

FULL = """
import resource, signal, sys, warnings
from pathlib import Path
from pipeline.train.metrics import Recorder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
recorder = Recorder(Path(sys.argv[1]), 0, every_s=0)
recorder._events._every_s = 0
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    for step in range(1, 501):
        recorder.record(step, {"loss": step / 4})
    recorder.note(500, "late")
    recorder.close()
print(len(told))
"""


def test_events_are_read_back_with_steps_and_values(tmp_path: Path) -> None:
    for resumed in (0, 2):
        log = EventLog(tmp_path / "events", resumed)
        for step in (resumed + 1, resumed + 2):
            log.scalar("train/loss", step / 4, step)
        log.flush()
        log.text("train/note", "take care", resumed + 2)
        log.flush()
    events = events_of(tmp_path / "events")
    assert [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value if v.tag == "train/loss"] == [
        (step, "train/loss", step / 4) for step in (1, 2, 3, 4)
    ]
    assert [e.file_version for e in events if e.file_version] == ["brain.Event:2"] * 2
    assert [e.step for e in events if e.HasField("session_log")] == [1, 3]
    assert [e.step for e in events for v in e.summary.value if v.tensor.string_val == [b"take care"]] == [2, 4]


def test_a_full_disk_is_told_once_of_each_file_and_stops_nothing(tmp_path: Path) -> None:
    run = [sys.executable, "-W", "ignore", "-c", FULL, str(tmp_path)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["2"]), done.stderr
    steps = [event.step for event in events_of(tmp_path / "tensorboard") if event.summary.value]
    assert steps and steps == list(range(1, len(steps) + 1))


def test_a_place_that_cannot_be_written_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "events").write_text("no folder")
    log = EventLog(tmp_path / "events", 0, every_s=0)
    with pytest.warns(UserWarning, match="TensorBoard is told no more") as told:
        log.scalar("loss", 1.0, 1)
        log.text("note", "late", 2)
        log.flush()
    assert len(told) == 1
