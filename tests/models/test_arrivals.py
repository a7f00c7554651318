"""Counts of arrivals by hand, and that they add; the ruler that they are measured by."""

from __future__ import annotations

import math

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.arrivals import Arrivals, Reference


def ramp(rows: int, low: float, high: float) -> Tensor:
    """Evenly spread scores: the 16th, 50th and 84th percentile lie where one expects them."""
    return low + (high - low) * torch.arange(rows).double() / rows


def reference() -> Reference:
    """Cluster 3 scores from -10 to 0, cluster 8 from 0 to 100; of cluster 5 there are too few rows."""
    cluster_N = torch.tensor([3]).repeat(1000).tolist() + [8] * 1000 + [5] * 10
    score_N = torch.cat([ramp(1000, -10.0, 0.0), ramp(1000, 0.0, 100.0), torch.full((10,), 1.0).double()])
    return Reference.of(torch.tensor(cluster_N), score_N.float(), torch.tensor([8, 3, 5]))


def test_the_ruler_of_a_cluster_is_its_own() -> None:
    found = reference()
    assert found.id_C.tolist() == [3, 5, 8]
    assert found.centre_C[[0, 2]].tolist() == pytest.approx([-5.0, 50.0])
    assert found.deviation_C[[0, 2]].tolist() == pytest.approx([3.413, 34.13], rel=1e-3)
    assert (found.centre_C[1], found.deviation_C[1]) == found.pooled  # ten rows measure nothing


def test_low_is_a_hundredth_of_the_sample_and_the_same_everywhere() -> None:
    found = reference()
    assert int(found.sample.low_C.sum()) == 20
    assert found.sample.low_C[[0, 2]].tolist() == pytest.approx([10, 10], abs=1)
    low_N = found.low(torch.tensor([3, 3, 8, 8, 77]), torch.tensor([-9.99, -9.0, 0.1, 10.0, -1e9]))
    assert low_N.tolist() == [True, False, True, False, True]


def test_arrivals_by_hand() -> None:
    one = Reference(torch.tensor([2]), torch.tensor([10.0]), torch.tensor([2.0]), (0.0, 1.0), -1.5, Arrivals.none())
    found = Arrivals.of(one, torch.tensor([2, 2, 9, 2]), torch.tensor([10.0, 6.0, -1.0, -1e6]))
    assert found.id_C.tolist() == [2, 9]
    assert found.rows_C.tolist() == [3, 1]
    assert found.low_C.tolist() == [2, 0]
    assert found.score_sum_C.tolist() == [0 - 2 - 4, -1]  # the farthest row counts as four deviations
    assert found.score_square_C.tolist() == [0 + 4 + 16, 1]


@given(st.lists(st.integers(0, 5), max_size=40), st.integers(0, 40))
def test_arrivals_add(cluster: list[int], cut: int) -> None:
    found, cluster_N = reference(), torch.tensor(cluster, dtype=torch.int64)
    score_N = 7 * torch.arange(len(cluster)).float() - 30
    parts = [Arrivals.of(found, cluster_N[part], score_N[part]) for part in (slice(0, cut), slice(cut, None))]
    total, whole = parts[0] + parts[1], Arrivals.of(found, cluster_N, score_N)
    assert torch.equal(total.id_C, whole.id_C)
    torch.testing.assert_close(total.count_4C, whole.count_4C)
    assert torch.equal((whole + Arrivals.none()).count_4C, whole.count_4C)


def test_births_add_and_stay() -> None:
    born = Arrivals(*vars(Arrivals.none()).values()) + Arrivals(torch.tensor([1]), torch.ones(4, 1).double(), born=2)
    assert (born + born).born == 4
    assert born.kept(torch.tensor([7])).born == 2


def test_clusters_change_their_names() -> None:
    found = Arrivals(torch.tensor([1, 2, 4]), torch.tensor([[1.0, 2.0, 4.0]]).repeat(4, 1).double())
    renamed = found.renamed({1: 9, 4: 2})
    assert (renamed.id_C.tolist(), renamed.rows_C.tolist()) == ([2, 9], [6, 1])
    assert found.at(torch.tensor([4, 5, 1])).rows_C.tolist() == [4, 0, 1]
    other = reference().renamed({3: 30})
    assert other.id_C.tolist() == [5, 8, 30]
    before, after = (
        each.standardised(torch.tensor([cluster]), torch.tensor([-7.0]))
        for each, cluster in ((reference(), 3), (other, 30))
    )
    assert torch.equal(before, after)
    assert other.sample.at(torch.tensor([30])).rows_C.tolist() == [1000]


def test_what_is_kept_of_a_reference() -> None:
    kept = reference().kept(torch.tensor([8]))
    assert (kept.id_C.tolist(), kept.sample.id_C.tolist()) == ([8], [8])
    assert float(kept.standardised(torch.tensor([3]), torch.tensor([kept.pooled[0]]))) == 0


def test_optimism_lowers_what_is_expected_of_new_rows() -> None:
    cluster_N, score_N = torch.tensor([1]).repeat(1000), ramp(1000, 0.0, 10.0)
    plain = Reference.of(cluster_N, score_N, torch.tensor([1]))
    wary = Reference.of(cluster_N, score_N, torch.tensor([1]), optimism_C=torch.tensor([2.0]))
    assert float(plain.centre_C - wary.centre_C) == 2
    assert torch.equal(plain.sample.count_4C, wary.sample.count_4C)
    torch.testing.assert_close(plain.standardised(cluster_N, score_N), wary.standardised(cluster_N, score_N - 2))


@pytest.mark.parametrize("score", [0.0, -3.5])
def test_scores_that_are_all_equal_and_none_at_all(score: float) -> None:
    cluster_N = torch.tensor([4]).repeat(50)
    found = Reference.of(cluster_N, torch.full((50,), score), torch.tensor([4]))
    assert found.standardised(cluster_N, torch.full((50,), score)).tolist() == [0] * 50
    empty = Reference.of(cluster_N[:0], torch.empty(0), torch.tensor([4]))
    assert empty.low(cluster_N, torch.full((50,), -1e9)).tolist() == [False] * 50
    assert math.isfinite(float(empty.standardised(cluster_N[:1], torch.ones(1))))


def test_both_are_saved() -> None:
    found = reference()
    again = Reference.from_tensors(safetensors.torch.load(safetensors.torch.save(found.tensors())))
    assert {name: value.tolist() for name, value in again.tensors().items()} == {
        name: value.tolist() for name, value in found.tensors().items()
    }
    assert again.sample.born == found.sample.born
