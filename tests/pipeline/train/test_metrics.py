"""What a run tells: lines that stay whole and true, events for TensorBoard, gauges for Prometheus."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from event_files import events_of
from object_store import ObjectStore

from pipeline.tables.place import Place, place
from pipeline.train.metrics import EVENTS, LINES, Recorder, read_lines


def lines_of(folder: Place) -> list[dict[str, Any]]:
    text = (folder / LINES).read_text()
    assert not text or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def test_each_record_is_a_line_and_what_is_not_finite_is_null(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, resumed_step=0)
    recorder.record(50, {"epoch": 0.5, "loss": 3.25})
    recorder.note(60, "The loss does not fall.")
    recorder.record(100, {"epoch": 1.0, "loss": float("nan")})
    recorder.close()
    assert lines_of(tmp_path) == [
        {"step": 50, "epoch": 0.5, "loss": 3.25},
        {"step": 60, "note": "The loss does not fall."},
        {"step": 100, "epoch": 1.0, "loss": None},
    ]


def test_steps_that_are_taken_again_are_told_once(tmp_path: Path) -> None:
    first = Recorder(tmp_path, resumed_step=0)
    for step in (10, 20, 30):
        first.record(step, {"loss": float(step)})
    first.note(30, "late")
    first.flush()  # and then it is killed
    with (tmp_path / LINES).open("a") as file:
        file.write('{"step": 15, "lo')  # as a power cut may leave it
    second = Recorder(tmp_path, resumed_step=20)
    second.record(30, {"loss": 31.0})
    second.close()
    assert lines_of(tmp_path) == [{"step": 10, "loss": 10.0}, {"step": 20, "loss": 20.0}, {"step": 30, "loss": 31.0}]


def test_a_fresh_run_begins_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / LINES).write_text('{"step": 0, "loss": 1}\nnonsense\n')
    recorder = Recorder(tmp_path, resumed_step=0)
    recorder.record(1, {"loss": 2.0})
    recorder.close()
    assert lines_of(tmp_path) == [{"step": 1, "loss": 2.0}]


@pytest.mark.slow
def test_a_run_that_is_killed_leaves_every_line_whole_but_the_last(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pipeline.train.metrics import Recorder\n"
        "recorder = Recorder(Path(sys.argv[1]), 0, every_s=0)\n"
        "for step in range(10**9): recorder.record(step, {'loss': 1 / (step + 1), 'text': step})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    deadline = time.monotonic() + 60
    while not (tmp_path / LINES).exists() or len((tmp_path / LINES).read_bytes()) < 2_000:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    found = read_lines(tmp_path)
    assert len(found) > 10
    assert [line["step"] for line in found] == list(range(len(found)))


def test_tensorboard_is_told_the_same_and_what_to_forget(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, resumed_step=7)
    recorder.record(8, {"loss": 2.5, "lr": float("inf")})
    recorder.note(8, "take care")
    recorder.close()
    events = events_of(tmp_path / EVENTS)
    scalars = {(each.step, v.tag): v.simple_value for each in events for v in each.summary.value if v.simple_value}
    assert scalars == {(8, "train/loss"): 2.5}
    assert any(v.tensor.string_val == [b"take care"] for each in events for v in each.summary.value)
    assert [each.step for each in events if each.HasField("session_log")] == [8]


def test_new_lines_are_appended_and_the_rest_stays_as_it_is(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, resumed_step=0)
    recorder.record(1, {"loss": 3.0})
    recorder.flush()
    file = (tmp_path / LINES).stat().st_ino
    with (tmp_path / LINES).open("ab") as torn:
        torn.write(b'{"step": 2, "lo')  # as an attempt leaves it that found the disk full
    assert read_lines(tmp_path) == [{"step": 1, "loss": 3.0}]
    recorder.record(2, {"loss": 2.0})
    recorder.note(2, "ends\u2028of lines")
    recorder.flush()
    assert (tmp_path / LINES).stat().st_ino == file
    assert read_lines(tmp_path) == [
        {"step": 1, "loss": 3.0},
        {"step": 2, "loss": 2.0},
        {"step": 2, "note": "ends\u2028of lines"},
    ]


def test_what_cannot_be_read_at_resume_is_not_written_over(tmp_path: Path) -> None:
    first = Recorder(tmp_path, resumed_step=0)
    first.record(1, {"loss": 3.0})
    first.close()
    hidden = (tmp_path / LINES).rename(tmp_path / "hidden")
    (tmp_path / LINES).symlink_to(LINES)  # a loop: neither there nor missing
    second = Recorder(tmp_path, resumed_step=1)
    second.record(2, {"loss": 2.0})
    with pytest.warns(UserWarning, match="training goes on"):
        second.flush()
    assert (tmp_path / LINES).is_symlink()
    hidden.replace(tmp_path / LINES)  # it was a passing failure
    second.close()
    assert lines_of(tmp_path) == [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}]


def test_a_folder_that_cannot_be_written_is_told_once_and_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / LINES).mkdir()
    recorder = Recorder(tmp_path, resumed_step=0, every_s=0)
    with pytest.warns(UserWarning, match=r"metrics.jsonl cannot be written .*training goes on") as told:
        recorder.record(1, {"loss": 1.0})
        recorder.record(2, {"loss": 1.0})
        recorder.close()
    assert len(told) == 1


def test_in_an_object_store_lines_are_there_when_it_ends_and_stay_on_resume(bucket: ObjectStore) -> None:
    folder = place(f"{bucket.url}/run")
    first = Recorder(folder, resumed_step=0)
    first.record(1, {"loss": 3.0})
    first.record(2, {"loss": 2.0})
    first.close()
    second = Recorder(folder, resumed_step=1)
    second.record(2, {"loss": 1.0})
    second.close()
    assert lines_of(folder) == [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 1.0}]


@pytest.mark.slow
def test_prometheus_finds_the_last_figures_while_a_session_is_up(ray_session: None, tmp_path: Path) -> None:
    import ray  # noqa: PLC0415

    recorder = Recorder(tmp_path, resumed_step=0)
    recorder.record(1, {"loss": 5.5, "rows_per_second": 100.0, "skipped": 2})
    recorder.record(2, {"loss": 4.5, "rows_per_second": 120.0, "skipped": 2})
    wanted = {"train_loss": 4.5, "train_rows_per_second": 120.0, "train_skipped": 2.0}
    deadline = time.monotonic() + 60
    found: dict[str, float] = {}
    while found != wanted and time.monotonic() < deadline:
        time.sleep(1)
        for node in ray.nodes():  # type: ignore[no-untyped-call]
            url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            with urllib.request.urlopen(url, timeout=10) as answer:
                text = answer.read().decode()
            lines = re.findall(r"^ray_shoal_(train_\w+)\{.*\} (\S+)$", text, re.MULTILINE)
            found = {name: float(value) for name, value in lines if name in wanted}
    assert found == wanted
