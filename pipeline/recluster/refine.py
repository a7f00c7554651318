"""A refinement: rows at hand settle, the model changes where they call for it, and labels follow everywhere.

What a row not at hand is labelled changes only by rule (its component has an heir, or belongs to another cluster now),
so files that hold no such row are not written. Shapes: N rows of a file, H rows at hand.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from models.clusterer import NOISE, Assignment, Clusterer, Move, Stats
from models.identity import Overlap, overlap, summed
from models.increment import Refinable, folded, scaled
from pipeline.cluster.label import assignment_table, read_rows
from pipeline.cluster.tally import Tally
from pipeline.recluster.arrive import index_of
from pipeline.recluster.hold import AtHand, Places, hold
from pipeline.recluster.work import Arrived, Decision, Work
from pipeline.tables.delta import WrittenFile
from pipeline.tables.samples import SampleFile
from pipeline.tables.schema import ASSIGNMENTS


class TooMuchError(Exception):
    """So many rows would have to be labelled anew that a full fit is due; the message says how many."""


@dataclass
class Refined:
    """The model after a refinement, and everything that follows from it."""

    model: Clusterer
    stats: Stats  # of all rows
    moves: tuple[Move, ...]
    files: list[WrittenFile] = field(default_factory=list)  # of assignments that changed, and of the arrivals
    kept: int = 0  # files of assignments that did not
    tally: Tally = field(default_factory=Tally)
    shared: list[Overlap] = field(default_factory=list)

    @property
    def overlap(self) -> Overlap:
        """Rows by cluster before and now."""
        return summed(self.shared)


@dataclass(frozen=True)
class _Anew:
    """Rows of one file that were read, and what the new model says of them."""

    row_n: np.ndarray
    found: Assignment


def refine(work: Work, arrived: Arrived, decision: Decision, rng: torch.Generator) -> Refined:
    """Refine the model of `work` and label what that changes. Raises TooMuchError where splits concern too many rows.

    Costs a pass over the rows at hand per sweep, one M-step, a scan of all labels, and the reading of rows whose
    component was split beneath them: at most `settle_fraction` of all rows, and each file once.
    """
    model = work.labeller.model
    assert isinstance(model, Refinable)  # noqa: S101  the caller asks for a full fit of others
    stats = folded(work.memory.stats(), work.decay, arrived.part.stats)
    at_hand = hold(work, arrived, decision)
    sample = work.memory.sample().without(arrived.part.gone_N) + arrived.part.sample
    found = model.refined(at_hand.held, stats, sample.x_MD, rng)
    refined = Refined(found.model, found.stats, found.moves)
    anew = _labelled(refined, at_hand, found.component_N)
    names = _Names.of(model, found.model, dict(found.heir))
    _settle(work, refined, names, anew, found.unsettled)
    _relabel(work, arrived, refined, names, anew)
    return refined


def _labelled(refined: Refined, at_hand: AtHand, component_H: Tensor) -> dict[str, _Anew]:
    """Rows at hand as the new model labels them, and counted so: their labels are those of any row like them."""
    held, model = at_hand.held, refined.model
    found = _assign(model, held.x_ND)
    if model.hard:
        moved = torch.nonzero(found.component_N != component_H).flatten()
        rows, weight = held.x_ND[moved], held.weight_N[moved]
        refined.stats = _moved(model, refined.stats, rows, (component_H[moved], found.component_N[moved], weight))
    return {path: _slice(places, found) for path, places in at_hand.places.items()}


def _slice(places: Places, found: Assignment) -> _Anew:
    part = slice(places.begin, places.begin + len(places.row_n))
    return _Anew(places.row_n, Assignment(*(value[part] for value in vars(found).values())))


def _moved(model: Clusterer, stats: Stats, x_ND: Tensor, move: tuple[Tensor, Tensor, Tensor]) -> Stats:
    """Statistics after rows of these weights left components for others."""
    before_N, after_N, weight_N = move
    if len(x_ND) == 0:
        return stats
    return stats + scaled(model.counted(x_ND, before_N, weight_N), -1.0) + model.counted(x_ND, after_N, weight_N)


@dataclass(frozen=True)
class _Names:
    """What becomes of the label of a row that was not read."""

    before: Tensor  # stable component ids, ascending
    component: Tensor  # stable id of each one's heir, or itself
    cluster: Tensor  # the cluster that this belongs to now

    @staticmethod
    def of(old: Clusterer, new: Clusterer, heir: dict[int, int]) -> _Names:
        before = old.component_K.sort().values
        component = torch.tensor([heir.get(each, each) for each in before.tolist()], dtype=torch.int64)
        index = index_of(new.component_K, component.numpy())
        return _Names(before, component, torch.where(index == NOISE, NOISE, new.id_K[index]))

    def after(self, stored_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Component and cluster of rows that were in these components."""
        place_N = index_of(self.before, stored_N)
        return self.component[place_N].numpy(), self.cluster[place_N].numpy()


def _settle(work: Work, refined: Refined, names: _Names, anew: dict[str, _Anew], unsettled: tuple[int, ...]) -> None:
    """Read the rows, not at hand, of components that were split beneath them, and label them anew."""
    if not unsettled:
        return
    weight, model = work.weight(), refined.model
    wanted = np.array(unsettled, np.int64)
    files: list[tuple[SampleFile, np.ndarray, np.ndarray]] = []
    for file in work.delta.same:
        stored_N = work.clustering.read_assignments(work.before, file, columns=["component"])["component"].to_numpy()
        component_N, _ = names.after(stored_N)
        mask_N = np.isin(component_N, wanted)
        if file.path in anew:
            mask_N[anew[file.path].row_n] = False
        if mask_N.any():
            files.append((file, np.flatnonzero(mask_N), component_N))
    rows, all_rows = sum(len(row_n) for _, row_n, _ in files), sum(file.rows for file in work.delta.files)
    if rows > work.config.settle_fraction * all_rows:
        raise TooMuchError(f"clusters were split that {rows:,} of {all_rows:,} rows are in")
    for done, (file, row_n, component_N) in enumerate(files):
        read = read_rows(work.table.samples, file, work.labeller)
        work.reading.add(file)
        index_n = torch.from_numpy(row_n)
        found = _assign(model, read.x_ND[index_n])
        weight_n = torch.full((len(row_n),), weight(file), dtype=torch.float64)
        before_n = index_of(model.component_K, component_N[row_n])
        refined.stats = _moved(model, refined.stats, read.x_ND[index_n], (before_n, found.component_N, weight_n))
        anew[file.path] = _both(anew.get(file.path), _Anew(row_n, found))
        work.on_progress("label again", done + 1, len(files))


def _both(one: _Anew | None, other: _Anew) -> _Anew:
    if one is None:
        return other
    pairs = zip(vars(one.found).values(), vars(other.found).values(), strict=True)
    return _Anew(np.concatenate([one.row_n, other.row_n]), Assignment(*(torch.cat(pair) for pair in pairs)))


def _relabel(work: Work, arrived: Arrived, refined: Refined, names: _Names, anew: dict[str, _Anew]) -> None:
    """Every file's labels as they are now: written where a row changed its cluster or component."""
    files = [(file, None) for file in work.delta.same] + [(file, written) for file, written in arrived.written]
    for done, (file, written) in enumerate(files):
        old = (
            work.clustering.read_assignments(work.before, file)
            if written is None
            else work.clustering.read_written(written)
        )
        new = _renewed(old, refined.model, names, anew.get(file.path))
        was_N, is_N = old["cluster"].to_numpy(), new["cluster"].to_numpy()
        refined.shared.append(overlap(was_N if written is None else _before(work, file), is_N))
        refined.tally.add(new)
        same = np.array_equal(was_N, is_N) and old["component"].equals(new["component"])
        if same and written is None:
            refined.kept += 1
        elif same and written is not None and new.equals(old):
            refined.files.append(written)
        else:
            refined.files.append(work.clustering.write_assignments(new, file))
            if written is not None:
                work.clustering.discard_assignments([written])
        work.on_progress("relabel", done + 1, len(files))


def _before(work: Work, file: SampleFile) -> np.ndarray:
    """Clusters before of the rows of an added file: none, but for rows that were in another file."""
    labels = work.delta.carried(file)
    return np.array([NOISE if label is None else label["cluster"] for label in labels], np.int64)


def _renewed(old: pa.Table, model: Clusterer, names: _Names, anew: _Anew | None) -> pa.Table:
    component_N, cluster_N = (np.array(each) for each in names.after(old["component"].to_numpy()))
    columns = {name: old[name] for name in ASSIGNMENTS.names}
    if anew is not None:
        labels = assignment_table(old.select(["key", "shard"]).take(pa.array(anew.row_n)), anew.found, model)
        for name in ("probability", "runner_up", "score"):
            columns[name] = _replaced(old[name], anew.row_n, labels[name])
        component_N[anew.row_n], cluster_N[anew.row_n] = labels["component"].to_numpy(), labels["cluster"].to_numpy()
    columns |= {"component": pa.array(component_N), "cluster": pa.array(cluster_N)}
    return pa.table(columns, schema=ASSIGNMENTS)


def _replaced(old: pa.ChunkedArray, row_n: np.ndarray, new: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column with the values at these rows replaced."""
    take_N = np.arange(len(old))
    take_N[row_n] = len(old) + np.arange(len(row_n))
    return pa.chunked_array([*old.chunks, *new.chunks], old.type).take(pa.array(take_N))


def _assign(model: Clusterer, x_ND: Tensor) -> Assignment:
    parts = [model.assign(x_nD) for x_nD in x_ND.split(65_536)]
    return Assignment(*(torch.cat(values) for values in zip(*(vars(part).values() for part in parts), strict=True)))
