"""A refinement: rows at hand settle, the model changes where they call for it, and labels follow everywhere.

What a row not at hand is labelled changes only by rule (its component has an heir, or belongs to another cluster now),
so files that hold no such row are not written. Shapes: N rows of a file, H rows at hand.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from models.clusterer import Assignment, Clusterer, Stats
from models.dpm.mixture import DPM
from models.increment import Refinable, folded, scaled
from pipeline.recluster.hold import AtHand, Places, hold
from pipeline.recluster.relabel import Anew, Names, Refined, relabel
from pipeline.recluster.rows import index_of
from pipeline.recluster.work import Arrived, Decision, Work
from pipeline.tables.samples import SampleFile


class TooMuchError(Exception):
    """So many rows would have to be labelled anew that a full fit is due; the message says how many."""


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
    names = Names.of(model, found.model, dict(found.heir))
    _settle(work, refined, names, anew, found.unsettled)
    if found.unsettled and isinstance(refined.model, DPM):
        refined.model = refined.model.mstep(refined.stats)  # the rows behind the parts of what was split are known now
    relabel(work, arrived, refined, names, anew)
    return refined


def stepped(work: Work, arrived: Arrived, rng: torch.Generator) -> Refined:
    """One M-step without the rows that went; labels stay. For what is trained, whose networks stay as they are."""
    model = work.labeller.model
    stats = folded(work.memory.stats(), work.decay, arrived.part.stats)
    refined = Refined(model.maximize(stats, rng).model, stats, ())
    relabel(work, arrived, refined, Names.of(model, refined.model, {}), {})
    return refined


def _labelled(refined: Refined, at_hand: AtHand, component_H: Tensor) -> dict[str, Anew]:
    """Rows at hand as the new model labels them, and counted so: their labels are those of any row like them."""
    held, model = at_hand.held, refined.model
    found = _assign(model, held.x_ND)
    if model.hard:
        moved = torch.nonzero(found.component_N != component_H).flatten()
        rows, weight = held.x_ND[moved], held.weight_N[moved]
        refined.stats = _moved(model, refined.stats, rows, (component_H[moved], found.component_N[moved], weight))
    return {path: _slice(places, found) for path, places in at_hand.places.items()}


def _slice(places: Places, found: Assignment) -> Anew:
    part = slice(places.begin, places.begin + len(places.row_n))
    return Anew(places.row_n, Assignment(*(value[part] for value in vars(found).values())))


def _moved(model: Clusterer, stats: Stats, x_ND: Tensor, move: tuple[Tensor, Tensor, Tensor]) -> Stats:
    """Statistics after rows of these weights left components for others."""
    before_N, after_N, weight_N = move
    if len(x_ND) == 0:
        return stats
    return stats + scaled(model.counted(x_ND, before_N, weight_N), -1.0) + model.counted(x_ND, after_N, weight_N)


def _settle(work: Work, refined: Refined, names: Names, anew: dict[str, Anew], unsettled: tuple[int, ...]) -> None:
    """Read the rows, not at hand, of components that were split beneath them, and label them anew."""
    if not unsettled:
        return
    model = refined.model
    wanted = np.array(unsettled, np.int64)
    files: list[tuple[SampleFile, np.ndarray, np.ndarray]] = []
    for file in work.delta.same:
        stored_N = work.components(file)
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
        read = work.rows(file)
        index_n = torch.from_numpy(row_n)
        found = _assign(model, read.x_ND[index_n])
        weight_n = torch.full((len(row_n),), work.weight(file), dtype=torch.float64)
        before_n = index_of(model.component_K, component_N[row_n])
        refined.stats = _moved(model, refined.stats, read.x_ND[index_n], (before_n, found.component_N, weight_n))
        anew[file.path] = _both(anew.get(file.path), Anew(row_n, found))
        work.on_progress("label again", done + 1, len(files))


def _both(one: Anew | None, other: Anew) -> Anew:
    if one is None:
        return other
    pairs = zip(vars(one.found).values(), vars(other.found).values(), strict=True)
    return Anew(np.concatenate([one.row_n, other.row_n]), Assignment(*(torch.cat(pair) for pair in pairs)))


def _assign(model: Clusterer, x_ND: Tensor) -> Assignment:
    parts = [model.assign(x_nD) for x_nD in x_ND.split(65_536)]
    return Assignment(*(torch.cat(values) for values in zip(*(vars(part).values() for part in parts), strict=True)))
