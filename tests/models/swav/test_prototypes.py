"""Prototypes behind a head: what contract tests cannot know."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from models.swav.config import PrototypesConfig
from models.swav.network import make_head, project
from models.swav.prototypes import Prototypes


def identity(prototype_KD: list[list[float]], temperature: float = 0.1) -> Prototypes:
    """Prototypes behind a head that does nothing."""
    direction_KD = functional.normalize(torch.tensor(prototype_KD, dtype=torch.float64))
    head = {"0.weight": torch.eye(direction_KD.shape[1]), "0.bias": torch.zeros(direction_KD.shape[1])}
    return Prototypes(PrototypesConfig(temperature=temperature), head, direction_KD)


def maximised(model: Prototypes, x_ND: Tensor) -> Prototypes:
    updated = model.maximize(model.expect(x_ND, torch.arange(len(x_ND))), torch.Generator()).model
    assert isinstance(updated, Prototypes)
    return updated


def test_assignments_by_hand() -> None:
    found = identity([[1, 0], [0, 1], [-1, 0]], 0.5).assign(torch.tensor([[6.0, 8.0], [-2.0, 0.0]]))
    assert found.cluster_N.tolist() == [1, 2]
    assert found.runner_up_N.tolist() == [0, 1]
    torch.testing.assert_close(found.score_N, torch.tensor([0.8, 1.0]))  # cosines
    expected = torch.tensor([[1.2, 1.6, -1.2], [-2.0, 0.0, 2.0]]).softmax(dim=1)  # over the temperature
    torch.testing.assert_close(found.probability_N, torch.stack([expected[0, 1], expected[1, 2]]))


def test_a_prototype_turns_to_the_mean_direction_of_its_rows_by_hand() -> None:
    model = identity([[1, 0], [0, 1], [-1, -1]])
    updated = maximised(model, torch.tensor([[5.0, 0.0], [0.6, 0.8 - 0.3], [0.0, 2.0]]))
    second = functional.normalize(
        torch.tensor([1.0, 0.0]) + functional.normalize(torch.tensor([0.6, 0.5]), dim=0), dim=0
    )
    torch.testing.assert_close(updated.prototype_KD[0].float(), second)
    assert updated.prototype_KD[1].tolist() == [0, 1]
    assert torch.equal(updated.prototype_KD[2], model.prototype_KD[2])  # nobody's


def test_rows_that_cancel_leave_their_prototype_where_it_is() -> None:
    model = identity([[1, 0]])
    assert torch.equal(maximised(model, torch.tensor([[0.0, 3.0], [0.0, -3.0]])).prototype_KD, model.prototype_KD)


def test_passes_settle_and_never_lower_the_sum_of_cosines() -> None:
    torch.manual_seed(0)
    model = Prototypes(
        PrototypesConfig(), make_head(6, 20, 4).state_dict(), functional.normalize(torch.randn(9, 4).double())
    )
    x_ND, row_N, objectives = torch.randn(400, 6), torch.arange(400), []
    for _ in range(100):
        update = model.maximize(model.expect(x_ND, row_N), torch.Generator())
        assert isinstance(update.model, Prototypes)
        model = update.model
        objectives.append(update.objective)
        if update.settled:
            break
    assert update.settled
    assert len(objectives) > 3
    assert objectives == sorted(objectives)
    torch.testing.assert_close(torch.linalg.vector_norm(model.prototype_KD, dim=1), torch.ones(9).double())


@pytest.mark.parametrize("hidden", [0, 12])
def test_the_projection_is_the_head_in_evaluation_mode(hidden: int) -> None:
    torch.manual_seed(0)
    head, x_NF = make_head(6, hidden, 4), torch.randn(50, 6)
    for _ in range(3):
        head(3 * x_NF + 1)  # running statistics
    found_ND = project(head.state_dict(), x_NF)
    assert found_ND.dtype == torch.float64
    with torch.no_grad():
        expected_ND = functional.normalize(head.double().eval()(x_NF.double()))
    torch.testing.assert_close(found_ND, expected_ND)
