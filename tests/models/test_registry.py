"""The registry names every algorithm once, and its settings choose among them."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from models.clusterer import Clusterer, DataSummary
from models.deepdpm.config import DeepDPMConfig
from models.dpm.config import DPMConfig
from models.dpm.mixture import DPM
from models.errors import ShoalError
from models.gmm import GMM, GMMConfig
from models.kmeans import KMeans, KMeansConfig
from models.objective import Objective
from models.registry import ALGORITHMS, ClustererConfig, load, start
from models.swav.config import PrototypesConfig

SETTINGS = TypeAdapter(ClustererConfig)


def summary() -> DataSummary:
    x_ND = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    return DataSummary(40, x_ND.double().mean(dim=0), torch.cov(x_ND.double().T, correction=0), x_ND, seed=0)


def test_the_union_of_settings_and_the_list_of_algorithms_agree() -> None:
    members = set(get_args(get_args(ClustererConfig)[0]))
    assert members == {algorithm.config for algorithm in ALGORITHMS.values()}


@pytest.mark.parametrize("kind", ALGORITHMS)
def test_an_algorithm_is_listed_under_the_kind_of_its_settings(kind: str) -> None:
    assert ALGORITHMS[kind].config.model_fields["kind"].default == kind


@pytest.mark.parametrize(
    ("settings", "config", "model"),
    [
        ({"kind": "kmeans", "clusters": 3}, KMeansConfig, KMeans),
        ({"kind": "gmm", "clusters": 3}, GMMConfig, GMM),
        ({"kind": "dpm", "grouping": {"valley": 2.0}}, DPMConfig, DPM),
    ],
)
def test_settings_as_data_choose_the_algorithm(settings: object, config: type, model: type) -> None:
    settings = SETTINGS.validate_python(settings)
    assert type(settings) is config
    first = start(settings, summary())
    assert type(first) is model
    assert isinstance(first, Clusterer)
    assert type(load(settings, first.tensors())) is model


@pytest.mark.parametrize("kind", sorted(ALGORITHMS.keys() - {"prototypes"}))
def test_an_algorithm_is_either_fitted_in_passes_or_trained_by_gradient(kind: str) -> None:
    algorithm = ALGORITHMS[kind]
    assert (algorithm.start is None) != (algorithm.objective is None)


def test_what_is_trained_by_gradient_has_an_objective_and_no_start() -> None:
    algorithm = ALGORITHMS["deepdpm"]
    assert algorithm.objective is not None
    assert isinstance(algorithm.objective(DeepDPMConfig()), Objective)
    with pytest.raises(ShoalError, match="deepdpm is trained by gradient, not fitted in passes"):
        start(DeepDPMConfig(), summary())


def test_prototypes_come_with_a_backbone_and_are_only_loaded() -> None:
    algorithm = ALGORITHMS["prototypes"]
    assert algorithm.start is algorithm.objective is None
    with pytest.raises(ShoalError, match="prototypes are learned together with a backbone, by `shoal train`"):
        start(PrototypesConfig(), summary())


@pytest.mark.parametrize(
    "settings",
    [
        GMMConfig(clusters=3, tolerance=0.5),
        DPMConfig(grouping=None, covariance="tied"),
        DeepDPMConfig(hidden=7),
        PrototypesConfig(temperature=0.2),
    ],
)
def test_settings_survive_json(settings: ClustererConfig) -> None:
    assert SETTINGS.validate_json(SETTINGS.dump_json(settings)) == settings


@pytest.mark.parametrize("settings", [{"kind": "kmean", "clusters": 3}, {"clusters": 3}, {"kind": "gmm", "cluster": 3}])
def test_unknown_kinds_and_keys_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SETTINGS.validate_python(settings)
