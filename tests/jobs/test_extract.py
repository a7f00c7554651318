"""What a run does when nothing can be embedded."""

from __future__ import annotations

import warnings

import pytest

from jobs.extract import _say_compressed, require_embeddings
from jobs.figures import Figures
from models.errors import ShoalError


def test_nothing_but_rejects_is_one_sentence_with_the_reasons() -> None:
    tables = {"rejects_by_reason": [{"reason": "not_a_tar", "samples": 2}, {"reason": "empty_shard", "samples": 1}]}
    with pytest.raises(ShoalError, match=r"all 3 samples were rejected \(2 not_a_tar, 1 empty_shard\)"):
        require_embeddings(Figures("extract", {"images": 0, "rejects": 3}, tables))
    require_embeddings(Figures("extract", {"images": 1, "rejects": 3}, tables))


def test_compressed_shards_are_said_once() -> None:
    with pytest.warns(UserWarning, match="2 of 3 shards are compressed"):
        _say_compressed({"a.tar", "b.tar.gz", "C.TGZ"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _say_compressed({"a.tar"})
