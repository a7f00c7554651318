"""DeepDPM with features of its own: an autoencoder and the clustering of its codes, learned in turns.

Source: Ronen, Finder and Freifeld (2022), feature learning: |x - decoder(f(x))|^2 + lambda |f(x) - mu_z|^2. Shapes:
N rows, B rows of a batch, D dimensions, C dimensions of a code, K clusters.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from models.clusterer import Assignment, DataSummary, Stats, Update, check_dim
from models.config import Config
from models.deepdpm.config import DeepDPMConfig
from models.deepdpm.model import DeepDPM
from models.deepdpm.model import load as load_clusters
from models.deepdpm.network import DeepDPMNet
from models.deepdpm.objective import DeepDPMObjective
from models.deepdpm.search import part, prefixed
from models.moments import Moments, moments_of_sets
from models.objective import Batch, EpochEnd, Loss, Passes, Plan, Reduce, Surgery
from models.rows import in_blocks

S = TypeVar("S", bound=Stats)
_PRETRAIN, _CLUSTER, _FEATURES = 0, 1, 2  # phases; the last two take turns


class AutoencodedDeepDPMConfig(Config):
    """The autoencoder, how long each turn is in steps, and the clustering of the codes."""

    kind: Literal["deepdpm_autoencoder"] = "deepdpm_autoencoder"
    clusters: DeepDPMConfig = DeepDPMConfig()
    widths: tuple[int, ...] = Field((500, 500, 2000), description="hidden units of the encoder; the decoder mirrors it")
    code: int = Field(10, ge=1, description="dimensions of a code")
    learning_rate: float = Field(1e-3, gt=0, description="of the autoencoder")
    pull: float = Field(0.1, ge=0, description="lambda: weight of the squared distance to the cluster's mean")
    pretrain: int = Field(5000, ge=0, description="steps of reconstruction alone")
    features: int = Field(1000, ge=1, description="steps of the autoencoder in a turn")
    cluster: int = Field(10_000, ge=1, description="steps after which a turn of clustering ends if it has not settled")
    turns: int = Field(3, ge=1, description="of clustering; between them the autoencoder has its turns")


class AutoencodedNet(nn.Module):
    """Encoder, decoder and DeepDPM's networks on the codes. ReLU between layers, none at the code and the output."""

    origin_D: Tensor
    scale: Tensor

    def __init__(self, config: AutoencodedDeepDPMConfig, dim: int) -> None:
        super().__init__()
        self.encoder = _layers([dim, *config.widths, config.code])
        self.decoder = _layers([config.code, *reversed(config.widths), dim])
        self.clusters: DeepDPMNet = DeepDPMNet(config.code, 1, config.clusters.hidden, config.clusters.sub_hidden)
        self.register_buffer("origin_D", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(()))

    def standardize(self, x_BD: Tensor) -> Tensor:
        """Rows about the data's mean, in units of its mean standard deviation."""
        return (x_BD - self.origin_D) / self.scale

    def encode(self, x_BD: Tensor) -> Tensor:
        """Codes (B, C)."""
        code_BC: Tensor = self.encoder(self.standardize(x_BD))
        return code_BC

    def forward(self, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (B, C) and squared error of reconstruction per dimension, in units of the data's variance, (B,)."""
        standard_BD = self.standardize(x_BD)
        code_BC = self.encoder(standard_BD)
        return code_BC, (self.decoder(code_BC) - standard_BD).square().mean(dim=1)


def _layers(widths: list[int]) -> nn.Sequential:
    layers = [layer for pair in itertools.pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


@dataclass(frozen=True)
class _CodeStats:
    """Moments of all codes, as one set."""

    moments: Moments

    def __add__(self, other: _CodeStats) -> _CodeStats:
        return _CodeStats(self.moments + other.moments)

    def tensors(self) -> dict[str, Tensor]:
        return self.moments.tensors()

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> _CodeStats:
        return _CodeStats(Moments.from_tensors(tensors))


@dataclass(frozen=True)
class _CodePasses:
    """Passes over codes."""

    net: AutoencodedNet
    data: DataSummary
    passes: Passes

    def total(self, expect: Callable[[Tensor, Tensor], S]) -> S:
        """As the passes over rows."""
        return self.passes.total(lambda x_ND, row_N: expect(self.net.encode(x_ND), row_N))


class AutoencodedDeepDPMObjective:
    """Pretraining, then turns of clustering and of feature learning; it ends with the last turn of clustering."""

    def __init__(self, config: AutoencodedDeepDPMConfig) -> None:
        self.config = config
        self.inner = DeepDPMObjective(config.clusters)
        self._phase, self._steps, self._began, self._turn = _PRETRAIN, 0, 0, 0
        self._plan: Plan | None = None

    def build(self, data: DataSummary, plan: Plan) -> AutoencodedNet:
        """An autoencoder seeded by `data.seed`, and DeepDPM's networks for its first, untrained codes."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(data.seed)
            net = AutoencodedNet(self.config, data.dim)
        net.origin_D.copy_(data.mean_D)
        net.scale.fill_(max(data.variance, 1e-12 * max(1.0, float(data.mean_D.square().max()))) ** 0.5)
        sample_MC = _codes(net, data.sample_MD)
        covariance_CC = torch.cov(sample_MC.double().T, correction=0).reshape(self.config.code, -1)
        codes = DataSummary(data.rows, sample_MC.double().mean(dim=0), covariance_CC, sample_MC, data.seed)
        self._plan = plan
        net.clusters = self.inner.build(codes, plan)
        return net

    def groups(self, net: nn.Module) -> list[dict[str, Any]]:
        """The autoencoder, and DeepDPM's two groups."""
        net = cast(AutoencodedNet, net)
        autoencoder = [*net.encoder.parameters(), *net.decoder.parameters()]
        return [{"params": autoencoder, "lr": self.config.learning_rate}, *self.inner.groups(net.clusters)]

    def loss(self, net: nn.Module, batch: Batch, step: int, reduce: Reduce) -> Loss:
        """That of the phase; reconstruction is reported in all of them."""
        net = cast(AutoencodedNet, net)
        if self._phase == _CLUSTER:
            with torch.no_grad():
                code_BC, error_B = net(batch.x_BD)
            found = self.inner.loss(net.clusters, replace(batch, views=(code_BC.float(),)), step, reduce)
            return Loss(found.total, {**found.scalars, "reconstruction": error_B.mean()})
        code_BC, error_B = net(batch.x_BD)
        error = error_B.mean()
        if self._phase == _PRETRAIN:
            return Loss(error, {"reconstruction": error.detach()})
        pull = self._distance(net, code_BC).mean()
        return Loss(error + self.config.pull * pull, {"reconstruction": error.detach(), "pull": pull.detach()})

    def after_backward(self, net: nn.Module, step: int) -> None:
        """Nothing: gradients are taken as they are."""

    def after_step(self, net: nn.Module, batch: Batch, step: int, reduce: Reduce) -> None:
        """Counts the step, and DeepDPM's in its turns."""
        self._steps += 1
        if self._phase == _CLUSTER:
            self.inner.after_step(cast(AutoencodedNet, net).clusters, batch, step, reduce)

    def on_start(self, net: nn.Module, passes: Passes) -> None:
        """Nothing: the first phase is reconstruction."""

    def on_epoch_end(self, net: nn.Module, epoch: int, passes: Passes) -> EpochEnd:
        """The end of DeepDPM's epoch in its turns; the change from one phase to the next when it is time."""
        net, taken = cast(AutoencodedNet, net), self._steps - self._began
        if self._phase == _CLUSTER:
            end = self.inner.on_epoch_end(net.clusters, epoch, _CodePasses(net, passes.data, passes))
            if end.settled or taken >= self.config.cluster:
                self._turn += 1
                self._enter(_FEATURES)
            return _outer(end, settled=self._turn >= self.config.turns)
        if taken < (self.config.pretrain if self._phase == _PRETRAIN else self.config.features):
            return EpochEnd(clusters=len(self.inner.search.axis_K), objective=self.inner.search.seen)
        codes = _CodePasses(net, _code_summary(net, passes), passes)
        first = self._phase == _PRETRAIN
        self._enter(_CLUSTER)
        if not first:
            return _outer(self.inner.restart(net.clusters, codes.data, codes), settled=False)
        device = net.scale.device
        net.clusters = self.inner.build(codes.data, cast(Plan, self._plan)).to(device)
        fresh = {name: torch.full((len(value),), -1) for name, value in net.clusters.named_parameters()}
        return EpochEnd(Surgery(prefixed("clusters.", fresh)), clusters=net.clusters.last.out_features)

    def state(self) -> dict[str, Tensor]:
        """DeepDPM's, and where the turns are."""
        counters = torch.tensor([self._phase, self._steps, self._began, self._turn])
        return {**prefixed("clusters.", self.inner.state()), "turns": counters}

    def load(self, state: Mapping[str, Tensor], net: nn.Module) -> None:
        """Continue from `state()`."""
        self._phase, self._steps, self._began, self._turn = state["turns"].tolist()
        self.inner.load(part("clusters.", state), cast(AutoencodedNet, net).clusters)

    def clusterer(self, net: nn.Module) -> AutoencodedDeepDPM:
        """The clustering of the codes, behind the encoder."""
        net = cast(AutoencodedNet, net)
        tensors = {
            name: value.detach().cpu().clone()
            for name, value in net.state_dict().items()
            if not name.startswith(("clusters.", "decoder."))
        }
        return AutoencodedDeepDPM(self.config, self.inner.clusterer(net.clusters), tensors)

    def _enter(self, phase: int) -> None:
        self._phase, self._began = phase, self._steps

    def _distance(self, net: AutoencodedNet, code_BC: Tensor) -> Tensor:
        """Squared distance of each code to its cluster's mean, per dimension, in units of the codes' variance, (B,)."""
        search = self.inner.search
        with torch.no_grad():
            cluster_B = net.clusters(code_BC).cluster_B
        mean_KC = (search.prior.mean_D + search.mixture.gaussians.mean_KD).float().to(code_BC.device)
        return ((code_BC - mean_KC[cluster_B]) / net.clusters.scale.float()).square().mean(dim=1)


@dataclass(frozen=True)
class AutoencodedDeepDPM:
    """A DeepDPM behind an encoder. A row's code does not depend on the rows that come with it."""

    config: AutoencodedDeepDPMConfig
    clusters: DeepDPM
    encoder: Mapping[str, Tensor]

    @property
    def id_K(self) -> Tensor:
        """As the clustering of the codes."""
        return self.clusters.id_K

    @property
    def component_K(self) -> Tensor:
        """As the clustering of the codes."""
        return self.clusters.component_K

    @property
    def next_id(self) -> int:
        """As the clustering of the codes."""
        return self.clusters.next_id

    @property
    def hard(self) -> bool:
        """As the clustering of the codes."""
        return self.clusters.hard

    @property
    def retained(self) -> tuple[str, ...]:
        """Nothing."""
        return ()

    @property
    def dim(self) -> int:
        """D of the rows, not of the codes."""
        return len(self.encoder["origin_D"])

    def expect(self, x_ND: Tensor, row_N: Tensor) -> Stats:
        """Statistics of the rows' codes."""
        return self.clusters.expect(self._encode(x_ND), row_N)

    def counted(self, x_ND: Tensor, component_N: Tensor, weight_N: Tensor | None = None) -> Stats:
        """Raises ShoalError: rows are shared."""
        return self.clusters.counted(x_ND, component_N, weight_N)

    def renamed(self, cluster_K: Tensor, next_id: int) -> AutoencodedDeepDPM:
        """The same clusters under other ids."""
        return replace(self, clusters=self.clusters.renamed(cluster_K, next_id))

    def maximize(self, stats: Stats, rng: torch.Generator) -> Update:
        """As DeepDPM; the encoder stays as it is."""
        update = self.clusters.maximize(stats, rng)
        model = replace(self, clusters=cast(DeepDPM, update.model))
        return Update(model, update.moves, update.objective, update.settled)

    def assign(self, x_ND: Tensor) -> Assignment:
        """As DeepDPM; `score` is a log density of codes."""
        return self.clusters.assign(self._encode(x_ND))

    def tensors(self) -> dict[str, Tensor]:
        """Encoder and clustering."""
        return {**prefixed("encoder.", self.encoder), **prefixed("clusters.", self.clusters.tensors())}

    def _encode(self, x_ND: Tensor) -> Tensor:
        check_dim(x_ND, self.dim)
        net = AutoencodedNet(self.config, self.dim).requires_grad_(False)
        net.load_state_dict(dict(self.encoder), strict=False)
        return in_blocks(net.encode, x_ND).to(x_ND.device)


def load(config: AutoencodedDeepDPMConfig, tensors: dict[str, Tensor]) -> AutoencodedDeepDPM:
    """The model that `tensors()` described."""
    clusters = load_clusters(config.clusters, part("clusters.", tensors))
    return AutoencodedDeepDPM(config, clusters, part("encoder.", tensors))


def _outer(end: EpochEnd, *, settled: bool) -> EpochEnd:
    """What DeepDPM decided, in the names of the whole network."""
    surgery = None if end.surgery is None else Surgery(prefixed("clusters.", dict(end.surgery.source)))
    return EpochEnd(surgery, end.moves, end.clusters, end.objective, settled)


@torch.no_grad()
def _codes(net: AutoencodedNet, x_ND: Tensor) -> Tensor:
    device = net.scale.device
    return torch.cat([net.encode(block.float().to(device)).cpu() for block in x_ND.split(8192)])


def _code_summary(net: AutoencodedNet, passes: Passes) -> DataSummary:
    """Of the codes of all rows."""
    sample_MC = _codes(net, passes.data.sample_MD)
    origin_C = sample_MC.double().mean(dim=0)

    def expect(x_ND: Tensor, row_N: Tensor) -> _CodeStats:
        one_N = torch.zeros(len(x_ND), dtype=torch.int64, device=x_ND.device)
        return _CodeStats(moments_of_sets(net.encode(x_ND), one_N, 1, origin_C.to(x_ND.device)))

    codes = passes.total(expect).moments.to("cpu")
    covariance_CC = codes.scatter_KDD[0] / codes.count_K[0]
    return DataSummary(passes.data.rows, origin_C + codes.mean_KD[0], covariance_CC, sample_MC, passes.data.seed)
