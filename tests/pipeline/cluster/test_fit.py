from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.dpm.config import DPMConfig
from models.errors import ShoalError
from models.kmeans import KMeansConfig
from pipeline.cluster.cluster import fit_array
from pipeline.cluster.config import ClusterConfig
from pipeline.cluster.fit import FitConfig, fit, summarize, total


def _rows(count: int = 600, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x_ND = (rng.standard_normal((count, 3)) + 12 * rng.integers(0, 2, (count, 3))).astype(np.float32)
    return x_ND, rng.integers(-(2**62), 2**62, count)


@settings(max_examples=20)
@given(block=st.integers(1, 700))
def test_summary_does_not_depend_on_blocks(block: int) -> None:
    x_ND, row_N = _rows()
    whole, parts = (summarize(x_ND, row_N, FitConfig(block_rows=size, sample_rows=100)) for size in (600, block))
    torch.testing.assert_close(parts.covariance_DD, whole.covariance_DD, rtol=1e-10, atol=1e-12)
    assert torch.equal(parts.sample_MD, whole.sample_MD)


def test_the_sample_does_not_depend_on_the_order_of_rows() -> None:
    x_ND, row_N = _rows()
    order_N = np.random.default_rng(1).permutation(len(x_ND))
    config = FitConfig(sample_rows=50)
    here, there = summarize(x_ND, row_N, config), summarize(x_ND[order_N], row_N[order_N], config)
    assert torch.equal(here.sample_MD, there.sample_MD)
    np.testing.assert_allclose(here.mean_D, x_ND.astype(np.float64).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(here.covariance_DD, np.cov(x_ND.astype(np.float64).T, bias=True), rtol=1e-9)


@pytest.mark.parametrize("algorithm", [DPMConfig(), KMeansConfig(clusters=8)], ids=lambda each: each.kind)
def test_the_order_of_rows_does_not_change_their_clusters(algorithm: DPMConfig | KMeansConfig) -> None:
    x_ND, row_N = _rows()
    order_N = np.random.default_rng(1).permutation(len(x_ND))
    labels = []
    for order in (np.arange(len(x_ND)), order_N):
        model = fit(algorithm, x_ND[order], row_N[order], FitConfig()).model
        labels.append(model.assign(torch.from_numpy(x_ND)).cluster_N)
    assert torch.equal(labels[0], labels[1])
    assert len(labels[0].unique()) == 8


def test_statistics_are_those_of_the_final_model() -> None:
    x_ND, row_N = _rows()
    found = fit(DPMConfig(), x_ND, row_N, FitConfig())
    again = total(found.model, x_ND, row_N, 100)
    for name, value in found.stats.tensors().items():
        torch.testing.assert_close(value, again.tensors()[name], rtol=1e-9, atol=1e-9)


def test_running_out_of_passes_is_said() -> None:
    x_ND, row_N = _rows()
    found = fit(DPMConfig(), x_ND, row_N, FitConfig(max_passes=2))
    assert not found.settled
    assert len(found.history) == 2


def test_no_rows_is_a_sentence() -> None:
    with pytest.raises(ShoalError, match="0 embeddings but a fit needs at least 1"):
        fit_array(np.empty((0, 4), np.float32), ClusterConfig())
