"""Rows that came are labelled by the model as it is, and rows that went are taken out of the statistics.

Shapes: N rows, K components.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from models.clusterer import NOISE, Assignment
from models.increment import scaled
from pipeline.cluster.label import Gathered, Rows, assignment_table, read_rows, stats_of
from pipeline.cluster.tally import Tally
from pipeline.recluster.work import Arrived, Work
from pipeline.tables.samples import SampleFile
from pipeline.tables.schema import ASSIGNMENTS

_TALLIED = ["key", "shard", "cluster", "score"]


def arrive(work: Work) -> Arrived:
    """Label what came and count what went. Reads the files that were added and removed, and no others."""
    gathered = Gathered(work.labeller.model, work.memory)
    written, tally, arrived = [], Tally(), 0
    for done, file in enumerate(work.delta.added):
        table, fresh = _label(work, file, gathered)
        tally.add(table)
        arrived += fresh
        written.append((file, work.clustering.write_assignments(table, file)))
        work.on_progress("assign", done + 1, len(work.delta.added))
    gone_N, lost = _take_out(work, gathered)
    part = gathered.part
    part = replace(part, rows=arrived - len(gone_N), gone_N=gone_N, arrivals=work.memory.arrivals + part.arrivals)
    return Arrived(written, _tally(work, tally), part, arrived, len(gone_N), lost)


def _label(work: Work, file: SampleFile, gathered: Gathered) -> tuple[pa.Table, int]:
    """Assignments of one file, and how many of its rows were not there before under another file's name."""
    rows = read_rows(work.table.samples, file, work.labeller)
    work.reading.add(file)
    found = work.labeller.assign(rows.x_ND)
    table = assignment_table(rows.names, found, work.labeller.model)
    labels = work.delta.carried(file)
    fresh_N = torch.tensor([label is None for label in labels])
    gathered.add(_only(rows, fresh_N), Assignment(*(value[fresh_N] for value in vars(found).values())))
    return _overlaid(table, labels), int(fresh_N.sum())


def _only(rows: Rows, mask_N: Tensor) -> Rows:
    if bool(mask_N.all()):
        return rows
    return Rows(rows.names.filter(pa.array(mask_N.numpy())), rows.x_ND[mask_N], rows.row_N[mask_N])


def _overlaid(table: pa.Table, labels: list[dict[str, Any] | None]) -> pa.Table:
    """The table with the rows that are known as they were."""
    if all(label is None for label in labels):
        return table
    rows = [new if old is None else {**new, **old} for new, old in zip(table.to_pylist(), labels, strict=True)]
    return pa.Table.from_pylist(rows, schema=ASSIGNMENTS)


def _take_out(work: Work, gathered: Gathered) -> tuple[Tensor, dict[int, float]]:
    """Subtract rows that went, as they were counted; their hashes, and the share of each component that they were."""
    model, weight = work.labeller.model, work.weight() if work.delta.removed else None
    gone, left = [], torch.zeros(len(model.component_K), dtype=torch.float64)
    for file in work.delta.removed:
        mask_N = torch.from_numpy(work.delta.gone(file))
        if weight is None or not bool(mask_N.any()):
            continue
        rows = _only(read_rows(work.table.samples, file, work.labeller), mask_N)
        work.reading.add(file)
        stored = work.clustering.read_assignments(work.before, file, columns=["component"])
        component_N = index_of(model.component_K, stored["component"].to_numpy())[mask_N]
        gathered.stats += scaled(stats_of(model, rows, component_N), -weight(file))
        left += torch.bincount(component_N, minlength=len(left)).double() * weight(file)
        gone.append(rows.row_N)
    if not gone:
        return torch.empty(0, dtype=torch.int64), {}
    count_K = _counts(work)
    shares = (left / count_K.clamp_min(1)).clamp_max(1)
    return torch.cat(gone), {int(model.component_K[k]): float(shares[k]) for k in torch.nonzero(left).flatten()}


def _counts(work: Work) -> Tensor:
    """Rows of each component as they count after fading."""
    tensors = work.memory.stats().tensors()
    return tensors["count_K"].cpu() * work.decay


def index_of(component_K: Tensor, stored_N: np.ndarray) -> Tensor:
    """Index in the model of stable component ids; NOISE for one that the model lacks."""
    order = torch.argsort(component_K)
    sorted_K, wanted_N = component_K[order], torch.from_numpy(np.array(stored_N, np.int64))
    place_N = torch.searchsorted(sorted_K, wanted_N).clamp_max(len(sorted_K) - 1)
    return torch.where(sorted_K[place_N] == wanted_N, order[place_N], NOISE)


def _tally(work: Work, added: Tally) -> Tally:
    """Sizes and medoids of all rows. Without reading any label again, unless files went."""
    delta = work.delta
    if not delta.removed:
        whole = Tally.of_clusters(work.clustering.clusters(work.before).to_pylist())
    else:
        whole = Tally()
        for file in delta.same:
            whole.add(work.clustering.read_assignments(work.before, file, columns=_TALLIED))
    whole.merge(added)
    return whole
