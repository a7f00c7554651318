"""Processes as Linux shows them in /proc: who descends from whom, what they are called, what memory they took."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True)
class Process:
    """A process that lived when it was looked at."""

    pid: int
    parent: int
    title: str  # the command line; Ray's workers call themselves ray::SOMETHING
    peak_bytes: int  # most resident memory it ever had, shared pages included

    @property
    def is_worker(self) -> bool:
        """Whether it is one of Ray's workers, which run tasks and actors; its agents serve a whole node."""
        return self.title.startswith("ray::") and not self.title.endswith("Agent")


def family(pid: int) -> list[Process]:
    """The process and its descendants, by number; empty where it is gone. A zombie has no descendants and no memory."""
    living = {process.pid: process for process in _all()}
    found = [pid] if pid in living else []
    for parent in found:
        found += [process.pid for process in living.values() if process.parent == parent]
    return [living[each] for each in sorted(found)]


def _all() -> Iterator[Process]:
    for folder in PROC.iterdir():
        if folder.name.isdigit():
            process = _look(int(folder.name))
            if process is not None:
                yield process


def _look(pid: int) -> Process | None:
    """None for a process that is ending."""
    try:
        lines = (PROC / str(pid) / "status").read_text().splitlines()
        title = (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    status = dict(line.split(":", 1) for line in lines)
    kib = int(status.get("VmHWM", "0 kB").split()[0])  # kernel threads and zombies have none
    return Process(pid, int(status["PPid"]), title.strip(), kib * 1024)
