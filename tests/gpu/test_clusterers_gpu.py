"""On CUDA a Clusterer gives what it gives on the CPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.clusterer import Clusterer, DataSummary
from models.dpm.config import DPMConfig
from models.dpm.mixture import DPM
from models.gaussians import Gaussians
from models.gmm import GMMConfig
from models.kmeans import KMeansConfig
from models.neighbors import kmeans_seeds, nearest, squared_distances
from models.registry import ALGORITHMS, ClustererConfig, start

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]
CONFIGS: dict[str, ClustererConfig] = {
    "kmeans": KMeansConfig(clusters=4),
    "gmm": GMMConfig(clusters=4),
    "dpm": DPMConfig(),
}


def planted() -> Tensor:
    x_ND = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0))
    return x_ND + 12 * torch.eye(8)[torch.arange(2000) % 4]


def summarise(x_ND: Tensor) -> DataSummary:
    return DataSummary(len(x_ND), x_ND.double().mean(dim=0), torch.cov(x_ND.double().T, correction=0), x_ND, seed=0)


def fit(model: Clusterer, x_ND: Tensor) -> Clusterer:
    rng = torch.Generator().manual_seed(0)
    for _ in range(60):
        row_N = torch.arange(len(x_ND), device=x_ND.device)
        update = model.maximize(model.expect(x_ND[:999], row_N[:999]) + model.expect(x_ND[999:], row_N[999:]), rng)
        model = update.model
        if update.settled:
            break
    return model


@pytest.mark.parametrize("kind", [kind for kind, algorithm in ALGORITHMS.items() if algorithm.start])
def test_a_fit_on_cuda_is_the_fit_on_the_cpu(kind: str) -> None:
    x_ND = planted()
    on_cpu = summarise(x_ND)
    on_gpu = replace(
        on_cpu,
        mean_D=on_cpu.mean_D.cuda(),
        covariance_DD=on_cpu.covariance_DD.cuda(),
        sample_MD=on_cpu.sample_MD.cuda(),
    )
    expected = fit(start(CONFIGS[kind], on_cpu), x_ND).assign(x_ND)
    found = fit(start(CONFIGS[kind], on_gpu), x_ND.cuda()).assign(x_ND.cuda())
    pairs = set(zip(found.cluster_N.tolist(), expected.cluster_N.tolist(), strict=True))
    assert len(pairs) == 4  # one to one: seeds on a GPU may come in another order
    torch.testing.assert_close(found.probability_N.cpu(), expected.probability_N, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.score_N.cpu(), expected.score_N, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("candidates", [None, 2])
def test_a_sweep_of_the_mixture_on_cuda_sums_what_it_sums_on_the_cpu(candidates: int | None) -> None:
    x_ND = planted()
    config = DPMConfig(candidates=candidates, initial_clusters=4, attempts=0)
    model = start(config, summarise(x_ND))
    assert isinstance(model, DPM)
    assert (len(model.id_K) > config.evaluated(8)) == (candidates == 2)
    expected = model.expect(x_ND, torch.arange(2000)).tensors()
    for name, value in model.expect(x_ND.cuda(), torch.arange(2000).cuda()).tensors().items():
        assert value.is_cuda
        torch.testing.assert_close(value.cpu(), expected[name], rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("degrees", [None, 5.0])
@pytest.mark.parametrize("diagonal", [False, True])
def test_densities_on_cuda_are_those_on_the_cpu(degrees: float | None, diagonal: bool) -> None:
    x_ND = planted()
    chol_KDD = 2 * (torch.ones(3, 8) if diagonal else torch.eye(8).repeat(3, 1, 1)).double()
    degrees_K = None if degrees is None else torch.full((3,), degrees).double()
    gaussians = Gaussians(torch.zeros(8).double(), x_ND[:3].double(), chol_KDD, degrees_K)
    component_NC = (torch.arange(2000)[:, None] + torch.arange(2)) % 3
    there = gaussians.to("cuda")
    expected_NK = gaussians.log_density(x_ND)
    torch.testing.assert_close(there.log_density(x_ND.cuda()).cpu(), expected_NK, rtol=1e-9, atol=1e-9)
    single_NK = there.log_density(x_ND.cuda(), single=True).cpu()
    torch.testing.assert_close(single_NK, expected_NK, rtol=1e-4, atol=1e-3)
    at_NC = there.log_density_at(x_ND.cuda(), component_NC.cuda()).cpu()
    torch.testing.assert_close(at_NC, expected_NK.gather(1, component_NC), rtol=1e-4, atol=1e-3)


def test_neighbours_on_cuda_are_those_on_the_cpu() -> None:
    x_ND, centroid_KD = planted(), planted()[:50]
    squared_N5, index_N5 = nearest(x_ND, centroid_KD, 5)
    on_gpu_N5, gpu_index_N5 = nearest(x_ND.cuda(), centroid_KD.cuda(), 5)
    assert gpu_index_N5.is_cuda
    torch.testing.assert_close(on_gpu_N5.cpu(), squared_N5, rtol=1e-3, atol=1e-3)
    assert (gpu_index_N5.cpu() == index_N5).float().mean() > 0.99


def test_exact_distances_on_cuda_are_those_on_the_cpu() -> None:
    x_ND, centroid_KD = planted(), planted()[:50].double()
    torch.testing.assert_close(
        squared_distances(x_ND.cuda(), centroid_KD.cuda()).cpu(), squared_distances(x_ND, centroid_KD)
    )


def test_seeds_on_cuda_find_the_planted_centres() -> None:
    seed_KD = kmeans_seeds(planted().cuda(), 4, seed=0)
    assert seed_KD.is_cuda
    assert nearest(12 * torch.eye(8)[:4], seed_KD.cpu(), 1)[0].max() < 0.1
