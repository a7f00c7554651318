"""Events for TensorBoard, written by the process that has them: no thread and no queue that a full disk could stop."""

from __future__ import annotations

import os
import socket
import struct
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tensorboardX.proto.event_pb2 import Event

_EVERY_S = 30.0


class EventLog:
    """A file of events in `folder`, which TensorBoard reads. Not safe in threads.

    Events of steps after `resumed_step` that an earlier attempt left are dropped by TensorBoard itself. What cannot be
    written is told once, as a warning, and ends the file: nothing here raises OSError, or waits.
    """

    def __init__(self, folder: Path, resumed_step: int, every_s: float = _EVERY_S) -> None:
        # tensorboardX takes a second to import, and only one worker needs it.
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # noqa: PLC0415

        # Names are in the order of attempts, and TensorBoard reads them in this order.
        name = f"events.out.tfevents.{time.time_ns() / 1e9:017.6f}.{socket.gethostname()}.{os.getpid()}"
        self._path = folder / name
        self._every_s = every_s
        self._written_at = time.monotonic()
        self._failed = False
        first = Event(wall_time=time.time(), file_version="brain.Event:2")
        purge = Event(wall_time=time.time(), step=resumed_step + 1, session_log=SessionLog(status=SessionLog.START))
        self._waiting = [_record(first), _record(purge)]

    def scalar(self, name: str, value: float, step: int) -> None:
        """A figure after `step` steps."""
        from tensorboardX.proto.summary_pb2 import Summary  # noqa: PLC0415

        self._add(Summary(value=[Summary.Value(tag=name, simple_value=value)]), step)

    def text(self, name: str, text: str, step: int) -> None:
        """A sentence after `step` steps."""
        from tensorboardX.summary import text as summary_of_text  # noqa: PLC0415

        self._add(summary_of_text(name, text), step)

    def flush(self) -> None:
        """Write now."""
        self._written_at = time.monotonic()
        if self._failed:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.write(b"".join(self._waiting))
        except OSError as error:
            # For good: part of a record may be there, and nothing behind it would be read.
            self._failed = True
            warnings.warn(f"{self._path} cannot be written ({error}); TensorBoard is told no more.", stacklevel=3)
        self._waiting = []

    def _add(self, summary: Any, step: int) -> None:
        from tensorboardX.proto.event_pb2 import Event  # noqa: PLC0415

        if self._failed:
            return
        self._waiting.append(_record(Event(wall_time=time.time(), step=step, summary=summary)))
        if time.monotonic() - self._written_at >= self._every_s:
            self.flush()


def _record(event: Event) -> bytes:
    """As TFRecord files have it: length, its checksum, content, its checksum."""
    from tensorboardX.record_writer import masked_crc32c  # noqa: PLC0415

    content: bytes = event.SerializeToString()
    length = struct.pack("<Q", len(content))
    sums = (struct.pack("<I", masked_crc32c(each)) for each in (length, content))
    return length + next(sums) + content + next(sums)
