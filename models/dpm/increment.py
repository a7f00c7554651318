"""A mixture goes on where a fit ended: births, splits, merges and deaths among what new rows have touched.

Rows at hand are searched and settle; the others are counted where they were, in Moments. So a refinement costs what is
at hand and what it changes, beside one M-step, and no more than that needs to be read.

Shapes: N rows at hand, M sampled rows, D dimensions, K components before, L after.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from models.clusterer import NOISE, Move
from models.dpm.agglomerate import agglomerate
from models.dpm.counting import EMPTY, counted_sets, minus, worth
from models.dpm.mixture import DPM, GROUP_ROWS, DPMStats, component_sample
from models.dpm.moves import joint_of, merge_proposals, neighbor_pairs
from models.dpm.novel import Proposal, born, found_sets, strange, undone
from models.dpm.parting import split
from models.dpm.population import Entry, Population, Roster
from models.dpm.regrouping import Holds
from models.dpm.settling import NEAREST, Settling
from models.dpm.succession import regrouped
from models.errors import ShoalError
from models.increment import Held, Refinement
from models.moments import Moments
from models.neighbors import nearest

_HOPELESS = 1.0  # nats per row that a merge costs, beyond which it is not worth telling
_SEEN = 64  # rows in which a newborn is looked at when components are grouped, though the sample have fewer
_FOLLOWED = 0.01  # of a component's older rows: more than that in a newborn, and the others are to be read


def refined(model: DPM, held: Held, stats: DPMStats, sample_MD: Tensor, rng: torch.Generator) -> Refinement:
    """The mixture after the rows at hand have settled in it; see `Refinable`.

    The prior and the concentration stay what they are. The order of rows does not matter. Raises ShoalError when no row
    is left.
    """
    model, stats = model.plain(stats)
    if not bool((stats.sets.count_K > EMPTY).any()):
        raise _nothing_left()
    order_N = torch.argsort(held.row_N, stable=True)
    work = _Refining.of(model, held[order_N], stats)
    work.bear(rng)
    work.part(rng)
    work.settle()
    work.merge()
    work.bury()
    return work.result(sample_MD, order_N)


def remade(model: DPM, stats: DPMStats) -> DPM:
    """The same components with parameters from these statistics; those without rows end.

    Raises ShoalError when no row is left.
    """
    model, stats = model.plain(stats)
    living = torch.nonzero(stats.sets.count_K > EMPTY).flatten()
    if len(living) == 0:
        raise _nothing_left()
    old = model.population
    entries = [_entry(old, k, stats.sets.one(k)) for k in living.tolist()]
    cluster_K = None if model.cluster_K is None else model.cluster_K[living]
    return replace(model, population=_population(model, entries, old.next_id, stats.sets[living]), cluster_K=cluster_K)


def _nothing_left() -> ShoalError:
    return ShoalError("None of the rows that the mixture describes is left; fit it again when there are rows.")


@dataclass
class _Refining:
    """A refinement in progress; components have their index in `settling`, new ones after the K old ones."""

    model: DPM
    held: Held
    stats: DPMStats
    base: Moments  # (K), of the rows that are not at hand
    settling: Settling
    strange_N: Tensor  # bool, rows that their components do not expect
    births: list[Proposal] = field(default_factory=list)
    splits: list[Proposal] = field(default_factory=list)
    tried: set[int] = field(default_factory=set)
    unsettled: set[int] = field(default_factory=set)
    heir: dict[int, int] = field(default_factory=dict)  # by index
    worth: dict[int, float] = field(default_factory=dict)  # of newborns that stay
    moves: list[Move] = field(default_factory=list)
    id_of: dict[int, int] = field(default_factory=dict)

    @staticmethod
    def of(model: DPM, held: Held, stats: DPMStats) -> _Refining:
        population = model.population
        base = minus(
            stats.sets, counted_sets(population.prior, held.x_ND, held.component_N, held.weight_N, len(population))
        )
        near_NC = torch.cat([_nearest(model, x_nD) for x_nD in held.x_ND.split(GROUP_ROWS)])
        rows = (held.x_ND, held.weight_N.clone(), held.component_N)
        parts = (model.config, population.prior, population.concentration)
        own = Moments(*(each.clone() for each in base.tensors().values()))
        settling = Settling.of(rows, own, near_NC, parts)
        return _Refining(
            model,
            held,
            stats,
            base,
            settling,
            torch.zeros(len(held), dtype=torch.bool),
            id_of=dict(enumerate(population.id_K.tolist())),
        )

    @property
    def old(self) -> int:
        """K: components before."""
        return len(self.model.population)

    def bear(self, rng: torch.Generator) -> None:
        """Search the rows that their components do not expect."""
        held = self.held
        self.strange_N = strange(self.model, held.x_ND, held.component_N, held.new_N)
        sets = found_sets(self.model, self.settling, torch.nonzero(self.strange_N).flatten(), rng)
        self.births = born(self.settling, sets)

    def part(self, rng: torch.Generator) -> None:
        """Try to split what has grown."""
        trials = split(self.model, self.settling, ~(self.held.new_N & self.strange_N), rng)
        self.splits, self.tried, self.unsettled = trials.proposals, set(trials.tried), trials.unsettled

    def settle(self) -> None:
        """Let rows find their components, and end new ones that nobody needs then."""
        settling, least = self.settling, self.model.config.min_size
        settling.settle()
        if len(settling) > self.old:
            before = int((settling.held.count_K > 0).sum())
            self.worth = undone(settling, self.old, least)
            if int((settling.held.count_K > 0).sum()) < before:
                settling.settle()
        self._empty()
        self._follow()
        self._name()

    def _empty(self) -> None:
        """Let the rows of components all of whose few rows are at hand go to their next best."""
        settling, least = self.settling, self.model.config.min_size
        small_K = (settling.base.count_K <= EMPTY) & (settling.count_K < least) & (settling.count_K > EMPTY)
        for k in torch.nonzero(small_K).flatten().tolist():
            row_n = torch.nonzero(settling.label_N == k).flatten()
            if float(settling.count_K[k]) >= least:
                continue  # another small one has just come to it
            joint_nC = settling.log_joint()[row_n].masked_fill(settling.near_NC[row_n] == k, -torch.inf)
            if bool(joint_nC.amax(dim=1).isfinite().all()):
                settling.move(row_n, settling.near_NC[row_n, joint_nC.argmax(dim=1)])

    def _follow(self) -> None:
        """Components from which older rows at hand went to a newborn: others may want to follow."""
        older_N = ~self.held.new_N
        gone_N = older_N & (self.settling.label_N >= self.old)
        rows_K = torch.bincount(self.held.component_N[older_N], minlength=self.old)
        gone_K = torch.bincount(self.held.component_N[gone_N], minlength=self.old)
        many_K = (gone_K >= self.model.config.min_size) & (gone_K > _FOLLOWED * rows_K)
        self.unsettled.update(torch.nonzero(many_K & (self.base.count_K > EMPTY)).flatten().tolist())

    def _name(self) -> None:
        """Ids of the newborns that have stayed, and the story of all that were proposed."""
        next_id = self.model.next_id
        for k in range(self.old, len(self.settling)):
            if float(self.settling.count_K[k]) > EMPTY:
                self.id_of[k], next_id = next_id, next_id + 1
        self.moves += [self._told("birth", each) for each in self.births]
        self.moves += [self._told("split", each) for each in self.splits]

    def _told(self, kind: Literal["birth", "split"], each: Proposal) -> Move:
        parent, rows = self.id_of[each.parent], f"{each.rows} rows at hand"
        if each.child in self.id_of:
            ratio = self.worth.get(each.child, each.log_ratio) if kind == "birth" else each.log_ratio
            return Move(kind, (parent, self.id_of[each.child]), ratio, True, f"{rows} are likelier apart")
        why = f"{rows} are likelier inside" if each.child < 0 else f"{rows} were likelier apart, but others took them"
        return Move(kind, (parent,), each.log_ratio, False, why)

    def merge(self) -> None:
        """Merge what is likelier as one, where one of a pair has changed."""
        settling = self.settling
        alive = torch.nonzero(settling.count_K > EMPTY).flatten()
        alive = alive[[k not in self.unsettled for k in alive.tolist()]]
        if len(alive) < 2:
            return
        clusters = settling.whole(alive)
        pair_P2 = neighbor_pairs(clusters.mean_KD, self.model.config.merge_neighbors)
        pair_P2 = pair_P2[self._changed()[alive][pair_P2].any(dim=1)]
        prior, alpha = settling.prior, settling.concentration
        proposals = merge_proposals(prior, alpha, clusters, pair_P2)
        gains = bool((proposals.ratio_P > 0).any())
        groups = agglomerate(prior, alpha, clusters, proposals, only_gains=True) if gains else []
        together = {k: i for i, (group, _) in enumerate(groups) for k in group}
        for (a, b), ratio in zip(pair_P2.tolist(), proposals.ratio_P.tolist(), strict=True):
            hopeless = ratio < -_HOPELESS * float(clusters.count_K[a] + clusters.count_K[b])
            if not hopeless and (a not in together or together[a] != together.get(b)):
                ids = (self.id_of[int(alive[a])], self.id_of[int(alive[b])])
                why = "likelier apart" if ratio <= 0 else "likelier together, but one of them has a better merge"
                self.moves.append(Move("merge", ids, ratio, False, why))
        for group, gain in groups:
            self._join([int(alive[k]) for k in group], gain)

    def _changed(self) -> Tensor:
        """Components that rows at hand are or were in, (K,) bool."""
        changed_K = self.settling.held.count_K > 0
        changed_K[self.held.component_N] = True
        return changed_K

    def _join(self, group: list[int], gain: float) -> None:
        settling = self.settling
        first, *others = sorted(group, key=lambda k: -float(settling.count_K[k]))
        why = "likelier together" if len(group) == 2 else f"the {len(group)} of them are likelier together"
        self.moves.append(Move("merge", tuple(self.id_of[k] for k in (first, *others)), gain, True, why))
        gone_N = torch.isin(settling.label_N, torch.tensor(others))
        for part in settling.base.tensors().values():
            part[first] += part[others].sum(dim=0)
            part[others] = 0
        row_n = torch.nonzero(gone_N).flatten()
        settling.move(row_n, torch.full_like(row_n, first))
        self.heir.update(dict.fromkeys(others, first))

    def bury(self) -> None:
        """End components without rows, each with an heir: fading may have left it rows that count for nothing."""
        settling = self.settling
        living = torch.nonzero(settling.count_K > EMPTY).flatten()
        others = settling.whole(living)
        for k in range(self.old):
            if k in self.heir or float(settling.count_K[k]) > EMPTY:
                continue
            before = self.stats.sets.one(k)
            self.heir[k] = int(living[_closest(self.model, k, before, others)])
            if k in self.unsettled:
                self.unsettled.add(self.heir[k])
            why = f"{float(before.count_K[0]):g} rows were left, which others have now"
            self.moves.append(Move("death", (self.id_of[k],), math.nan, True, why))

    def result(self, sample_MD: Tensor, order_N: Tensor) -> Refinement:
        """The next model, the statistics of all rows, and where every row has gone."""
        settling, old = self.settling, self.model.population
        living = torch.nonzero(settling.count_K > EMPTY).flatten()
        place_K = torch.full((len(settling),), -1)
        place_K[living] = torch.arange(len(living))
        home_K = place_K[[self._last(k) for k in range(len(settling))]].clamp_min(0)
        label_N = home_K[settling.label_N]  # rows faded to nothing may be where a component has ended
        stats = self._stats(label_N, home_K[: self.old], len(living))
        entries = [self._entered(k) for k in living.tolist()]
        next_id = max([old.next_id, self.model.next_id, *(identity + 1 for identity in self.id_of.values())])
        population = _population(self.model, entries, next_id, stats.sets)
        model = replace(
            self.model, population=population, sample_MD=sample_MD[:GROUP_ROWS].clone(), cluster_K=None, opening=()
        )
        model = self._grouped(model, living, stats.sets.count_K)
        component_N = torch.empty_like(label_N)
        component_N[order_N] = label_N
        ids = self.id_of
        return Refinement(
            model,
            stats,
            component_N,
            tuple(self.moves),
            {ids[k]: ids[self._last(k)] for k in self.heir if k < self.old},
            tuple(sorted(ids[k] for k in self.unsettled if place_K[k] >= 0)),
        )

    def _grouped(self, model: DPM, living: Tensor, count_K: Tensor) -> DPM:
        """With clusters that keep their ids."""
        config, before_K = model.config.grouping, self.model.id_K
        hold_K = torch.tensor([int(before_K[k]) if k < self.old else NOISE for k in living.tolist()])
        if config is None or len(model.sample_MD) == 0:
            return self._ungrouped(model, hold_K)
        holds = Holds(hold_K, (hold_K == NOISE) | self._changed()[living])
        grouped, moves = regrouped(model, holds, count_K, self._seen(model, living))
        self.moves += moves
        return grouped

    def _seen(self, model: DPM, living: Tensor) -> tuple[Tensor, Tensor]:
        """The sample with the components of its rows, and more rows of newborns that it has too few of."""
        x_MD, component_M = model.sample_MD, component_sample(model)
        count_L, label_N = torch.bincount(component_M, minlength=len(living)), self.settling.label_N
        for place in torch.nonzero((living >= self.old) & (count_L < _SEEN)).flatten().tolist():
            row_n = torch.nonzero(label_N == living[place]).flatten()[: _SEEN - int(count_L[place])]
            x_MD = torch.cat([x_MD, self.held.x_ND[row_n]])
            component_M = torch.cat([component_M, torch.full_like(row_n, place)])
        return x_MD, component_M

    def _ungrouped(self, model: DPM, hold_K: Tensor) -> DPM:
        """Every component is a cluster; one that is new has its own id for that, too."""
        if self.model.cluster_K is None:
            return model
        return model.renamed(torch.where(hold_K == NOISE, model.component_K, hold_K), model.next_id)

    def _last(self, k: int) -> int:
        while k in self.heir:
            k = self.heir[k]
        return k

    def _entered(self, k: int) -> Entry:
        whole = self.settling.whole(torch.tensor([k]))
        entry = _entry(self.model.population, k, whole) if k < self.old else Entry(self.id_of[k], whole)
        if k >= self.old or k in self.tried or k in self.heir.values():
            return replace(entry, axis=0, tried=float(whole.count_K[0]))
        return entry

    def _stats(self, label_N: Tensor, home_K: Tensor, count: int) -> DPMStats:
        """Rows at hand where they are now, the others where they were or with their heirs."""
        prior, held = self.model.population.prior, self.held
        sets = counted_sets(prior, held.x_ND, label_N, held.weight_N, count)
        for total, part in zip(sets.tensors().values(), self.base.tensors().values(), strict=True):
            total.index_add_(0, home_K, part)
        return DPMStats(sets, torch.full((count,), torch.nan, dtype=torch.float64))


def _nearest(model: DPM, x_nD: Tensor) -> Tensor:
    """The most probable components of each row, by index, (n, C)."""
    joint_nC, near_nC = model.log_joint(x_nD)
    best_nC = joint_nC.topk(min(NEAREST, joint_nC.shape[1]), dim=1).indices
    return (best_nC if near_nC is None else near_nC.gather(1, best_nC)).sort(dim=1).values


def _closest(model: DPM, k: int, gone: Moments, others: Moments) -> int:
    """Which of the others near component k its rows are likeliest together with; the nearest where it has none."""
    prior, alpha = model.population.prior, model.population.concentration
    near = nearest(model.population.clusters.mean_KD[[k]].float(), others.mean_KD.float(), NEAREST)[1][0]
    if float(gone.count_K[0]) <= EMPTY:
        return int(near[0])
    these = others[near]
    union = Moments(gone.count_K + these.count_K, gone.sum_KD + these.sum_KD, gone.second_KDD + these.second_KDD)
    return int(near[(worth(prior, alpha, union) - worth(prior, alpha, these)).argmax()])


def _entry(old: Population, k: int, whole: Moments) -> Entry:
    return Entry(int(old.id_K[k]), whole, int(old.axis_K[k]), float(old.tried_K[k]))


def _population(model: DPM, entries: list[Entry], next_id: int, sets: Moments) -> Population:
    old = model.population
    weight_K = worth(old.prior, old.concentration, sets)
    objective = joint_of(weight_K, old.concentration, float(sets.count_K.sum()))
    roster = Roster(model.config, old.prior, old.concentration, entries)
    return roster.population(next_id, replace(old.progress, objective=objective, best=objective, stalled=0))
