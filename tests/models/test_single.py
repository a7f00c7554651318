"""Ids of components before and after they are given names."""

from __future__ import annotations

import torch

from models.single import AS_NUMBERED, Names


def test_components_are_numbered_until_named() -> None:
    assert AS_NUMBERED.ids(3, torch.device("cpu")).tolist() == [0, 1, 2]
    assert AS_NUMBERED.next_id(3) == 3


def test_names_and_the_ids_that_were_given_before_are_kept() -> None:
    for names, next_id in ((Names(torch.tensor([7, 2])), 8), (Names(torch.tensor([7, 2]), 30), 30)):
        again = Names.from_tensors(names.tensors(2))
        assert again.ids(2, torch.device("cpu")).tolist() == [7, 2]
        assert again.next_id(2) == next_id
    assert Names.from_tensors({}) is AS_NUMBERED
