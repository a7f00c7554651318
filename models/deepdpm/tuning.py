"""DeepDPM goes on where a training ended: on rows that came since and a sample of older ones.

A sampled row stands for several, so it weighs as much in the statistics that the mixture and the moves are made from.
In the losses every row counts once: a row's target does not depend on how many there are like it. Clusters that the
sample has too few rows of are remembered by rows drawn from their Gaussians (generative replay, Shin et al. 2017).

Cutting clusters in two does not find a small cluster at the edge of a large one, so what the arrivals bring is born
first, as in the mixture of `models.dpm`. Shapes: N rows, D dimensions, K clusters, B births.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from models.clusterer import DataSummary, Move
from models.deepdpm.advance import Advance, half_means
from models.deepdpm.mixture import Cut, Mixture, cut_in_two
from models.deepdpm.model import DeepDPM
from models.deepdpm.network import DeepDPMNet
from models.deepdpm.objective import DeepDPMObjective
from models.deepdpm.search import Search
from models.deepdpm.statistics import NetStats, net_statistics
from models.deepdpm.surgery import regrow, renew
from models.dpm.config import DPMConfig
from models.dpm.mixture import DPM
from models.dpm.population import Population, Progress
from models.gaussians import Gaussians
from models.increment import Held
from models.moments import Moments
from models.objective import EpochEnd, Passes, Plan, Surgery

_LEAST = 32  # older rows of a cluster that it takes to be represented


@dataclass(frozen=True)
class Beginning:
    """Where tuning begins: the clusters there were, and behind them those that the arrivals are."""

    model: DeepDPM  # with all of them, but networks for the old ones alone
    rows_K: Tensor  # float64, of all of them
    known_K: Tensor  # float64, without arrivals: what the search had seen of the old ones
    parent_B: Tensor  # int64, index of the cluster that most rows of each newborn were in
    moves: tuple[Move, ...]

    @property
    def old(self) -> int:
        """Clusters there were."""
        return len(self.rows_K) - len(self.parent_B)


def remembered(model: DeepDPM, held: Held, rng: torch.Generator) -> Held:
    """The same with rows drawn for clusters of which fewer than 32 older ones are at hand.

    Drawn rows weigh together what the older rows at hand lack of the cluster's share of them. O(K 32 D^2).
    """
    old = held[torch.nonzero(~held.new_N).flatten()]
    count_K, weight_K = (
        torch.bincount(old.component_N, weights, minlength=len(model.id_K)) for weights in (None, old.weight_N)
    )
    lack_K = model.mixture.log_weight_K.exp() * float(old.weight_N.sum()) - weight_K
    wanted = torch.nonzero((count_K < _LEAST) & (lack_K > 0)).flatten()
    each_W = _LEAST - count_K[wanted]
    component_n = wanted.repeat_interleave(each_W)
    gaussians, count = model.mixture.gaussians, len(component_n)
    normal_nD = torch.randn(count, model.dim, generator=rng, dtype=torch.float64)
    away_nD = torch.einsum("nij,nj->ni", gaussians.chol_KDD[component_n], normal_nD)
    return Held(
        torch.cat([held.x_ND, (gaussians.origin_D + gaussians.mean_KD[component_n] + away_nD).float()]),
        torch.cat([held.row_N, torch.randint(2**62, (count,), generator=rng)]),
        torch.cat([held.component_N, component_n]),
        torch.cat([held.weight_N, (lack_K[wanted] / each_W).repeat_interleave(each_W)]),
        torch.cat([held.new_N, torch.zeros(count, dtype=torch.bool)]),
    )


def begin(model: DeepDPM, held: Held, rng: torch.Generator) -> Beginning:
    """Which clusters the arrivals call for under the model's prior; costs what `DPM.refined` costs on them."""
    mixture = _as_dpm(model)
    stats = mixture.counted(held.x_ND, held.component_N, held.weight_N)
    new = held[torch.nonzero(held.new_N).flatten()]
    found = mixture.refined(new, stats, held.x_ND[:1], rng)
    identity_N = found.model.component_K[found.component_N]
    born, place_N = identity_N.unique(return_inverse=True)
    is_new = ~torch.isin(born, model.id_K)
    member = [torch.nonzero(place_N == b).flatten() for b in torch.nonzero(is_new).flatten().tolist()]
    parent_B = torch.tensor([int(new.component_N[index].mode().values) for index in member], dtype=torch.int64)
    sets = [
        mixture.counted(new.x_ND[index], torch.zeros_like(index), new.weight_N[index]).sets.one(0) for index in member
    ]
    old = model.mixture
    rows_K, gaussians, id_K = stats.sets.count_K, old.gaussians, torch.cat([old.id_K, born[is_new]])
    if sets:
        newborn = Moments.cat(sets)
        rows_K = torch.cat([rows_K.index_add(0, parent_B, -newborn.count_K).clamp_min(1), newborn.count_K])
        mode = model.prior.mode(newborn)
        parts = ((gaussians.mean_KD, mode.mean_KD), (gaussians.chol_KDD, mode.chol_KDD))
        gaussians = Gaussians(gaussians.origin_D, *(torch.cat(pair) for pair in parts))
    grown = replace(
        model,
        mixture=Mixture(id_K, (rows_K / rows_K.sum()).log(), gaussians),
        floor=max(model.next_id, found.model.next_id),
    )
    told = {*id_K.tolist(), -1}
    moves = (move for move in found.moves if move.kind in ("birth", "split") and told.issuperset(move.clusters))
    known = held[torch.nonzero(~held.new_N).flatten()]
    known_K = torch.bincount(known.component_N, known.weight_N, minlength=len(id_K))
    return Beginning(grown, rows_K, known_K, parent_B, tuple(moves))


class TuningObjective(DeepDPMObjective):
    """As in a training from the start, but from where another ended; what has grown since is tried to be split again.

    The prior stays what it was.
    """

    def __init__(self, beginning: Beginning, row_N: Tensor, weight_N: Tensor) -> None:
        super().__init__(beginning.model.config)
        self._beginning = beginning
        order_N = torch.argsort(row_N)
        self._row_N, self._weight_N = row_N[order_N], weight_N[order_N]

    def build(self, data: DataSummary, plan: Plan) -> DeepDPMNet:
        """The networks as they were, with outputs for what was born; only those are to be cut."""
        self.seed = data.seed
        begun, config = self._beginning, self.config
        model, old, births = begun.model, begun.old, len(begun.parent_B)
        net = DeepDPMNet(model.dim, old, config.hidden, config.sub_hidden)
        net.load_state_dict(dict(model.net))
        axis_K = torch.cat([torch.full((old,), config.axes), torch.zeros(births, dtype=torch.int64)])
        cut = cut_in_two(model.mixture.gaussians, axis_K % config.axes)
        if births:
            row_K = torch.cat([torch.arange(old), begun.parent_B])
            whole_K = begun.rows_K.index_add(0, begun.parent_B, begun.rows_K[old:])
            anew_K = torch.arange(old + births) >= old
            regrow(net, row_K, (begun.rows_K / whole_K[row_K]).log(), anew_K)
            newborn = torch.nonzero(anew_K).flatten()
            renew(net, newborn, Cut(*(value[newborn] for value in vars(cut).values())), self._rng(0))
        frozen = config.warmup if births else 0
        self.search = Search(
            model.prior, model.mixture, cut.half_K2D, axis_K, begun.known_K, next_id=model.next_id, frozen=frozen
        )
        return net

    def on_start(self, net: nn.Module, passes: Passes) -> None:
        """Halves of the old clusters are where their networks say."""
        search, old = self.search, torch.arange(self._beginning.old)
        half_K2D = search.half_K2D.clone()
        half_K2D[old] = half_means(search, self._statistics(cast(DeepDPMNet, net), passes))[old]
        self.search = replace(search, half_K2D=half_K2D)

    def _statistics(self, net: DeepDPMNet, passes: Passes) -> NetStats:
        origin_D, candidates = self.search.prior.mean_D, self.config.candidates

        def expect(x_ND: Tensor, row_N: Tensor) -> NetStats:
            place_N = torch.searchsorted(self._row_N, row_N.cpu())
            return net_statistics(net, x_ND, origin_D, candidates, self._weight_N[place_N].to(x_ND.device))

        return passes.total(expect).to("cpu")

    def _without_ghosts(self, net: DeepDPMNet, passes: Passes, after: Advance, surgery: Surgery | None) -> EpochEnd:
        """The end: that no row at hand is in a cluster does not say that none is."""
        return EpochEnd(surgery, after.moves, len(after.row_L), after.objective, settled=True)


def _as_dpm(model: DeepDPM) -> DPM:
    """The mixture alone."""
    config, mixture, none = model.config, model.mixture, torch.empty(0, dtype=torch.int64)
    settings = DPMConfig(
        assignment="mode",
        concentration=config.concentration,
        prior_scale=config.prior_scale,
        min_size=config.min_size,
        grouping=None,
    )
    population = Population(
        prior=model.prior,
        concentration=config.concentration,
        id_K=mixture.id_K,
        next_id=model.next_id,
        log_weight_K=mixture.log_weight_K,
        clusters=mixture.gaussians,
        trial_J=none,
        age_J=none,
        log_weight_half_H=none.double(),
        halves=mixture.gaussians[none],
        axis_K=torch.full_like(mixture.id_K, settings.axes),
        tried_K=torch.zeros_like(mixture.log_weight_K),
        progress=Progress(),
    )
    return DPM(settings, population, torch.empty(0, model.dim))
