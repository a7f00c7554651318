"""What one sweep does to the clusters, given the moments of their rows: deaths, splits, merges, new parameters.

Shapes: K clusters before the sweep, J of them with a split on trial, P merge candidates. Costs O(K D^3), sees no row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.clusterer import Move
from models.dpm.agglomerate import agglomerate
from models.dpm.concentration import likeliest_concentration, sample_concentration
from models.dpm.config import DPMConfig
from models.dpm.deaths import deaths
from models.dpm.moves import (
    MergeProposals,
    cluster_weight,
    disjoint_pairs,
    joint_of,
    log_split_ratio,
    merge_proposals,
    neighbor_pairs,
)
from models.dpm.population import Entry, Population, Progress, Roster
from models.dpm.prior import fitted_prior
from models.moments import Moments

_DRIFT = 0.05  # a cluster whose size has changed by this fraction since its axes were tried deserves a new trial
_HOPELESS = 1.0  # nats per row that halves cost; a cloud cut in two costs or gains some tenths
_LEAST_TRIALS, _TRIAL_FLOATS = 64, 2**23  # at a time: 64 MB of second moments
_REFIT = 0.02  # the prior is fitted again when the number of clusters has changed by this fraction


@dataclass(frozen=True)
class Sums:
    """What the rows leave behind: Moments of K clusters and of their J trials' second halves, and the cost of a death.

    Set k < K holds cluster k (its first half alone where a split is on trial), set K + j the second half of trial j.
    `runner_up_K` sums, over the rows of a cluster, the log joint density of each row's second best cluster.
    """

    sets: Moments
    runner_up_K: Tensor


@dataclass(frozen=True)
class _Free:
    """Clusters that may merge, and with which: index of each among all, Moments, proposals."""

    index: Tensor
    clusters: Moments
    proposals: MergeProposals


@dataclass(frozen=True)
class _Sweep:
    """One sweep's view of the clusters that stay."""

    config: DPMConfig
    old: Population
    living_K: Tensor  # bool
    first: Moments  # (J)
    second: Moments  # (J)
    ratio_J: Tensor  # log H of the split of each trial
    whole: Moments
    weight_K: Tensor
    rng: torch.Generator
    over: bool  # the search has ended: proposals are still recorded, none is accepted

    @property
    def hopeless_J(self) -> Tensor:
        """Trials so far from a split that no better halves would change it: as many parameters for so few rows."""
        rows_J = self.first.count_K + self.second.count_K
        return (self.ratio_J < -_HOPELESS * rows_J) & self.ratio_J.isfinite()

    def accepts(self, log_ratio_P: Tensor) -> Tensor:
        """Greedy: H > 1. Metropolis: with probability min(1, H)."""
        if self.over:
            return torch.zeros_like(log_ratio_P, dtype=torch.bool)
        if not self.config.metropolis:
            return log_ratio_P > 0
        return torch.rand(len(log_ratio_P), generator=self.rng, dtype=torch.float64).log() < log_ratio_P

    def splits(self) -> tuple[list[int], list[Move]]:
        """Which trials end in a split, and every split proposed: those whose subclusters have had time to settle."""
        old = self.old
        ratio_J = self.ratio_J
        least_J = torch.minimum(self.first.count_K, self.second.count_K)
        ripe_J = ((old.age_J + 1 >= self.config.patience) | self.hopeless_J) & self.living_K[old.trial_J]
        split_J = ripe_J & (least_J >= self.config.min_size) & self.accepts(ratio_J)
        moves, next_id = [], old.next_id
        for j in torch.nonzero(ripe_J).flatten().tolist():
            child = (next_id,) if split_J[j] else ()
            next_id += len(child)
            halves = f"halves of {int(self.first.count_K[j])} and {int(self.second.count_K[j])} rows"
            why = f"{halves}: fewer than min_size {self.config.min_size}"
            if least_J[j] >= self.config.min_size:
                verdict = self._verdict(float(ratio_J[j]), bool(split_J[j]), "likelier apart", "likelier together")
                why = f"{halves} are {verdict}"
            ids = (int(old.id_K[old.trial_J[j]]), *child)
            moves.append(Move("split", ids, float(ratio_J[j]), bool(split_J[j]), why))
        return torch.nonzero(split_J).flatten().tolist(), moves

    def _verdict(self, log_ratio: float, accepted: bool, above: str, below: str) -> str:
        """What the ratio says and, where the outcome is another, what decided."""
        says = above if log_ratio > 0 else below
        if accepted == (log_ratio > 0):
            return says
        return f"{says}, but {'the search has ended' if self.over else 'chance decided otherwise'}"

    def free(self, index: Tensor) -> _Free:
        """The clusters of `index` (at least two) with their nearest among them."""
        old, clusters = self.old, self.whole[index]
        pair_P2 = neighbor_pairs(clusters.mean_KD, self.config.merge_neighbors)
        weight_K = self.weight_K[index]
        return _Free(index, clusters, merge_proposals(old.prior, old.concentration, clusters, pair_P2, weight_K))

    def merges(self, free: _Free) -> tuple[list[list[int]], list[Move]]:
        """Groups that merge (largest first), and every pair proposed: of free clusters with their nearest free ones."""
        old, pair_P2, ratio_P = self.old, free.proposals.pair_P2, free.proposals.ratio_P
        if self.config.metropolis or self.over:
            wanted = torch.nonzero(self.accepts(ratio_P)).flatten()
            chosen = [pair_P2[wanted[i]].tolist() for i in disjoint_pairs(pair_P2[wanted], ratio_P[wanted])]
            gains = {tuple(pair): float("nan") for pair in chosen}
        elif bool((ratio_P > 0).any()):
            groups = agglomerate(old.prior, old.concentration, free.clusters, free.proposals, only_gains=True)
            chosen = [group for group, _ in groups]
            gains = {tuple(group): gain for group, gain in groups}
        else:
            chosen, gains = [], {}
        together = {k: i for i, group in enumerate(chosen) for k in group}
        moves = []
        for (a, b), ratio in zip(pair_P2.tolist(), ratio_P.tolist(), strict=True):
            accepted = a in together and together[a] == together.get(b)
            why = self._verdict(ratio, accepted, "likelier together", "likelier apart")
            if not accepted and ratio > 0 and not self.over and not self.config.metropolis:
                why = "likelier together, but one of them has a better merge in this sweep"
            elif accepted and ratio <= 0 and not self.config.metropolis:
                why = "likelier apart, but together in a group that is likelier as one"
            moves.append(self._merge_move([int(free.index[a]), int(free.index[b])], ratio, accepted, why))
        merged = [self._ordered([int(free.index[k]) for k in group]) for group in chosen]
        for group, indices in zip(merged, chosen, strict=True):
            if len(group) > 2:
                why = f"the {len(group)} of them are likelier together"
                moves.append(self._merge_move(group, gains[tuple(indices)], True, why))
        return merged, moves

    def branches(self, free: _Free) -> tuple[list[list[int]], list[Move]]:
        """Groups of clusters that are likelier as one although no two of them are (largest first)."""
        if self.over or self.config.metropolis or len(free.index) < 3:  # a pair was tried as such
            return [], []
        merged, moves = [], []
        for group, gain in agglomerate(self.old.prior, self.old.concentration, free.clusters, free.proposals):
            merged.append(self._ordered([int(free.index[k]) for k in group]))
            why = f"the {len(group)} of them are likelier together, as a whole branch of their dendrogram"
            moves.append(self._merge_move(merged[-1], gain, True, why))
        return merged, moves

    def _ordered(self, group: list[int]) -> list[int]:
        return sorted(group, key=lambda k: -float(self.whole.count_K[k]))

    def _merge_move(self, group: list[int], gain: float, accepted: bool, why: str) -> Move:
        return Move("merge", tuple(int(self.old.id_K[k]) for k in self._ordered(group)), gain, accepted, why)


def next_population(
    config: DPMConfig, old: Population, sums: Sums, rng: torch.Generator, *, trials: bool = True
) -> tuple[Population, list[Move], float]:
    """The clusters after one sweep, every move proposed in it, and the log joint of the partition it was given.

    A cluster that its neighbours explain better (or with fewer rows than `min_size`) dies at once, and its rows go to
    the next best in the next sweep; a split's larger child and a merge's largest parent keep the id. Without `trials`
    no subclusters are proposed.
    """
    count = len(old)
    second = sums.sets[torch.arange(count, len(sums.sets))]
    first = sums.sets[old.trial_J]
    whole = wholes(sums.sets, old.trial_J, count)
    weight_K = cluster_weight(old.prior, old.concentration, whole)
    rows = float(whole.count_K.sum())
    objective = joint_of(weight_K[whole.count_K > 0], old.concentration, rows)
    progress = _advanced(old.progress, objective, config.tolerance)
    over = progress.stalled >= config.stall(old.prior.dim)
    living_K, made = deaths(config, old, whole, weight_K, sums.runner_up_K, over=over)
    ratio_J = log_split_ratio(old.prior, old.concentration, first, second)
    sweep = _Sweep(config, old, living_K, first, second, ratio_J, whole, weight_K, rng, over)
    split, split_moves = sweep.splits()
    busy_K = ~living_K
    busy_K[old.trial_J[split]] = True
    merged: list[list[int]] = []
    merge_moves: list[Move] = []
    if int((~busy_K).sum()) >= 2:
        free = sweep.free(torch.nonzero(~busy_K).flatten())
        merged, merge_moves = sweep.merges(free)
        if not merged and not split and not made and not progress.branched:
            merged, branch_moves = sweep.branches(free)
            merge_moves += branch_moves
            progress = replace(progress, branched=not merged)
    made = [*made, *split_moves, *merge_moves]
    moved = any(move.accepted for move in made)
    quiet = trials and not moved
    progress = replace(progress, branched=progress.branched and not moved)
    roster = Roster(config, old.prior, _concentration(config, old, int(living_K.sum()), rows, rng))
    _keep(roster, sweep, {*torch.nonzero(busy_K).flatten().tolist(), *(k for group in merged for k in group)}, quiet)
    next_id = _divide(roster, sweep, split)
    for group in merged:
        roster.enter(int(old.id_K[group[0]]), whole[torch.tensor(group)].total())
    if config.fits_prior and not over:
        progress = _refit(roster, whole.total(), progress)
    return roster.population(next_id, progress), made, objective


def wholes(sets: Moments, trial_J: Tensor, count: int) -> Moments:
    """The clusters, both halves together."""
    if len(trial_J) == 0:
        return sets
    whole = sets[torch.arange(count)]
    for total, part in zip(whole.tensors().values(), sets.tensors().values(), strict=True):
        total.index_add_(0, trial_J, part[count:])
    return whole


def _advanced(progress: Progress, objective: float, tolerance: float) -> Progress:
    """Less than the tolerance is rounding, which differs with the size of the blocks that were summed. A best that
    was forgotten because the prior changed is taken anew, without starting the count again.
    """
    first = not math.isfinite(progress.best)
    better = not first and objective - progress.best > tolerance * abs(progress.best)
    stalled = 0 if better else progress.stalled + (0 if first else 1)
    return replace(progress, objective=objective, best=max(progress.best, objective), stalled=stalled)


def _refit(roster: Roster, total: Moments, progress: Progress) -> Progress:
    """Fit the prior to the clusters when their number has changed since it was last fitted."""
    count = len(roster.entries)
    if abs(count - progress.fitted) <= _REFIT * progress.fitted:
        return progress
    roster.prior = fitted_prior(
        roster.config, Moments.cat([entry.whole for entry in roster.entries]), total, roster.prior
    )
    return replace(progress, best=-math.inf, fitted=count)


def _concentration(config: DPMConfig, old: Population, clusters: int, rows: float, rng: torch.Generator) -> float:
    if not config.learn_concentration:
        return old.concentration
    if config.metropolis:
        return sample_concentration(old.concentration, clusters, int(rows), rng)
    return likeliest_concentration(clusters, int(rows))


def _divide(roster: Roster, sweep: _Sweep, split: list[int]) -> int:
    next_id = sweep.old.next_id
    for j in split:
        halves = (sweep.first.one(j), sweep.second.one(j))
        larger, smaller = sorted(halves, key=lambda half: float(half.count_K[0]), reverse=True)
        roster.enter(int(sweep.old.id_K[sweep.old.trial_J[j]]), larger)
        roster.enter(next_id, smaller)
        next_id += 1
    return next_id


def _keep(roster: Roster, sweep: _Sweep, gone: set[int], quiet: bool) -> None:
    """Clusters that stay what they are: a trial goes on, or along the next axis when stale. New ones begin in quiet
    sweeps only, when nothing else moves: until then the clusters are about to change.
    """
    old, axes = sweep.old, min(sweep.config.axes, sweep.old.prior.dim)
    trial = {k: j for j, k in enumerate(old.trial_J.tolist())}
    hopeless, room = set(torch.nonzero(sweep.hopeless_J).flatten().tolist()), _trials(old.prior.dim) - len(trial)
    for k, identity in enumerate(old.id_K.tolist()):
        if k in gone:
            continue
        whole, axis, tried = sweep.whole.one(k), int(old.axis_K[k]), float(old.tried_K[k])
        rows = float(whole.count_K[0])
        drifted = abs(rows - tried) > _DRIFT * tried
        if k in trial:
            entry = Entry(identity, whole, axes, tried)
            if trial[k] not in hopeless:
                entry = _on_trial(sweep, trial[k], replace(entry, axis=axis), axes)
        elif quiet and not sweep.over and (axis < axes or drifted) and room > 0:
            room -= 1
            entry = Entry(identity, whole, axis if axis < axes else 0, rows, trial=True)
        else:
            entry = Entry(identity, whole, axis, tried)
        roster.entries.append(entry)


def _trials(dim: int) -> int:
    """How many trials there is memory for at a time: their Moments and halves take some times D^2 each."""
    return max(_LEAST_TRIALS, _TRIAL_FLOATS // dim**2)


def _on_trial(sweep: _Sweep, j: int, entry: Entry, axes: int) -> Entry:
    index = torch.tensor([j])
    halves = Moments.cat([sweep.first[index], sweep.second[index]])
    age = int(sweep.old.age_J[j]) + 1
    if age < sweep.config.patience and float(halves.count_K.min()) > 0:
        return replace(entry, trial=True, age=age, halves=halves)
    axis = entry.axis + 1
    return replace(entry, axis=axis, trial=axis < axes and not sweep.over)
