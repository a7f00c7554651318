"""What a command costs: the CPU seconds and the bytes that its process and its children take and read. Linux only."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from jobs.bench.processes import PROC
from jobs.bench.speeds import running
from models.errors import ShoalError


@dataclass(frozen=True)
class Cost:
    """One run of a command, from its start to its end."""

    cpu_seconds: float  # user and system, of the process and of children that it waited for
    bytes_read: int  # by read calls of the process and its children, from files and pipes, cached or not
    wall_seconds: float


def shoal_command(*arguments: str) -> list[str]:
    """`shoal` with this interpreter."""
    return [sys.executable, "-m", "jobs", *arguments]


def cost_of(command: Sequence[str]) -> Cost:
    """Run a command to its end, what it prints left aside. Raises ShoalError where it fails."""
    began = time.perf_counter()
    with running(command) as process:
        printed = process.stdout.read() if process.stdout else ""  # to the end, lest the pipe fills up
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, but still to be seen in /proc
        bytes_read = _bytes_read(process)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise ShoalError(
            f"`shoal {' '.join(command[3:])}` ended with {process.returncode} instead of 0; its message is above, "
            f"and it printed {printed[-500:]!r}."
        )
    return Cost(usage.ru_utime + usage.ru_stime, bytes_read, time.perf_counter() - began)


def _bytes_read(process: subprocess.Popen[str]) -> int:
    """All that read calls returned, as the kernel counts them; memory-mapped pages are not among them."""
    lines = (PROC / str(process.pid) / "io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])
