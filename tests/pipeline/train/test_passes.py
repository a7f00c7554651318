from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from models.clusterer import DataSummary
from models.gmm import GMMConfig
from models.registry import start
from pipeline.train.passes import WorkerRows
from pipeline.train.rows import Rows
from pipeline.train.world import Alone


@dataclass
class Counted:
    """Statistics that can be added in place, and tell how often they were copied instead."""

    sum_D: Tensor
    copies: int = 0

    def __add__(self, other: Counted) -> Counted:
        return Counted(self.sum_D + other.sum_D, self.copies + 1)

    def __iadd__(self, other: Counted) -> Counted:
        self.sum_D += other.sum_D
        return self

    def tensors(self) -> dict[str, Tensor]:
        return {"sum_D": self.sum_D}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Counted:
        return Counted(tensors["sum_D"], self.copies)


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("block", [100, 334, 2000])
def test_threads_change_no_bit_of_a_sum(threads: int, block: int, rows: Rows) -> None:
    data = WorkerRows(rows, Alone(), block).summarize(300, seed=0)
    model = start(GMMConfig(clusters=4, restarts=1), data)
    one, many = (WorkerRows(rows, Alone(), block, count).total(model.expect) for count in (1, threads))
    for name, value in one.tensors().items():
        assert torch.equal(many.tensors()[name], value), name


def test_blocks_are_worked_on_at_the_same_time_and_by_one_thread_of_torch_each(rows: Rows) -> None:
    together = threading.Barrier(2, timeout=60)  # raises if the two blocks come one after the other

    def expect(x_nD: Tensor, row_n: Tensor) -> Counted:
        together.wait()
        assert torch.get_num_threads() == 1
        assert not torch.is_grad_enabled()
        return Counted(x_nD.double().sum(dim=0))

    before = torch.get_num_threads()
    found = WorkerRows(rows, Alone(), 502, threads=2).total(expect)
    np.testing.assert_allclose(found.sum_D, rows.x_ND.sum(axis=0, dtype=np.float64))
    assert torch.get_num_threads() == before


def test_statistics_that_can_are_added_in_place(rows: Rows) -> None:
    found = WorkerRows(rows, Alone(), 100).total(lambda x_nD, _: Counted(x_nD.double().sum(dim=0)))
    np.testing.assert_allclose(found.sum_D, rows.x_ND.sum(axis=0, dtype=np.float64))
    assert found.copies == 0


def test_an_error_in_a_thread_is_the_callers(rows: Rows) -> None:
    def expect(x_nD: Tensor, row_n: Tensor) -> Counted:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        WorkerRows(rows, Alone(), 100, threads=2).total(expect)


def test_threads_summarize_as_one_does(rows: Rows) -> None:
    one, two = (WorkerRows(rows, Alone(), 100, count).summarize(50, seed=0) for count in (1, 2))
    assert isinstance(one, DataSummary)
    assert torch.equal(one.covariance_DD, two.covariance_DD)
    smallest = np.argsort(rows.row_N)[:50]
    np.testing.assert_array_equal(one.sample_MD.numpy(), rows.x_ND[smallest])
