"""Rows that went are taken out of what is remembered, as they were counted. Shapes: N rows of a file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.clusterer import NOISE
from models.increment import scaled
from pipeline.cluster.label import Gathered, stats_of
from pipeline.cluster.memory import NO_ROWS
from pipeline.cluster.rows import row_hashes
from pipeline.recluster.rows import index_of, only
from pipeline.recluster.work import Work
from pipeline.tables.samples import SampleFile
from pipeline.tables.schema import TableError


@dataclass(frozen=True)
class Departed:
    """Rows that went."""

    row_N: Tensor  # int64, their hashes, as far as their files are still there to tell
    rows: int
    lost: dict[int, float]  # cluster -> share of its rows


def depart(work: Work, gathered: Gathered) -> Departed:
    """Subtract rows that went from what is gathered, unless what is remembered is without them already.

    Rows that fade do so by the file that they are in: where a file was written anew, all rows of the old one are
    subtracted, and those of the new one, which `arrive` has added, count whole from now on.
    """
    gone, counts = [], dict[int, int]()
    for file in work.delta.removed:
        mask_N = work.delta.gone(file)
        labels = work.clustering.read_assignments(work.before, file, columns=["cluster", "component"])
        for cluster, rows in zip(
            *(each.tolist() for each in np.unique(labels["cluster"].to_numpy()[mask_N], return_counts=True)),
            strict=True,
        ):
            counts[cluster] = counts.get(cluster, 0) + rows
        gone.append(_hashes(work, file, mask_N))
        if work.apart:
            _subtract(work, gathered, (file, mask_N), labels["component"].to_numpy())
    before = {row["cluster"]: row["size"] for row in work.clustering.clusters(work.before).to_pylist()}
    lost = {cluster: rows / max(before.get(cluster, 0), 1) for cluster, rows in counts.items() if cluster != NOISE}
    return Departed(torch.cat([NO_ROWS, *gone]), sum(counts.values()), lost)


def _subtract(work: Work, gathered: Gathered, which: tuple[SampleFile, np.ndarray], stored_N: np.ndarray) -> None:
    file, gone_N = which
    model, mask_N = work.labeller.model, torch.from_numpy(np.ones_like(gone_N) if work.folds else gone_N)
    if not bool(mask_N.any()):
        return
    rows = only(work.rows(file), mask_N)
    component_N = index_of(model.component_K, stored_N)[mask_N]
    gathered.stats += scaled(stats_of(model, rows, component_N), -work.weight(file))


def _hashes(work: Work, file: SampleFile, mask_N: np.ndarray) -> Tensor:
    try:
        names = work.table.samples.read(file, columns=["key", "shard"])
    except TableError:  # no longer there: what is remembered was counted anew without its rows
        return NO_ROWS
    return torch.from_numpy(np.array(row_hashes(names)))[torch.from_numpy(mask_N)]
