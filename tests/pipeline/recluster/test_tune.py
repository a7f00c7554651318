"""DeepDPM tuned on arrivals and replay: what is new is found, what was there keeps its id."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from models.deepdpm.config import DeepDPMConfig
from models.deepdpm.model import DeepDPM
from models.deepdpm.objective import DeepDPMObjective
from models.increment import Held
from pipeline.cluster.config import ClusterConfig
from pipeline.recluster.tune import tuned
from pipeline.train.config import TrainConfig
from pipeline.train.trainer import train

ALGORITHM = DeepDPMConfig(initial_clusters=3, warmup=40, update=8, interval=20, freeze=10, axes=2)
CONFIG = ClusterConfig(algorithm=ALGORITHM, train=TrainConfig(batch_size=128, epochs=20))


def planted(rows: int, clusters: int, seed: int) -> tuple[Tensor, Tensor]:
    """Unit Gaussians 12 apart."""
    generator = torch.Generator().manual_seed(seed)
    centre_KD = 12 * torch.tensor([[(k >> d) & 1 for d in range(3)] for k in range(clusters)]).float()
    label_N = torch.arange(rows) % clusters
    return torch.randn(rows, 3, generator=generator) + centre_KD[label_N], label_N


@cache
def fitted() -> tuple[DeepDPM, Tensor]:
    """Of three clusters, and their rows."""
    x_ND, _ = planted(600, 3, seed=0)
    model = train(DeepDPMObjective(ALGORITHM), x_ND.numpy(), np.arange(600), CONFIG.train).model
    assert isinstance(model, DeepDPM)
    assert len(model.id_K) == 3
    return model.renamed(model.id_K + 10, 50), x_ND


def held_of(arrivals_ND: Tensor) -> Held:
    """Arrivals, and a sixth of the older rows, each of which stands for six."""
    model, x_ND = fitted()
    held_ND = torch.cat([arrivals_ND, x_ND[::6]])
    new_N = torch.arange(len(held_ND)) < len(arrivals_ND)
    weight_N = torch.where(new_N, 1.0, 6.0).double()
    return Held(held_ND, torch.arange(len(held_ND)), model.assign(held_ND).component_N, weight_N, new_N)


@pytest.mark.slow
def test_a_cluster_among_the_arrivals_is_found_and_the_others_keep_their_ids() -> None:
    (model, x_ND), (arrived_ND, label_N) = fitted(), planted(120, 4, seed=1)
    fit = tuned(CONFIG, model, held_of(arrived_ND))
    assert isinstance(fit.model, DeepDPM)
    assert sorted(fit.model.id_K.tolist()) == sorted([*model.id_K.tolist(), 50])
    assert fit.model.next_id == 51
    assert torch.equal(fit.model.assign(x_ND).cluster_N, model.assign(x_ND).cluster_N)
    found_N = fit.model.assign(arrived_ND).cluster_N
    assert adjusted_rand_score(label_N, found_N) == 1
    assert set(found_N[label_N == 3].tolist()) == {50}
    assert [move.clusters[1] for _, move in fit.moves if move.accepted and move.kind == "birth"] == [50]
    share_K = fit.model.mixture.log_weight_K.exp()
    assert float(share_K[fit.model.id_K == 50]) == pytest.approx(30 / 720, rel=0.4)  # not 30 of the 220 at hand


def test_arrivals_like_the_rows_before_change_no_cluster() -> None:
    (model, x_ND), (arrived_ND, _) = fitted(), planted(60, 3, seed=1)
    first, again = (tuned(CONFIG, model, held_of(arrived_ND), epochs=2) for _ in range(2))
    assert sorted(first.model.id_K.tolist()) == sorted(model.id_K.tolist())
    assert not [move for _, move in first.moves if move.accepted]
    assert torch.equal(first.model.assign(x_ND).cluster_N, model.assign(x_ND).cluster_N)
    tensors = again.model.tensors()
    assert all(torch.equal(value, tensors[name]) for name, value in first.model.tensors().items())


@pytest.mark.slow
def test_an_old_cluster_of_which_no_row_is_at_hand_lives_on() -> None:
    model, x_ND = fitted()
    held = held_of(planted(30, 2, seed=1)[0])
    gone = int(model.assign(x_ND[2:3]).component_N)
    fit = tuned(CONFIG, model, held[torch.nonzero(held.component_N != gone).flatten()], epochs=2)
    assert torch.equal(fit.model.assign(x_ND).cluster_N, model.assign(x_ND).cluster_N)
