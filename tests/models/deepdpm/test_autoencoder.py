"""DeepDPM in turns with an autoencoder, on the digits of scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

from models.clusterer import Clusterer, DataSummary
from models.deepdpm.autoencoder import AutoencodedDeepDPMConfig, AutoencodedDeepDPMObjective, load
from models.deepdpm.config import DeepDPMConfig
from models.errors import ShoalError
from models.objective import Objective, Plan, whole_batch
from pipeline.train.checkpoints import CheckpointStore
from pipeline.train.config import TrainConfig
from pipeline.train.result import Fit
from pipeline.train.trainer import train
from pipeline.train.world import Alone

CLUSTERS = DeepDPMConfig(initial_clusters=1, warmup=60, update=14, interval=60, freeze=30, axes=1, prior_scale=0.3)
CONFIG = AutoencodedDeepDPMConfig(
    clusters=CLUSTERS, widths=(64,), code=6, pretrain=200, features=60, cluster=600, turns=2, learning_rate=3e-3
)
TRAIN = TrainConfig(batch_size=256, epochs=250)


def digits() -> tuple[Tensor, np.ndarray]:
    x_ND, label_N = load_digits(return_X_y=True)
    return torch.from_numpy(x_ND).float(), label_N


def fitted(config: AutoencodedDeepDPMConfig, x_ND: Tensor, epochs: int, store: CheckpointStore | None = None) -> Fit:
    settings = TRAIN.model_copy(update={"epochs": epochs})
    return train(AutoencodedDeepDPMObjective(config), x_ND.numpy(), np.arange(len(x_ND)), settings, store=store)


@pytest.fixture(scope="module")
def fit() -> Fit:
    return fitted(CONFIG, digits()[0], TRAIN.epochs)


@pytest.mark.slow
def test_reconstruction_falls_while_features_are_learned_and_k_grows(fit: Fit) -> None:
    error = [scalars["reconstruction"] for scalars in fit.scalars]
    assert error[-1] < 0.6 * error[0]
    assert {"cluster", "subcluster", "reconstruction", "loss"} <= fit.scalars[-1].keys()
    assert any("pull" in scalars for scalars in fit.scalars)
    count = [each.clusters for each in fit.history]
    assert count[0] == 1
    assert 6 <= count[-1] <= 20


@pytest.mark.slow
def test_the_codes_cluster_by_digit(fit: Fit) -> None:
    x_ND, label_N = digits()
    assert isinstance(fit.model, Clusterer)
    assert normalized_mutual_info_score(label_N, fit.model.assign(x_ND).cluster_N) > 0.6


@pytest.mark.slow
def test_a_saved_model_assigns_as_before(fit: Fit) -> None:
    x_ND = digits()[0][:300]
    again = load(CONFIG, safetensors.torch.load(safetensors.torch.save(fit.model.tensors())))
    for name, value in vars(fit.model.assign(x_ND)).items():
        assert torch.equal(vars(again.assign(x_ND))[name], value), name
    assert again.dim == 64
    with pytest.raises(ShoalError, match=r"5-d .* 64-d"):
        again.assign(torch.zeros(3, 5))


@pytest.mark.slow
def test_a_row_is_assigned_alike_in_any_company(fit: Fit) -> None:
    x_ND = digits()[0][:50]
    whole = fit.model.assign(x_ND)
    assert torch.equal(torch.cat([fit.model.assign(row[None]).cluster_N for row in x_ND]), whole.cluster_N)


@pytest.mark.slow
def test_more_rows_are_folded_in_without_training(fit: Fit) -> None:
    x_ND = digits()[0]
    update = fit.model.maximize(fit.model.expect(x_ND, torch.arange(len(x_ND))), torch.Generator())
    assert np.isfinite(update.objective)
    assert torch.equal(update.model.id_K, fit.model.id_K)


def test_every_phase_trains_its_own_part_only() -> None:
    x_ND = digits()[0][:200]
    objective = AutoencodedDeepDPMObjective(CONFIG)
    summary = DataSummary(200, x_ND.double().mean(dim=0), torch.cov(x_ND.double().T, correction=0), x_ND, seed=0)
    net = objective.build(summary, Plan(200, 1, 1))
    objective.loss(net, whole_batch((x_ND,), torch.arange(200)), 0, Alone()).total.backward()
    assert all(parameter.grad is None for parameter in net.clusters.parameters())


def test_is_an_objective() -> None:
    assert isinstance(AutoencodedDeepDPMObjective(CONFIG), Objective)


def test_a_run_goes_on_from_any_phase(tmp_path: Path) -> None:
    x_ND = digits()[0][:512]
    config = CONFIG.model_copy(update={"pretrain": 6, "features": 4, "cluster": 12, "turns": 3})
    whole = fitted(config, x_ND, 30).model.tensors()
    for stop in (2, 5, 8, 11, 14, 30):
        again = fitted(config, x_ND, stop, CheckpointStore(tmp_path, "run")).model.tensors()
    assert all(torch.equal(again[name], value) for name, value in whole.items())
