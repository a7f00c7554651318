"""Where the rows of a fit come from, and which of them a worker holds.

Shapes: N rows, D dimensions.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor

from models.errors import ShoalError
from pipeline.tables.place import Place
from pipeline.train.checkpoints import CheckpointStore
from pipeline.train.world import World


@dataclass(frozen=True)
class Rows:
    """float32 rows and their stable hashes, in canonical order."""

    x_ND: np.ndarray
    row_N: np.ndarray  # int64

    def __len__(self) -> int:
        return len(self.x_ND)

    def __getitem__(self, part: slice) -> Rows:
        return Rows(self.x_ND[part], self.row_N[part])

    def blocks(self, block_rows: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Consecutive blocks as tensors that share the rows' memory."""
        for begin in range(0, len(self), block_rows):
            part = self[begin : begin + block_rows]
            yield as_tensor(part.x_ND), as_tensor(part.row_N)


class RowSource(Protocol):
    """Rows that any worker can read by itself. Picklable: it says where rows are and does not hold them."""

    @property
    def rows(self) -> int:
        """N."""
        ...

    @property
    def dim(self) -> int:
        """D."""
        ...

    def fingerprint(self) -> str:
        """Names the rows: others have another."""
        ...

    def read(self, begin: int, end: int) -> Rows:
        """Rows `begin` to `end` of the canonical order; memory-mapped where they are many."""
        ...

    def saved(self, folder: Path) -> SavedRows:
        """The same rows as files in `folder`, made where it is missing."""
        ...


class HeldRows:
    """Rows in this process's memory. For fits in process: Ray would send them through its object store."""

    def __init__(self, x_ND: np.ndarray, row_N: np.ndarray) -> None:
        self._rows = Rows(x_ND, row_N)

    @property
    def rows(self) -> int:
        """N."""
        return len(self._rows)

    @property
    def dim(self) -> int:
        """D."""
        return int(self._rows.x_ND.shape[1])

    def fingerprint(self) -> str:
        """Of every byte: about a second per GB."""
        digest = hashlib.sha256(str(self._rows.x_ND.shape).encode())
        for part in (self._rows.x_ND, self._rows.row_N):
            digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()

    def read(self, begin: int, end: int) -> Rows:
        """A view."""
        return self._rows[begin:end]

    def saved(self, folder: Path) -> SavedRows:
        """Written at once."""
        folder.mkdir(parents=True, exist_ok=True)
        found = SavedRows(folder)
        np.save(found.x_ND, self._rows.x_ND)
        np.save(found.row_N, self._rows.row_N)
        return found


@dataclass(frozen=True)
class SavedRows:
    """Rows in two .npy files of a folder. They are mapped: workers of one machine share the pages that they use."""

    folder: Path

    @property
    def x_ND(self) -> Path:
        """float32, (N, D)."""
        return self.folder / "x_ND.npy"

    @property
    def row_N(self) -> Path:
        """int64, (N,)."""
        return self.folder / "row_N.npy"

    @property
    def rows(self) -> int:
        """N."""
        return len(self._open())

    @property
    def dim(self) -> int:
        """D."""
        return int(self._open().x_ND.shape[1])

    def fingerprint(self) -> str:
        """Of every byte, as that of rows that are held."""
        rows = self._open()
        return HeldRows(rows.x_ND, rows.row_N).fingerprint()

    def read(self, begin: int, end: int) -> Rows:
        """A view of the files."""
        return self._open()[begin:end]

    def saved(self, folder: Path) -> SavedRows:
        """They are."""
        return self

    def _open(self) -> Rows:
        # Copy-on-write: torch has no read-only tensors, and nobody writes.
        x_ND, row_N = (np.load(path, mmap_mode="c", allow_pickle=False) for path in (self.x_ND, self.row_N))
        return Rows(x_ND, row_N)


def all_rows(source: RowSource, world: World) -> Rows:
    """Every row, for every worker, and once per machine: gradient batches are drawn from all of them.

    Files made for this are already unlinked when this returns, so nothing is left behind however the processes end.
    """
    if world.size == 1 or isinstance(source, SavedRows):
        return source.read(0, source.rows)
    name = world.share(f"shoal-{uuid4().hex}".encode()).decode()
    folder = Path(tempfile.gettempdir()) / name
    if world.leads_machine:
        source.saved(folder)
    world.barrier()
    rows = SavedRows(folder).read(0, source.rows)
    world.barrier()
    if world.leads_machine:
        shutil.rmtree(folder, ignore_errors=True)
    return rows


@contextmanager
def kept(store: CheckpointStore | None, source: RowSource) -> Iterator[tuple[CheckpointStore, RowSource]]:
    """Store and rows where other processes find them: rows in memory are written beside the checkpoints.

    Without a store all of it is temporary, and this machine's.
    """
    with ExitStack() as stack:
        if store is None:
            temporary = stack.enter_context(tempfile.TemporaryDirectory(prefix="shoal-"))
            store = CheckpointStore(Path(temporary) / "checkpoints", "temporary")
        if isinstance(source, HeldRows):
            folder = _on_disk(store.folder) / "rows"
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            source = source.saved(folder)
        yield store, source


def _on_disk(folder: Place) -> Path:
    if isinstance(folder, Path):
        return folder
    raise ShoalError(
        f"Workers map rows that are in memory, but {folder} is no disk; give a local folder for checkpoints."
    )


def as_tensor(rows: np.ndarray) -> Tensor:
    """A tensor over the same memory; read-only rows are copied, since torch has no read-only tensors."""
    return torch.from_numpy(rows if rows.flags.writeable else np.array(rows))


def span(rows: int, block_rows: int, rank: int, size: int) -> tuple[int, int]:
    """The rows of worker `rank`: consecutive whole blocks, as many as the others' up to one; perhaps none."""
    blocks = -(-rows // block_rows)
    begin, end = (blocks * worker // size * block_rows for worker in (rank, rank + 1))
    return min(begin, rows), min(end, rows)
