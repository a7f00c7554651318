"""The registry names every algorithm once, and its settings choose among them."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from models.clusterer import Clusterer, DataSummary
from models.gmm import GMM, GMMConfig
from models.kmeans import KMeans, KMeansConfig
from models.registry import ALGORITHMS, ClustererConfig, load, start

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


@pytest.mark.parametrize(("kind", "config", "model"), [("kmeans", KMeansConfig, KMeans), ("gmm", GMMConfig, GMM)])
def test_settings_as_data_choose_the_algorithm(kind: str, config: type, model: type) -> None:
    settings = SETTINGS.validate_python({"kind": kind, "clusters": 3})
    assert type(settings) is config
    first = start(settings, summary())
    assert type(first) is model
    assert isinstance(first, Clusterer)
    assert type(load(settings, first.tensors())) is model


def test_settings_survive_json() -> None:
    settings = GMMConfig(clusters=3, tolerance=0.5)
    assert SETTINGS.validate_json(SETTINGS.dump_json(settings)) == settings


@pytest.mark.parametrize("settings", [{"kind": "kmean", "clusters": 3}, {"clusters": 3}, {"kind": "gmm", "cluster": 3}])
def test_unknown_kinds_and_keys_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SETTINGS.validate_python(settings)
