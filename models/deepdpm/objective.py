"""DeepDPM as an Objective: losses on batches, M-step and moves between epochs.

Source: Ronen, Finder and Freifeld (2022), DeepDPM: deep clustering with an unknown number of clusters.
Shapes: N rows, B rows of a batch, D dimensions, K clusters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from models.clusterer import DataSummary, Move
from models.deepdpm.advance import Advance, advance, is_due
from models.deepdpm.config import DeepDPMConfig
from models.deepdpm.losses import cluster_loss, subcluster_loss
from models.deepdpm.mixture import Mixture, Whitened, cut_in_two, whiten
from models.deepdpm.model import DeepDPM
from models.deepdpm.network import DeepDPMNet, Responses
from models.deepdpm.search import Search
from models.deepdpm.start import first_cells
from models.deepdpm.statistics import NetStats, net_statistics, occupancy
from models.deepdpm.surgery import rebase, regrow, renew, resize
from models.dpm.prior import NIW, niw_from
from models.moments import Moments
from models.objective import Batch, EpochEnd, Loss, Passes, Plan, Reduce, Surgery


@dataclass(frozen=True)
class _Targets:
    """What the losses of one epoch compare with, in the networks' units."""

    whitened: Whitened
    half_K2D: Tensor


class DeepDPMObjective:
    """The clustering nets' losses, and a search that is advanced between epochs.

    A step costs O(B (K D^2 + H (D + K))); the end of an epoch one pass of O(N (H (D + K) + C D^2)) and O(K D^3).
    """

    def __init__(self, config: DeepDPMConfig) -> None:
        self.config = config
        self.seed = 0
        self._search: Search | None = None
        self._targets: _Targets | None = None

    @property
    def search(self) -> Search:
        """Where the search is; after `build` or `load`."""
        assert self._search is not None  # noqa: S101 - the contract: build comes first
        return self._search

    @search.setter
    def search(self, search: Search) -> None:
        self._search, self._targets = search, None

    def build(self, data: DataSummary, plan: Plan) -> DeepDPMNet:
        """Networks for the first clusters (k-means cells of the sample), seeded by `data.seed`.

        Raises ShoalError when the prior is impossible in this dimension or the sample is not finite.
        """
        self.seed = data.seed
        data = data.to("cpu")
        prior = niw_from(self.config.prior(), data)
        cells = first_cells(data, self.config.starts(data.rows), prior.mean_D)
        clusters = len(cells.count_K)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(data.seed)
            net = DeepDPMNet(data.dim, clusters, self.config.hidden, self.config.sub_hidden)
        net.origin_D.copy_(prior.mean_D)
        net.scale.fill_(self._scale_of(prior))
        mixture = Mixture(torch.arange(clusters), _log_weight(cells), prior.mode(cells))
        axis_K, everyone = torch.zeros(clusters, dtype=torch.int64), torch.arange(clusters)
        cut = cut_in_two(mixture.gaussians, axis_K)
        renew(net, everyone, cut, self._rng(0))
        self.search = Search(
            prior, mixture, cut.half_K2D, axis_K, cells.count_K, next_id=clusters, frozen=self.config.warmup
        )
        return net

    def restart(self, net: DeepDPMNet, data: DataSummary, passes: Passes) -> EpochEnd:
        """The rows have moved: a new prior, then the M-step from what the networks say of them, and all is tried again.

        The networks' own units change with the prior, and their weights so that their outputs do not.
        """
        prior, old = niw_from(self.config.prior(), data), self.search
        shift_D = old.prior.mean_D - prior.mean_D
        rebase(net, prior.mean_D, self._scale_of(prior))
        self.search = replace(
            old,
            prior=prior,
            half_K2D=old.half_K2D + shift_D,
            axis_K=torch.zeros_like(old.axis_K),
            played=old.steps,
            updates=0,
            stalled=0,
            objective=-math.inf,
            best=-math.inf,
        )
        return self._advance(net, passes, self._statistics(net, passes))

    def groups(self, net: nn.Module) -> list[dict[str, Any]]:
        """The clustering net and the subclustering nets, each with its learning rate."""
        net = cast(DeepDPMNet, net)
        return [
            {"params": [*net.hidden.parameters(), *net.last.parameters()], "lr": self.config.learning_rate},
            {"params": list(net.sub.parameters()), "lr": self.config.sub_learning_rate},
        ]

    def loss(self, net: nn.Module, batch: Batch, step: int, reduce: Reduce) -> Loss:
        """L_cl + L_sub; they share no parameters. Distances are in units of the data's mean variance."""
        said: Responses = net(batch.x_BD)
        prior, scale = self.search.prior, self._scale()
        standard_BD = ((batch.x_BD.double() - prior.mean_D.to(batch.x_BD.device)) / scale).float()
        targets = self._current_targets(batch.x_BD.device)
        with torch.no_grad():
            target_BK = targets.whitened.log_responsibilities(standard_BD)
        cluster = cluster_loss(said.logit_BK.float(), target_BK, self.config.divergence, self.config.smoothing).mean()
        subcluster = subcluster_loss(said.pair_B2.float(), standard_BD, targets.half_K2D[said.cluster_B]).mean()
        return Loss(cluster + subcluster, {"cluster": cluster.detach(), "subcluster": subcluster.detach()})

    def after_backward(self, net: nn.Module, step: int) -> None:
        """Nothing: gradients are taken as they are."""

    def after_step(self, net: nn.Module, batch: Batch, step: int, reduce: Reduce) -> None:
        """Counts the step; the mixture changes between epochs."""
        self._search = replace(self.search, steps=self.search.steps + 1)  # its targets stay what they are

    def on_start(self, net: nn.Module, passes: Passes) -> None:
        """Nothing: `build` has the first mixture."""

    def on_epoch_end(self, net: nn.Module, epoch: int, passes: Passes) -> EpochEnd:
        """The M-step, after a round of moves when one is due; nothing while warming up, frozen, or too early."""
        net, search = cast(DeepDPMNet, net), self.search
        waiting = search.steps - search.updated < self.config.update and not is_due(self.config, search)
        if search.steps < search.frozen or waiting:
            return EpochEnd(clusters=len(search.axis_K), objective=search.seen)
        return self._advance(net, passes, self._statistics(net, passes))

    def state(self) -> dict[str, Tensor]:
        """The search; everything else follows from it and the settings."""
        return {**self.search.tensors(), "seed": torch.tensor(self.seed)}

    def load(self, state: Mapping[str, Tensor], net: nn.Module) -> None:
        """Continue from `state()`; `net` gets as many outputs as there were clusters."""
        self.seed = int(state["seed"])
        self.search = Search.from_tensors(state)
        resize(cast(DeepDPMNet, net), len(self.search.axis_K))

    def clusterer(self, net: nn.Module) -> DeepDPM:
        """The mixture, with a copy of the networks."""
        tensors = {name: value.detach().cpu().clone() for name, value in net.state_dict().items()}
        return DeepDPM(self.config, self.search.prior, self.search.mixture, tensors, floor=self.search.next_id)

    def _statistics(self, net: DeepDPMNet, passes: Passes) -> NetStats:
        origin_D, candidates = self.search.prior.mean_D, self.config.candidates
        return passes.total(lambda x_ND, row_N: net_statistics(net, x_ND, origin_D, candidates)).to("cpu")

    def _advance(self, net: DeepDPMNet, passes: Passes, stats: NetStats) -> EpochEnd:
        search, rng = self.search, self._rng(self.search.steps)
        after = advance(self.config, search, stats, rng)
        self.search = after.search
        surgery = None
        if bool(after.anew_L.any()) or len(after.row_L) != len(search.axis_K):
            surgery = regrow(net, after.row_L, after.log_share_L, after.anew_L)
            renew(net, torch.nonzero(after.anew_L).flatten(), after.cut, rng)
        if after.settled:
            return self._without_ghosts(net, passes, after, surgery)
        return EpochEnd(surgery, after.moves, len(after.row_L), after.objective)

    def _without_ghosts(self, net: DeepDPMNet, passes: Passes, after: Advance, surgery: Surgery | None) -> EpochEnd:
        """The end, unless a cluster has no row under the mixture, which is what labels rows: then it dies first."""
        mixture = self.search.mixture
        count_K = passes.total(lambda x_ND, row_N: occupancy(mixture, x_ND)).count_K.cpu()
        living = torch.nonzero(count_K > 0).flatten()
        if len(living) == len(count_K):
            return EpochEnd(surgery, after.moves, len(count_K), after.objective, settled=True)
        ghosts = mixture.id_K[count_K == 0].tolist()
        deaths = tuple(Move("death", (k,), math.nan, True, "no rows of its own in the mixture") for k in ghosts)
        second = regrow(net, living, torch.zeros(len(living)), torch.zeros(len(living), dtype=torch.bool))
        first = second.source if surgery is None else {name: row_K[living] for name, row_K in surgery.source.items()}
        self.search = self.search[living]
        return EpochEnd(Surgery(first), after.moves + deaths, len(living), after.objective)

    def _scale(self) -> float:
        return self._scale_of(self.search.prior)

    def _scale_of(self, prior: NIW) -> float:
        """The data's mean standard deviation."""
        return math.sqrt(float(prior.psi_DD.diagonal().mean()) / self.config.prior_scale)

    def _rng(self, step: int) -> torch.Generator:
        """The same on every worker and after a resume."""
        return torch.Generator().manual_seed((self.seed * 1_000_003 + step) % 2**63)

    def _current_targets(self, device: torch.device) -> _Targets:
        if self._targets is None:
            half_K2D = (self.search.half_K2D / self._scale()).float().to(device)
            self._targets = _Targets(whiten(self.search.mixture, self._scale()).to(device), half_K2D)
        return self._targets


def _log_weight(clusters: Moments) -> Tensor:
    return (clusters.count_K / clusters.count_K.sum()).log()
