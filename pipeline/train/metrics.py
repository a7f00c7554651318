"""What a training run tells while it goes on: lines of JSON, TensorBoard, and gauges for Prometheus.

None of it matters to the result, so none of it stops a run: what cannot be written is told once, as a warning.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.metrics import UNDER_WAY, Gauge
from pipeline.tables.place import Place, write_whole
from pipeline.train.events import EventLog

LINES, EVENTS = "metrics.jsonl", "tensorboard"
_STORE_EVERY_S = 60.0  # an object is put anew with all its lines
EPOCHS = Gauge("shoal_train_epochs", "Epochs that the training is to take.")
_WHAT = {
    "loss": "Mean loss of the last steps.",
    "rows_per_second": "Images, or rows of embeddings, that were trained on, over all workers.",
    "epoch": "Epochs that are over, with the part of the one that runs.",
    "lr": "Learning rate.",
    "skipped": "Steps without an update, because loss or gradient was not finite.",
    "clusters": "Clusters, or prototypes in use, at the end of the last epoch.",
    "gap": "SwAV: ln K minus the loss; 0 is what a network that tells nothing apart reaches.",
    "perplexity": "SwAV: of the batch's mean code, in prototypes.",
    "confidence": "SwAV: mean largest entry of a code; 1 / K when nothing tells rows apart.",
    "feature_norm": "SwAV: mean norm of the embeddings before they are normalised.",
    "queue": "SwAV: how much of the queue is filled, 0 to 1.",
}
FIGURES = {name: Gauge(f"shoal_train_{name}", what) for name, what in _WHAT.items()}


class Recorder:
    """What worker 0 says of a run, in `folder`. Not safe in threads.

    `metrics.jsonl` has one object a line, with `step` first: figures, or a `note`; a figure that is not finite is null.
    New lines are appended every `every_s` seconds; a run that was killed may leave part of one at the end, which
    `read_lines` passes over. An object store, which takes no appended lines, is given all of them every minute. Lines
    after `resumed_step` belong to steps that are taken again and are dropped.
    """

    def __init__(self, folder: Place, resumed_step: int, every_s: float = 5.0, *, epochs: int | None = None) -> None:
        self._path = folder / LINES
        self._resumed_step = resumed_step
        self._lines: list[bytes] = []  # that are still to be written
        self._begun = False  # whether `_lines` has what stays true of an earlier run, or has had it
        self._size: int | None = None  # of the file on a disk that is ours; None before it was written
        self._every_s = every_s if isinstance(folder, Path) else max(every_s, _STORE_EVERY_S)
        self._written_at = time.monotonic()
        self._events = EventLog(folder / EVENTS, resumed_step) if isinstance(folder, Path) else None
        self._failed = False
        UNDER_WAY.set(1, step="train")
        if epochs is not None:
            EPOCHS.set(epochs)

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Figures as they are after `step` steps."""
        finite = {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
        self._add({"step": step, **finite})
        for name, value in finite.items():
            if value is None:
                continue
            if self._events is not None:
                self._events.scalar(f"train/{name}", value, step)
            _gauge(name).set(value)

    def note(self, step: int, text: str) -> None:
        """A sentence for whoever watches."""
        self._add({"step": step, "note": text})
        if self._events is not None:
            self._events.text("train/note", text, step)

    def flush(self) -> None:
        """Write now: before a checkpoint, whose steps will not be taken again. What fails is tried again next time."""
        self._written_at = time.monotonic()
        try:
            self._write()
        except OSError as error:
            self._warn(error)

    def close(self) -> None:
        """Write what is left."""
        UNDER_WAY.set(0, step="train")
        self.flush()
        if self._events is not None:
            self._events.flush()

    def _add(self, entry: Mapping[str, object]) -> None:
        self._lines.append(f"{json.dumps(entry, ensure_ascii=False)}\n".encode())
        if time.monotonic() - self._written_at >= self._every_s:
            self.flush()

    def _write(self) -> None:
        if not self._begun:  # before it can be read nothing is written, or what an earlier run told would be lost
            self._lines = _lines_until(self._path, self._resumed_step) + self._lines
            self._begun = True
        data = b"".join(self._lines)
        if not isinstance(self._path, Path):
            write_whole(self._path, data)
            return
        if self._size is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._path, data)
        else:
            _append(self._path, self._size, data)
        self._size = (self._size or 0) + len(data)
        self._lines = []

    def _warn(self, error: OSError) -> None:
        if not self._failed:
            self._failed = True
            warnings.warn(f"{self._path} cannot be written ({error}); training goes on without it.", stacklevel=3)


def read_lines(folder: Place) -> list[dict[str, Any]]:
    """All whole lines of the run in `folder`; none where it has told nothing."""
    return [json.loads(line) for line in _lines_until(folder / LINES, sys.maxsize)]


def _lines_until(path: Place, step: int) -> list[bytes]:
    """A run's lines that are of no later step; none where there is no file. Raises OSError if it cannot be read."""
    if not step:
        return []
    try:
        lines = path.read_bytes().splitlines(keepends=True)  # of bytes: at line ends only
    except FileNotFoundError:
        return []
    return [line for line in lines if _step_of(line) <= step]


def _step_of(line: bytes) -> float:
    """Infinity for what is no whole line of ours."""
    try:
        return float(json.loads(line)["step"]) if line.endswith(b"\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf


def _append(path: Path, size: int, data: bytes) -> None:
    """Write behind the first `size` bytes, whatever an attempt that failed has left there; it outlives a power cut."""
    with path.open("r+b") as file:
        file.seek(size)
        file.write(data)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())


def _gauge(name: str) -> Gauge:
    """That of a figure, which may be one that only its objective knows."""
    safe = re.sub(r"\W", "_", name)
    return FIGURES.get(name) or Gauge(f"shoal_train_{safe}", f"{name} of the last steps.")
