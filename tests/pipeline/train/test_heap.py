"""What is freed stays with the process, counted in pages that the kernel has to hand out again."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

STEPS = """
import sys
from resource import RUSAGE_SELF, getrusage
from pipeline.train.heap import keep_heap

def step():
    blocks = [bytearray(5_000_000 + 1_000_000 * n) for n in range(8)]

if sys.argv[1] == "kept":
    keep_heap()
for _ in range(3):
    step()
before = getrusage(RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(getrusage(RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    """Pages that five steps of 68 MB fault in."""
    return int(subprocess.check_output([sys.executable, "-c", STEPS, how], text=True))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_steps_use_the_same_memory_again() -> None:
    pages = 5 * 68_000_000 // 4096
    assert faults("kept") < pages / 50
    assert faults("given back") > pages / 5
