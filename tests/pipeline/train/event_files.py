"""Files of TensorBoard events, read back."""

from __future__ import annotations

import struct
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event


def events_of(folder: Path) -> list[Event]:
    """All whole records of all event files, in the order of their names."""
    found = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while len(data) >= 12:
            size = struct.unpack("<Q", data[:8])[0]  # then a checksum, the record, and its checksum
            if len(data) < 16 + size:
                break
            found.append(Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    return found
