"""The fitted DeepDPM as a Clusterer: what contract A promises, on a model that nothing about is certain."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.clusterer import NOISE, Clusterer
from models.deepdpm.config import DeepDPMConfig
from models.deepdpm.mixture import Mixture
from models.deepdpm.model import DeepDPM, MixtureStats, load
from models.dpm.prior import NIW
from models.errors import ShoalError
from models.gaussians import Gaussians
from models.increment import Held
from models.moments import weighted_moments

CONFIG = DeepDPMConfig(candidates=4)


def rows(count: int, seed: int = 1) -> Tensor:
    return 2 * torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))


def overlapping() -> DeepDPM:
    mean_KD = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 1.0, 0.0], [0.0, -1.0, 1.0]]).double()
    prior = NIW(torch.tensor([0.1, 0.2, -0.3]).double(), 1.0, 5.0, torch.eye(3).double())
    gaussians = Gaussians(prior.mean_D, mean_KD, 1.5 * torch.eye(3).double().repeat(3, 1, 1))
    mixture = Mixture(torch.tensor([4, 0, 7]), torch.tensor([0.5, 0.3, 0.2]).double().log(), gaussians)
    return DeepDPM(CONFIG, prior, mixture, {"last.bias": torch.zeros(3)})


def total(model: DeepDPM, x_ND: Tensor, size: int) -> MixtureStats:
    first, *rest = (model.expect(x_nD, torch.arange(len(x_nD))) for x_nD in x_ND.split(size))
    return sum(rest, start=first)


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], relative: float) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        if relative == 0:
            assert torch.equal(actual[name], value), name
            continue
        tolerance = relative * max(1e-300, float(value.double().abs().max()))
        torch.testing.assert_close(actual[name], value, rtol=relative, atol=tolerance)


def test_is_a_clusterer_with_ids_and_a_dimension() -> None:
    model = overlapping()
    assert isinstance(model, Clusterer)
    assert (model.dim, model.id_K.tolist()) == (3, [4, 0, 7])


@settings(max_examples=15)
@given(cut=st.integers(0, 200))
@example(cut=0)
def test_statistics_of_two_parts_add_up(cut: int) -> None:
    model, x_ND = overlapping(), rows(200)
    parts = model.expect(x_ND[:cut], torch.arange(cut)) + model.expect(x_ND[cut:], torch.arange(200 - cut))
    assert_close(parts.tensors(), model.expect(x_ND, torch.arange(200)).tensors(), 1e-9)


@pytest.mark.parametrize("size", [1, 7])
def test_blocks_do_not_matter(size: int) -> None:
    model, x_ND = overlapping(), rows(203)
    assert_close(total(model, x_ND, size).tensors(), total(model, x_ND, 1000).tensors(), 1e-9)
    found, parts = model.assign(x_ND), [model.assign(part) for part in x_ND.split(size)]
    for name, value in vars(found).items():
        torch.testing.assert_close(torch.cat([vars(part)[name] for part in parts]), value)


def test_an_em_step_is_the_weighted_posterior_mode() -> None:
    model, x_ND = overlapping(), rows(300)
    update = model.maximize(model.expect(x_ND, torch.arange(300)), torch.Generator())
    weight_NK = model.mixture.log_joint(x_ND).softmax(dim=1)
    expected = model.prior.mode(weighted_moments(x_ND, weight_NK, model.prior.mean_D))
    assert isinstance(update.model, DeepDPM)
    torch.testing.assert_close(update.model.mixture.gaussians.mean_KD, expected.mean_KD)
    torch.testing.assert_close(update.model.mixture.gaussians.chol_KDD, expected.chol_KDD)
    torch.testing.assert_close(update.model.mixture.log_weight_K.exp(), weight_NK.mean(dim=0))
    assert update.objective == pytest.approx(float(model.mixture.log_joint(x_ND).logsumexp(dim=1).sum()))


def test_em_settles_and_the_likelihood_rises() -> None:
    model, x_ND, objectives = overlapping(), rows(300), []
    for _ in range(100):
        update = model.maximize(total(model, x_ND, 100), torch.Generator())
        model = update.model
        objectives.append(update.objective)
        if update.settled:
            break
    assert update.settled
    assert len(objectives) > 2
    assert objectives[-1] > objectives[0]


def test_a_saved_model_assigns_and_learns_as_before() -> None:
    model, x_ND = overlapping(), rows(100)
    again = load(CONFIG, safetensors.torch.load(safetensors.torch.save(model.tensors())))
    assert_close(again.tensors(), model.tensors(), 0.0)
    for name, value in vars(model.assign(x_ND)).items():
        assert torch.equal(vars(again.assign(x_ND))[name], value)
    stats = model.expect(x_ND, torch.arange(100))
    back = stats.with_tensors(safetensors.torch.load(safetensors.torch.save(stats.tensors())))
    before, after = model.maximize(stats, torch.Generator()), again.maximize(back, torch.Generator())
    assert_close(after.model.tensors(), before.model.tensors(), 0.0)


def test_no_method_changes_the_model_or_the_statistics() -> None:
    model, x_ND = overlapping(), rows(100)
    stats = model.expect(x_ND, torch.arange(100))
    tensors = {name: value.clone() for name, value in {**model.tensors(), **stats.tensors()}.items()}
    model.assign(x_ND)
    _ = stats + stats
    model.maximize(stats, torch.Generator())
    assert_close({**model.tensors(), **stats.tensors()}, tensors, 0.0)


def test_assignments_are_sensible_also_of_no_rows() -> None:
    model = overlapping()
    found = model.assign(rows(500))
    assert torch.equal(model.id_K[found.component_N], found.cluster_N)
    assert set(found.cluster_N.tolist()) == {4, 0, 7}
    assert (found.runner_up_N != found.cluster_N).all()
    assert NOISE not in found.runner_up_N
    assert ((found.probability_N > 1 / 3 - 1e-6) & (found.probability_N <= 1)).all()
    assert model.assign(torch.empty(0, 3)).cluster_N.shape == (0,)


@pytest.mark.parametrize("method", ["expect", "assign"])
def test_rows_of_another_dimension_are_refused_with_both_numbers(method: str) -> None:
    model, x_ND = overlapping(), torch.zeros(4, 5)
    with pytest.raises(ShoalError, match=r"5-d .* 3-d"):
        model.expect(x_ND, torch.arange(4)) if method == "expect" else model.assign(x_ND)


def test_it_is_tuned_and_not_refined() -> None:
    model, x_ND = overlapping(), rows(3)
    none_N = torch.zeros(3, dtype=torch.int64)
    held = Held(x_ND, none_N, none_N, none_N.double(), none_N.bool())
    with pytest.raises(ShoalError, match="tune"):
        model.refined(held, model.expect(x_ND, none_N), x_ND, torch.Generator())
