"""Which rows a refinement has at hand: all that arrived, and old rows of the clusters that it touches, within a bound.

Shapes: N rows of a file, H rows at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.increment import Held
from pipeline.recluster.rows import index_of
from pipeline.recluster.work import Arrived, Decision, Work
from pipeline.tables.samples import SampleFile


@dataclass(frozen=True)
class Places:
    """Where rows at hand come from."""

    file: SampleFile
    row_n: np.ndarray  # indices of rows in the file
    begin: int  # of these rows among all at hand


@dataclass(frozen=True)
class AtHand:
    """Rows at hand, and where each belongs."""

    held: Held
    places: dict[str, Places]  # by the path of the samples file


def hold(work: Work, arrived: Arrived, decision: Decision) -> AtHand:
    """Read what arrived, and of older files those with most rows of touched clusters, newest arrivals first.

    At most max(`reread_rows`, `reread_fraction` of all) old rows are read, whole files at a time and one at least.
    """
    parts: list[tuple[SampleFile, np.ndarray, Held]] = []
    for file, written in arrived.written:
        stored = work.clustering.read_written(written, columns=["component"])["component"].to_numpy()
        row_n = np.flatnonzero(work.delta.fresh(file))
        if len(row_n):
            parts.append(_part(work, file, row_n, stored[row_n], (1.0, True)))
    for file, row_n, stored_n, recent in _chosen(work, decision):
        parts.append(_part(work, file, row_n, stored_n, (work.weight(file), recent)))
        work.on_progress("read again", len(parts), None)
    places, begin = {}, 0
    for file, row_n, _ in parts:
        places[file.path] = Places(file, row_n, begin)
        begin += len(row_n)
    return AtHand(_joined([held for _, _, held in parts], work.labeller.model.dim), places)


def _chosen(work: Work, decision: Decision) -> list[tuple[SampleFile, np.ndarray, np.ndarray, bool]]:
    """Files to be read again: their rows of interest, the components of these, and whether they came since the last
    change of the model.
    """
    if not decision.touched and not decision.drift.overall.is_novel:
        return []
    model, touched = work.labeller.model, np.array(decision.touched, np.int64)
    settled = {file.path for file in work.table.samples.files(version=work.memory.made)}
    found = []
    for order, file in enumerate(work.delta.same):
        recent = file.path not in settled
        component_N = work.components(file)
        cluster_N = model.id_K[index_of(model.component_K, component_N)].numpy()
        wanted_N = np.isin(cluster_N, touched)
        if recent:
            scores = work.clustering.read_assignments(work.before, file, columns=["score"])["score"]
            score_N = _tensor(scores.to_numpy())
            wanted_N = wanted_N | work.memory.reference.low(_tensor(cluster_N), score_N).numpy()
        row_n = np.flatnonzero(wanted_N)
        if len(row_n):
            stored_n = component_N[row_n]
            found.append((recent, len(row_n) / file.rows, -order, file, row_n, stored_n))
    found.sort(key=lambda each: each[:3], reverse=True)
    rows = sum(file.rows for file in work.delta.files)
    room = max(work.config.reread_rows, work.config.reread_fraction * rows)
    chosen: list[tuple[SampleFile, np.ndarray, np.ndarray, bool]] = []
    read = 0
    for recent, _, _, file, row_n, stored_n in found:
        if read + file.rows <= room or not chosen:
            chosen.append((file, row_n, stored_n, recent))
            read += file.rows
    return chosen if room > 0 else []


def _part(
    work: Work, file: SampleFile, row_n: np.ndarray, stored_n: np.ndarray, counts: tuple[float, bool]
) -> tuple[SampleFile, np.ndarray, Held]:
    rows = work.rows(file)
    index_n = torch.from_numpy(row_n)
    component_n = index_of(work.labeller.model.component_K, stored_n)
    weight_n = torch.full((len(row_n),), counts[0], dtype=torch.float64)
    new_n = torch.full((len(row_n),), counts[1])
    return file, row_n, Held(rows.x_ND[index_n], rows.row_N[index_n], component_n, weight_n, new_n)


def _joined(parts: list[Held], dim: int) -> Held:
    if not parts:
        none, real = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.float64)
        return Held(torch.empty(0, dim), none, none, real, torch.empty(0, dtype=torch.bool))

    def joined(pick: Callable[[Held], Tensor]) -> Tensor:
        return torch.cat([pick(part) for part in parts])

    return Held(
        joined(lambda part: part.x_ND),
        joined(lambda part: part.row_N),
        joined(lambda part: part.component_N),
        joined(lambda part: part.weight_N),
        joined(lambda part: part.new_N),
    )


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(values))
