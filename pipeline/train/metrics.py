"""What a training run tells while it goes on: lines of JSON, TensorBoard, and gauges for Prometheus.

None of it matters to the result, so none of it stops a run: what cannot be written is told once, as a warning.
"""

from __future__ import annotations

import json
import math
import re
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.tables.place import Place, write_whole

if TYPE_CHECKING:
    from ray.util.metrics import Gauge

LINES, EVENTS = "metrics.jsonl", "tensorboard"
_STORE_EVERY_S = 60.0  # an object is put anew with all its lines
_WHAT = {
    "loss": "Mean loss of the last steps.",
    "rows_per_second": "Images, or rows of embeddings, that were trained on, over all workers.",
    "epoch": "Epochs that are over, with the part of the one that runs.",
    "lr": "Learning rate.",
    "skipped": "Steps without an update, because loss or gradient was not finite.",
}


class Recorder:
    """What worker 0 says of a run, in `folder`. Not safe in threads.

    `metrics.jsonl` has one object a line, with `step` first: figures, or a `note`; a figure that is not finite is null.
    It is written whole every `every_s` seconds (every minute in an object store), so that a reader sees whole lines
    only, and a run that was killed leaves nothing else. Lines after `resumed_step` belong to steps that are taken again
    and are dropped.
    """

    def __init__(self, folder: Place, resumed_step: int, every_s: float = 5.0) -> None:
        self._path = folder / LINES
        self._lines = _lines_until(self._path, resumed_step)
        self._every_s = every_s if isinstance(folder, Path) else max(every_s, _STORE_EVERY_S)
        self._written_at = time.monotonic()
        self._board = _board(folder, resumed_step)
        self._gauges: dict[str, Gauge] = {}
        self._failed = False

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Figures as they are after `step` steps."""
        finite = {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
        self._add({"step": step, **finite})
        for name, value in finite.items():
            if value is None:
                continue
            if self._board is not None:
                self._board.add_scalar(f"train/{name}", value, step)
            self._set_gauge(name, value)

    def note(self, step: int, text: str) -> None:
        """A sentence for whoever watches."""
        self._add({"step": step, "note": text})
        if self._board is not None:
            self._board.add_text("train/note", text, step)

    def flush(self) -> None:
        """Write now: before a checkpoint, whose steps will not be taken again."""
        self._written_at = time.monotonic()
        try:
            write_whole(self._path, "".join(self._lines).encode())
        except OSError as error:
            self._warn(error)

    def close(self) -> None:
        """Write what is left."""
        self.flush()
        if self._board is not None:
            self._board.close()

    def _add(self, entry: Mapping[str, object]) -> None:
        self._lines.append(f"{json.dumps(entry, ensure_ascii=False)}\n")
        if time.monotonic() - self._written_at >= self._every_s:
            self.flush()

    def _set_gauge(self, name: str, value: float) -> None:
        """A gauge is made at its first value, where a Ray session would export it."""
        if not _ray_is_up():
            return
        if name not in self._gauges:
            from ray.util.metrics import Gauge  # noqa: PLC0415

            safe = re.sub(r"\W", "_", name)
            self._gauges[name] = Gauge(f"shoal_train_{safe}", _WHAT.get(name, f"{name} of the last steps."))
        self._gauges[name].set(value)

    def _warn(self, error: OSError) -> None:
        if not self._failed:
            self._failed = True
            warnings.warn(f"{self._path} cannot be written ({error}); training goes on without it.", stacklevel=3)


def read_lines(folder: Place) -> list[dict[str, Any]]:
    """All lines of the run in `folder`; none where it has told nothing."""
    try:
        text = (folder / LINES).read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines() if math.isfinite(_step_of(f"{line}\n"))]


def _lines_until(path: Place, step: int) -> list[str]:
    """The lines of an earlier run that stay true; none where there is no such file, or it cannot be read now."""
    try:
        text = path.read_text(encoding="utf-8") if step else ""
    except (OSError, UnicodeDecodeError):
        return []
    return [line for line in text.splitlines(keepends=True) if _step_of(line) <= step]


def _step_of(line: str) -> float:
    """Infinity for what is no whole line of ours."""
    try:
        return float(json.loads(line)["step"]) if line.endswith("\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf


def _board(folder: Place, resumed_step: int) -> Any:
    """A writer of TensorBoard events; None in an object store, which takes no appended records.

    TensorBoard itself drops the events that an earlier attempt left of steps which are taken again.
    """
    if not isinstance(folder, Path):
        return None
    from tensorboardX import SummaryWriter  # noqa: PLC0415  takes a second, and only one worker needs it

    folder.mkdir(parents=True, exist_ok=True)
    return SummaryWriter(str(folder / EVENTS), purge_step=resumed_step + 1, flush_secs=30)


def _ray_is_up() -> bool:
    """Whether this process is in a Ray session; without importing Ray, which takes seconds."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())
