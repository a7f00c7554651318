from __future__ import annotations

import pytest
import torch
from scipy.stats import t as student

from models.dpm.students import IndependentStudents


def _densities() -> IndependentStudents:
    generator = torch.Generator().manual_seed(0)
    mean_KD = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    scale_KD = 0.5 + torch.rand(3, 2, generator=generator, dtype=torch.float64)
    return IndependentStudents(torch.ones(2).double(), mean_KD, scale_KD, torch.tensor([1.0, 3.5, 80.0]).double())


def test_log_density_is_a_product_over_dimensions() -> None:
    density, x_ND = _densities(), torch.randn(5, 2, generator=torch.Generator().manual_seed(1))
    log_NK = density.log_density(x_ND)
    for k in range(3):
        loc_D, scale_D = (1 + density.mean_KD[k]).numpy(), density.chol_KDD[k].numpy()
        expected_ND = student.logpdf(x_ND.double().numpy(), df=float(density._degrees_K[k]), loc=loc_D, scale=scale_D)
        assert log_NK[:, k].tolist() == pytest.approx(expected_ND.sum(axis=1).tolist(), abs=1e-10)


def test_candidates_get_the_same_densities() -> None:
    density, x_ND = _densities(), torch.randn(6, 2, generator=torch.Generator().manual_seed(1))
    component_NC = torch.tensor([[0, 2], [1, 0], [2, 1], [0, 1], [1, 2], [2, 0]])
    expected_NC = density.log_density(x_ND).gather(1, component_NC)
    torch.testing.assert_close(density.log_density_at(x_ND, component_NC), expected_NC)


def test_selection_keeps_the_law() -> None:
    density, x_ND = _densities(), torch.randn(4, 2, generator=torch.Generator().manual_seed(1))
    chosen = density[torch.tensor([2, 0])].to("cpu")
    assert isinstance(chosen, IndependentStudents)
    torch.testing.assert_close(chosen.log_density(x_ND), density.log_density(x_ND)[:, [2, 0]])
