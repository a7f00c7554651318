"""The end of one of DeepDPM's epochs, from statistics alone: deaths, a round of moves when one is due, the M-step.

Shapes: K clusters before, L clusters after, D dimensions. Costs O(K D^3), never sees a row or a network.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.clusterer import Move
from models.deepdpm.config import DeepDPMConfig
from models.deepdpm.mixture import Cut, Mixture, cut_in_two
from models.deepdpm.moves import Member, Round, play
from models.deepdpm.search import Search
from models.deepdpm.statistics import NetStats
from models.dpm.moves import log_joint
from models.moments import Moments


@dataclass(frozen=True)
class Advance:
    """The search after an epoch, and what the networks have to become."""

    search: Search
    row_L: Tensor  # int64, row of the last layer that each cluster continues
    log_share_L: Tensor  # what is added to its bias
    anew_L: Tensor  # bool, which subclustering nets begin again
    cut: Cut  # as what those begin
    moves: tuple[Move, ...]
    objective: float  # log joint of the partition that was seen
    settled: bool


def advance(config: DeepDPMConfig, search: Search, stats: NetStats, rng: torch.Generator) -> Advance:
    """The next clusters. One with fewer members than `min_size` dies at once; its rows go to the next best."""
    count_K = stats.members.count_K.view(-1, 2).sum(dim=1)
    objective = _objective(config, search, stats)
    living_K = count_K >= min(config.min_size, int(count_K.max()))
    deaths = [
        Move("death", (int(search.mixture.id_K[k]),), math.nan, True, f"{int(count_K[k])} rows, fewer than min_size")
        for k in torch.nonzero(~living_K).flatten().tolist()
    ]
    due, rows = is_due(config, search), float(count_K.sum())
    if due:
        better = objective > search.best + config.tolerance * rows or not math.isfinite(search.best)
        best, stalled = max(objective, search.best), 0 if better else search.stalled + 1
        search = replace(search, best=best, stalled=stalled)
    one = _round(config, search, stats, torch.nonzero(living_K).flatten(), rng)
    if due:
        members, moves, next_id = play(one, search.next_id)
    else:
        members, moves, next_id = [one.same(k) for k in range(len(one.id_K))], [], search.next_id
    moves = deaths + moves
    accepted = any(move.accepted for move in moves)
    still = abs(objective - search.objective) <= config.tolerance * rows
    tried = one.over or all(member.axis >= config.axes for member in members)
    search = replace(search, next_id=next_id, seen=objective, updated=search.steps, updates=search.updates + 1)
    if due:
        frozen = search.steps + config.freeze if accepted else search.frozen
        search = replace(search, objective=objective, played=search.steps, updates=0, frozen=frozen)
    settled = due and not accepted and tried and (still or one.over)
    search, cut = _enter(search, stats, members)
    return Advance(
        search=search,
        row_L=torch.tensor([member.row for member in members]),
        log_share_L=torch.tensor([member.log_share for member in members], dtype=torch.float64),
        anew_L=torch.tensor([member.anew for member in members]),
        cut=cut,
        moves=tuple(moves),
        objective=objective,
        settled=settled,
    )


def is_due(config: DeepDPMConfig, search: Search) -> bool:
    """Whether it is time for a round of moves: the mixture must have followed the last round first."""
    return search.updates > 0 and search.steps - search.played >= config.interval


def _objective(config: DeepDPMConfig, search: Search, stats: NetStats) -> float:
    first, second = (stats.members[torch.arange(half, len(stats.members.count_K), 2)] for half in (0, 1))
    clusters = first + second
    return log_joint(search.prior, config.concentration, clusters[torch.nonzero(clusters.count_K > 0).flatten()])


def _round(config: DeepDPMConfig, search: Search, stats: NetStats, living: Tensor, rng: torch.Generator) -> Round:
    half = torch.stack([2 * living, 2 * living + 1], dim=1).flatten()
    return Round(
        config=config,
        prior=search.prior,
        stats=NetStats(stats.clusters[living], stats.halves[half], stats.members[half]),
        id_K=search.mixture.id_K[living],
        row_K=living,
        axis_K=search.axis_K[living],
        tried_K=search.tried_K[living],
        rng=rng,
        over=search.stalled >= config.stall,
    )


def half_means(search: Search, stats: NetStats) -> Tensor:
    """Means of both halves of each cluster, (K, 2, D); an empty half stays where it was, so that rows may come back."""
    mean_HD = stats.halves.sum_KD / (search.prior.kappa + stats.halves.count_K)[:, None]
    empty_K2 = stats.halves.count_K.view(-1, 2) < 1
    return torch.where(empty_K2[:, :, None], search.half_K2D, mean_HD.view(-1, 2, search.prior.dim))


def _enter(search: Search, stats: NetStats, members: list[Member]) -> tuple[Search, Cut]:
    """Posterior modes of all clusters in one batched factorisation, and the means of their halves."""
    whole = Moments.cat([member.whole for member in members])
    gaussians = search.prior.mode(whole)
    row_L = torch.tensor([member.row for member in members])
    anew_L = torch.tensor([member.anew for member in members])
    axis_L = torch.tensor([member.axis for member in members])
    anew = torch.nonzero(anew_L).flatten()
    cut = cut_in_two(gaussians[anew], axis_L[anew])
    half_L2D = half_means(search, stats)[row_L]
    half_L2D[anew] = cut.half_K2D
    mixture = Mixture(
        torch.tensor([member.identity for member in members]),
        (whole.count_K / whole.count_K.sum()).log(),
        gaussians,
    )
    search = replace(
        search,
        mixture=mixture,
        half_K2D=half_L2D,
        axis_K=axis_L,
        tried_K=torch.tensor([member.tried for member in members], dtype=torch.float64),
    )
    return search, cut
