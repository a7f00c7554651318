"""The search on the sample: where it starts, what it finds by births, and that it comes to an end."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from models.clusterer import DataSummary
from models.dpm.config import DPMConfig
from models.dpm.mixture import DPM, start
from models.dpm.moves import log_joint
from models.dpm.population import Progress
from pipeline.cluster.fit import FitConfig, fit, summarize


def _clouds(rows: int, clouds: int, apart: float, dim: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator, label_N = torch.Generator().manual_seed(seed), torch.arange(rows) % clouds
    mean_KD = apart * torch.randn(clouds, dim, generator=generator)
    return torch.randn(rows, dim, generator=generator) + mean_KD[label_N], label_N


def _summary(x_ND: Tensor, seed: int = 0) -> DataSummary:
    covariance_DD = torch.cov(x_ND.double().T, correction=0).reshape(x_ND.shape[1], -1)
    return DataSummary(len(x_ND), x_ND.double().mean(dim=0), covariance_DD, x_ND, seed)


def _opened(x_ND: Tensor, seed: int = 0, **settings: object) -> DPM:
    return start(DPMConfig.model_validate(settings), _summary(x_ND, seed))


@pytest.mark.parametrize("initial", [1, 60, None])
def test_the_sample_alone_shows_separated_clusters(initial: int | None) -> None:
    x_ND, label_N = _clouds(1200, 12, 20.0)
    model = _opened(x_ND, initial_clusters=initial)
    assert adjusted_rand_score(label_N, model.assign(x_ND).cluster_N) == 1
    kinds = Counter(move.kind for move in model.opening if move.accepted)
    assert kinds["birth" if initial == 1 else "merge"] > 0
    if initial == 1:
        born = {move.clusters[1] for move in model.opening if move.kind == "birth" and move.accepted}
        assert {identity for identity in model.id_K.tolist() if identity} <= born


def test_without_attempts_nothing_is_born() -> None:
    x_ND, _ = _clouds(600, 6, 20.0)
    model = _opened(x_ND, initial_clusters=1, attempts=0)
    assert len(model.id_K) == 1
    assert not any(move.kind == "birth" for move in model.opening)


def test_births_raise_the_log_joint_by_what_they_say() -> None:
    """Seen from outside: two opened models of one cluster, without and with births, compared under one fixed prior."""
    x_ND, _ = _clouds(600, 2, 20.0)
    before = _opened(x_ND, initial_clusters=1, attempts=0, prior_scale=0.1)
    after = _opened(x_ND, initial_clusters=1, prior_scale=0.1)
    (birth,) = [move for move in after.opening if move.kind == "birth" and move.accepted]
    value = [
        log_joint(model.population.prior, 10.0, model.expect(x_ND, torch.arange(600)).sets) for model in (before, after)
    ]
    assert value[1] - value[0] == pytest.approx(birth.log_ratio, rel=1e-9)


def test_fewer_outliers_than_min_size_are_not_born_again_and_again() -> None:
    """They would die for their number at once, and the search would play all its rounds."""
    x_ND, _ = _clouds(400, 2, 15.0, dim=2)
    far_nD = 200 + torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    model = _opened(torch.cat([x_ND, far_nD]), min_size=5)
    assert sum(move.kind == "birth" and move.accepted for move in model.opening) <= 4
    enough = _opened(torch.cat([x_ND, far_nD]), min_size=4)
    assert len(enough.id_K) == len(model.id_K) + 1


def test_a_fit_tells_the_opening_before_its_first_pass() -> None:
    x_ND, _ = _clouds(400, 4, 20.0)
    rows, config = torch.arange(400).numpy(), FitConfig()
    result = fit(DPMConfig(), x_ND.numpy(), rows, config)
    model = start(DPMConfig(), summarize(x_ND.numpy(), rows, config))
    count = len(model.opening)
    assert count > 0
    assert [number for number, _ in result.moves[:count]] == [0] * count
    assert [move.clusters for _, move in result.moves[:count]] == [move.clusters for move in model.opening]
    update = model.maximize(model.expect(x_ND, torch.arange(400)), torch.Generator())
    assert isinstance(update.model, DPM)
    assert update.model.opening == ()


def test_the_search_begins_afresh_on_all_rows() -> None:
    x_ND, _ = _clouds(400, 4, 20.0)
    population = _opened(x_ND).population
    assert population.progress == replace(Progress(), fitted=4)
    assert len(population.trial_J) == 0
    assert population.axis_K.tolist() == [0] * 4
    assert population.next_id > int(population.id_K.max())


def test_the_opening_depends_on_the_seed_alone() -> None:
    x_ND, _ = _clouds(500, 5, 2.0)
    first = _opened(x_ND)
    torch.manual_seed(99)
    again = _opened(x_ND)
    assert all(torch.equal(again.tensors()[name], value) for name, value in first.tensors().items())
    assert again.opening == first.opening
    assert _opened(x_ND, seed=1).opening != first.opening


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("initial", [1, None])
def test_very_few_rows_open_as_one_cluster(rows: int, initial: int | None) -> None:
    model = _opened(_clouds(rows, 1, 0.0)[0], initial_clusters=initial)
    assert len(model.id_K) == 1
    assert model.population.log_weight_K.tolist() == [0.0]


def test_only_the_first_rows_of_a_large_sample_are_kept_for_the_grouping() -> None:
    x_ND, _ = _clouds(17_000, 2, 20.0, dim=2)
    assert _opened(x_ND, initial_clusters=2, attempts=0).sample_MD.shape == (16_384, 2)
