"""A disk of a few megabytes that a test can fill to the last page."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

PAGE = 4096  # what a file on a tmpfs takes at least


@dataclass(frozen=True)
class SmallDisk:
    """A mounted tmpfs; `home` is for the test, and the filler lies beside it."""

    root: Path

    @property
    def home(self) -> Path:
        return self.root / "home"

    def fill(self, pages: int) -> None:
        """Leave room for so many pages of `PAGE` bytes, and nothing else; also while somebody is writing."""
        self.empty()
        while True:
            found = os.statvfs(self.root)
            with self._filler.open("wb") as file:
                try:
                    os.posix_fallocate(file.fileno(), 0, found.f_bavail * found.f_bsize - pages * PAGE)
                    return
                except OSError as error:  # others were faster
                    if error.errno != errno.ENOSPC:
                        raise

    def empty(self) -> None:
        """Give all room back."""
        self._filler.unlink(missing_ok=True)

    @property
    def _filler(self) -> Path:
        return self.root / "filler"


@contextmanager
def small_disk(folder: Path, megabytes: int = 32) -> Iterator[SmallDisk]:
    """Mount one at `folder`; skips the test, loudly, where that is not permitted."""
    folder.mkdir()
    options = f"size={megabytes}m,mode=0777"
    command = [shutil.which("mount") or "mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"NO SMALL DISK: `mount -t tmpfs` is refused ({mounted.stderr.strip()}); run as root, on Linux")
    try:
        disk = SmallDisk(folder)
        disk.home.mkdir()
        yield disk
    finally:
        command = [shutil.which("umount") or "umount", "--lazy", str(folder)]  # who was killed may still be going
        subprocess.run(command, check=True)
