"""A small but real Objective: softmax regression on k-means pseudo-labels, whose clusters are split after epoch 2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models import kmeans
from models.clusterer import Clusterer, DataSummary, Move
from models.kmeans import KMeans, KMeansConfig, KMeansStats
from models.objective import Batch, EpochEnd, Loss, Passes, Plan, Reduce, Surgery

SPLIT_AT = 2


class Toy:
    """Remembers centroids; two clusters at first, and one more when the larger is split."""

    def __init__(self, settle_at: int = 10**9, clusters: int = 2) -> None:
        self.settle_at = settle_at
        self.clusters = clusters
        self.calls: list[str] = []
        self._model: KMeans | None = None

    @property
    def model(self) -> KMeans:
        assert self._model is not None
        return self._model

    def build(self, data: DataSummary, plan: Plan) -> nn.Module:
        self.calls.append("build")
        self._model = kmeans.start(KMeansConfig(clusters=self.clusters, restarts=1), data)
        torch.manual_seed(data.seed)
        return nn.Sequential(nn.Linear(data.dim, 8), nn.Tanh(), nn.Linear(8, self.clusters))

    def groups(self, net: nn.Module) -> list[dict[str, Any]]:
        return [{"params": list(net[0].parameters())}, {"params": list(net[2].parameters()), "lr": 2e-2}]

    def loss(self, net: nn.Module, batch: Batch, step: int, reduce: Reduce) -> Loss:
        target_B = self.model.assign(batch.x_BD).cluster_N
        logit_BK = net(batch.x_BD / 10)
        (rows,) = reduce.sum(torch.tensor(float(len(target_B))))
        total = functional.cross_entropy(logit_BK, target_B)
        right = (logit_BK.argmax(dim=1) == target_B).double().mean()
        return Loss(total, {"accuracy": right, "batch": rows})

    def after_backward(self, net: nn.Module, step: int) -> None:
        pass

    def after_step(self, net: nn.Module, batch: Batch, step: int, reduce: Reduce) -> None:
        pass

    def on_start(self, net: nn.Module, passes: Passes) -> None:
        self.calls.append("on_start")
        self._move(passes)

    def on_epoch_end(self, net: nn.Module, epoch: int, passes: Passes) -> EpochEnd:
        self.calls.append(f"epoch {epoch}")
        stats = self._move(passes)
        settled = epoch + 1 >= self.settle_at
        if epoch + 1 != SPLIT_AT:
            return EpochEnd(clusters=len(self.model.centroid_KD), objective=-float(stats.inertia), settled=settled)
        largest = int(stats.count_K.argmax())
        source = torch.tensor([*range(len(stats.count_K)), -1])
        last = net[2]
        with torch.no_grad():
            last.weight = nn.Parameter(last.weight[source.where(source >= 0, largest)])
            last.bias = nn.Parameter(last.bias[source.where(source >= 0, largest)])
        centroid_KD = torch.cat([self.model.centroid_KD, self.model.centroid_KD[largest : largest + 1] + 1.0])
        self._model = KMeans(self.model.config, centroid_KD, self.model.variance, self.model.inertia)
        move = Move("split", (largest, len(stats.count_K)), float("nan"), True, "it is time")
        return EpochEnd(
            Surgery({"2.weight": source, "2.bias": source}), (move,), len(centroid_KD), -float(stats.inertia), settled
        )

    def state(self) -> dict[str, Tensor]:
        return self.model.tensors()

    def load(self, state: Mapping[str, Tensor], net: nn.Module) -> None:
        self._model = kmeans.load(KMeansConfig(clusters=self.clusters), dict(state))
        net[2] = nn.Linear(8, len(self.model.centroid_KD))

    def clusterer(self, net: nn.Module) -> Clusterer:
        return self.model

    def _move(self, passes: Passes) -> KMeansStats:
        stats = passes.total(self.model.expect)
        update = self.model.maximize(stats, torch.Generator())
        assert isinstance(update.model, KMeans)
        self._model = update.model
        return stats
