"""Rows that came are labelled by the model as it is, and rows that went are taken out of the statistics.

Shapes: N rows, K components.
"""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import torch

from models.clusterer import Assignment
from pipeline.cluster.label import Gathered, assignment_table
from pipeline.cluster.tally import Tally, counted
from pipeline.recluster.depart import depart
from pipeline.recluster.rows import index_of, only
from pipeline.recluster.work import Arrived, Work
from pipeline.tables.samples import SampleFile


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
    gone = depart(work, gathered)
    counted = arrived - (gone.rows if work.apart else 0)
    arrivals = work.memory.arrivals + gathered.part.arrivals
    part = replace(gathered.part, rows=counted, gone_N=gone.row_N, arrivals=arrivals)
    return Arrived(written, _tally(work, tally), part, arrived, gone.rows, gone.lost)


def _label(work: Work, file: SampleFile, gathered: Gathered) -> tuple[pa.Table, int]:
    """Assignments of one file, and how many of its rows were not there before under another file's name."""
    rows = work.rows(file, keep=True)
    found = work.labeller.assign(rows.x_ND)
    table = assignment_table(rows.names, found, work.labeller.model)
    fresh_N = torch.from_numpy(work.delta.fresh(file))
    gathered.add(only(rows, fresh_N), Assignment(*(value[fresh_N] for value in vars(found).values())))
    if work.folds and work.apart and not bool(fresh_N.all()):  # `depart` takes the rows of the old file out, faded
        component_N = index_of(work.labeller.model.component_K, work.delta.earlier(file, "component"))
        gathered.count(only(rows, ~fresh_N), component_N[~fresh_N])
    return work.delta.overlaid(file, table), int(fresh_N.sum())


def _tally(work: Work, added: Tally) -> Tally:
    """Sizes and medoids of all rows. Without reading any label again, unless files went."""
    delta = work.delta
    if not delta.removed:
        whole = Tally.of_clusters(work.clustering.clusters(work.before).to_pylist())
    else:
        whole = counted(work.clustering, work.before, delta.same)
    whole.merge(added)
    return whole
