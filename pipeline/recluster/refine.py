"""A refinement: rows at hand settle, the model changes where they call for it, and labels follow everywhere.

What a row not at hand is labelled changes only by rule (its component has an heir, or belongs to another cluster now),
so files that hold no such row are not written. Shapes: N rows of a file, H rows at hand.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from models.clusterer import Assignment, Clusterer, Stats
from models.dpm.counting import EMPTY
from models.dpm.mixture import DPM, DPMStats
from models.increment import Refinable, folded, scaled
from pipeline.cluster.fitted import assigned
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
    whole = work.memory.with_more(arrived.part, work.decay)
    at_hand = hold(work, arrived, decision)
    found = model.refined(at_hand.held, whole.stats, whole.sample.x_MD, rng)
    refined = Refined(found.model, found.stats, found.moves)
    anew = _labelled(refined, at_hand, found.component_N)
    names = Names.of(model, found.model, dict(found.heir))
    _settle(work, arrived, refined, names, (anew, found.unsettled))
    heir = _remade(refined, anew, bool(found.unsettled))
    for component, living in found.heir.items():
        heir[component] = heir.get(living, living)
    relabel(work, arrived, refined, Names.of(model, refined.model, heir), anew)
    return refined


def _remade(refined: Refined, anew: dict[str, Anew], unsettled: bool) -> dict[int, int]:
    """One M-step more where rows moved in numbers; heirs of components that no row counts in since."""
    old, stats = refined.model, refined.stats
    if not isinstance(old, DPM) or not isinstance(stats, DPMStats):
        return {}
    living = torch.nonzero(stats.sets.count_K > EMPTY).flatten()
    if not unsettled and len(living) == len(stats.sets):
        return {}
    new = old.mstep(stats)
    means_KD, gone = old.population.clusters.mean_KD, torch.nonzero(stats.sets.count_K <= EMPTY).flatten()
    near = torch.cdist(means_KD[gone], means_KD[living]).argmin(dim=1)
    heirs = dict(zip(old.component_K[gone].tolist(), old.component_K[living][near].tolist(), strict=True))
    refined.model, refined.stats = new, DPMStats(stats.sets[living], stats.runner_up_K[living])
    for path, each in anew.items():
        stable = [heirs.get(component, component) for component in old.component_K[each.found.component_N].tolist()]
        component_n = index_of(new.component_K, np.array(stable, np.int64))
        found = replace(each.found, component_N=component_n, cluster_N=new.id_K[component_n])
        anew[path] = Anew(each.row_n, found)
    return heirs


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
    found = assigned(model, held.x_ND)
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


def _settle(
    work: Work, arrived: Arrived, refined: Refined, names: Names, which: tuple[dict[str, Anew], tuple[int, ...]]
) -> None:
    """Read the rows, not at hand, of components that were split beneath them, and label them anew."""
    anew, unsettled = which
    if not unsettled:
        return
    model, wanted = refined.model, np.array(unsettled, np.int64)
    files: list[tuple[SampleFile, np.ndarray, np.ndarray]] = []
    for file in [*work.delta.same, *(file for file, _ in arrived.written)]:
        component_N, mask_N = _wanted(work, names, file, wanted)
        if file.path in anew:
            mask_N[anew[file.path].row_n] = False
        if mask_N.any():
            files.append((file, np.flatnonzero(mask_N), component_N))
    rows, all_rows = sum(len(row_n) for _, row_n, _ in files), sum(file.rows for file in work.delta.files)
    if rows > work.config.settle_fraction * all_rows:
        raise TooMuchError(f"clusters were split that {rows:,} of {all_rows:,} rows are in")
    for done, (file, row_n, component_N) in enumerate(files):
        read, index_n = work.rows(file), torch.from_numpy(row_n)
        found = assigned(model, read.x_ND[index_n])
        weight_n = torch.full((len(row_n),), work.weight(file), dtype=torch.float64)
        before_n = index_of(model.component_K, component_N[row_n])
        refined.stats = _moved(model, refined.stats, read.x_ND[index_n], (before_n, found.component_N, weight_n))
        anew[file.path] = _both(anew.get(file.path), Anew(row_n, found))
        work.on_progress("label again", done + 1, len(files))


def _wanted(work: Work, names: Names, file: SampleFile, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Components of a file's rows as they are called now, and which of them are wanted; rows that arrived are not."""
    added = {each.path for each in work.delta.added}
    stored_N = work.delta.earlier(file, "component") if file.path in added else work.components(file)
    component_N, _ = names.after(stored_N)
    mask_N = np.isin(component_N, wanted)
    return component_N, mask_N & ~work.delta.fresh(file) if file.path in added else mask_N


def _both(one: Anew | None, other: Anew) -> Anew:
    if one is None:
        return other
    pairs = zip(vars(one.found).values(), vars(other.found).values(), strict=True)
    return Anew(np.concatenate([one.row_n, other.row_n]), Assignment(*(torch.cat(pair) for pair in pairs)))
