"""Assignments from log joint densities: by hand, and against a plain version in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models import posterior
from models.clusterer import NOISE, Assignment
from models.posterior import best_two, most_probable, posterior_assignment


def _log(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


JOINT_NK = _log([[0.06, 0.03, 0.05], [0.10, 0.30, 0.00]])
LOG_WEIGHT_K = _log([[0.2, 0.3, 0.5]])[0]


def test_by_hand_when_every_component_is_a_cluster() -> None:
    found = posterior_assignment(JOINT_NK, None, LOG_WEIGHT_K, torch.tensor([7, 3, 9]))
    assert found.cluster_N.tolist() == [7, 3]
    assert found.component_N.tolist() == [0, 1]
    assert found.runner_up_N.tolist() == [9, 7]
    assert found.probability_N.tolist() == pytest.approx([0.06 / 0.14, 0.75])
    assert found.score_N.tolist() == pytest.approx([math.log(0.06 / 0.2), math.log(0.30 / 0.3)], abs=1e-6)


def test_by_hand_when_two_components_are_one_cluster() -> None:
    """Components 1 and 2 are cluster 3: of the first row .03 + .05 beats .06, and .05 is the larger part of it."""
    found = posterior_assignment(JOINT_NK, None, LOG_WEIGHT_K, torch.tensor([7, 3, 3]))
    assert found.cluster_N.tolist() == [3, 3]
    assert found.component_N.tolist() == [2, 1]
    assert found.runner_up_N.tolist() == [7, 7]
    assert found.probability_N.tolist() == pytest.approx([0.08 / 0.14, 0.75])
    assert found.score_N.tolist() == pytest.approx([math.log(0.08 / 0.8), math.log(0.30 / 0.8)], abs=1e-6)


def test_one_cluster_of_all_components_has_no_runner_up() -> None:
    found = posterior_assignment(JOINT_NK, None, LOG_WEIGHT_K, torch.tensor([4, 4, 4]))
    assert found.cluster_N.tolist() == [4, 4]
    assert found.runner_up_N.tolist() == [NOISE, NOISE]
    assert found.probability_N.tolist() == [1.0, 1.0]
    assert found.score_N.tolist() == pytest.approx([math.log(0.14), math.log(0.40)], abs=1e-6)


def test_a_cluster_of_no_probability_is_no_runner_up() -> None:
    found = posterior_assignment(_log([[0.2, 0.0]]), None, _log([[0.5, 0.5]])[0], torch.tensor([1, 2]))
    assert found.runner_up_N.tolist() == [NOISE]


def _brute(joint_NK: Tensor, log_weight_K: Tensor, id_K: Tensor) -> list[tuple[int, int, float, int, float]]:
    """Row by row, from probabilities rather than logarithms; (cluster, component, probability, runner-up, score)."""
    rows = []
    for joint_K in joint_NK.numpy():
        mass = {int(i): float(np.exp(joint_K[(id_K == i).numpy()]).sum()) for i in id_K.unique()}
        ranked = sorted(mass, key=lambda i: -mass[i])
        own_K = (id_K == ranked[0]).numpy()
        component = int(np.where(own_K, joint_K, -np.inf).argmax())
        weight = float(np.exp(log_weight_K.numpy()[own_K]).sum())
        second = next((i for i in ranked[1:] if mass[i] > 0), NOISE)
        rows.append(
            (ranked[0], component, mass[ranked[0]] / sum(mass.values()), second, math.log(mass[ranked[0]] / weight))
        )
    return rows


def _assert_agrees(found: Assignment, expected: list[tuple[int, int, float, int, float]]) -> None:
    cluster, component, probability, second, score = (list(column) for column in zip(*expected, strict=True))
    assert found.cluster_N.tolist() == cluster
    assert found.component_N.tolist() == component
    assert found.runner_up_N.tolist() == second
    assert found.probability_N.tolist() == pytest.approx(probability, rel=1e-5)
    assert found.score_N.tolist() == pytest.approx(score, rel=1e-5, abs=1e-5)


@settings(max_examples=60)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 8), ids=st.lists(st.integers(0, 4), min_size=1, max_size=7))
def test_dense_and_candidate_forms_agree_with_a_plain_version(seed: int, rows: int, ids: list[int]) -> None:
    generator, count, id_K = torch.Generator().manual_seed(seed), len(ids), torch.tensor(ids)
    joint_NK = 3 * torch.randn(rows, count, generator=generator, dtype=torch.float64)
    log_weight_K = torch.rand(count, generator=generator, dtype=torch.float64).log()
    _assert_agrees(posterior_assignment(joint_NK, None, log_weight_K, id_K), _brute(joint_NK, log_weight_K, id_K))
    candidates = int(torch.randint(1, count + 1, (), generator=generator))
    component_NC = torch.rand(rows, count, generator=generator).argsort(dim=1)[:, :candidates]
    seen_NK = torch.full_like(joint_NK, -torch.inf).scatter(1, component_NC, joint_NK.gather(1, component_NC))
    found = posterior_assignment(joint_NK.gather(1, component_NC), component_NC, log_weight_K, id_K)
    _assert_agrees(found, _brute(seen_NK, log_weight_K, id_K))


def test_tables_of_many_rows_are_made_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    generator, id_K = torch.Generator().manual_seed(0), torch.tensor([5, 2, 5, 8])
    joint_NK = torch.randn(23, 4, generator=generator, dtype=torch.float64)
    weight_K = _log([[0.1, 0.2, 0.3, 0.4]])[0]
    whole = posterior_assignment(joint_NK, None, weight_K, id_K)
    monkeypatch.setattr(posterior, "_CELLS", 15)  # five rows of three clusters
    for name, value in vars(posterior_assignment(joint_NK, None, weight_K, id_K)).items():
        assert torch.equal(value, vars(whole)[name]), name


@pytest.mark.parametrize("ids", [[0, 1, 2], [0, 1, 1]])
def test_no_rows_are_no_assignments(ids: list[int]) -> None:
    found = posterior_assignment(torch.empty(0, 3).double(), None, LOG_WEIGHT_K, torch.tensor(ids))
    assert [len(value) for value in vars(found).values()] == [0] * 5


def test_far_rows_do_not_underflow() -> None:
    """Log densities near -1e5, whose exponentials are all 0, differ by 1 and 3."""
    joint_NK = torch.tensor([[-1e5, -1e5 - 1, -1e5 - 3]], dtype=torch.float64)
    found = posterior_assignment(joint_NK, None, LOG_WEIGHT_K, torch.tensor([0, 1, 1]))
    rest = math.exp(-1) + math.exp(-3)
    assert found.cluster_N.tolist() == [0]
    assert found.probability_N.tolist() == pytest.approx([1 / (1 + rest)])


def test_what_agrees_to_rounding_goes_to_the_first() -> None:
    joint_NK = torch.tensor([[1.0, 1.0 + 1e-12, 0.0], [1.0, 1.0 + 1e-6, 0.0]], dtype=torch.float64)
    assert most_probable(joint_NK).tolist() == [0, 1]


def test_the_next_best_is_the_value_that_was_not_chosen() -> None:
    joint_NK = torch.tensor([[1.0, 1.0 + 1e-12, 0.0], [5.0, -1.0, 3.0]], dtype=torch.float64)
    best_N, second_N = best_two(joint_NK)
    assert best_N.tolist() == [0, 0]
    assert second_N.tolist() == [1.0 + 1e-12, 3.0]
    alone_N, none_N = best_two(joint_NK[:, :1])
    assert alone_N.tolist() == [0, 0]
    assert none_N.tolist() == [-math.inf, -math.inf]
