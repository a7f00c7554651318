"""What a run says of its input, and what it takes for done."""

from __future__ import annotations

import warnings
from pathlib import Path

import pyarrow as pa
import pytest

from jobs.extract import _done, _say_compressed, require_embeddings
from jobs.figures import Figures
from models.errors import ShoalError
from pipeline.tables.collection import Collection
from pipeline.tables.samples import TableProperties
from pipeline.tables.schema import REJECTED, TableError

PROPERTIES = TableProperties(dimension=2, backbone="x", backbone_digest="0", l2_normalised=False, preprocessing={})


def test_nothing_but_rejects_is_one_sentence_with_the_reasons() -> None:
    tables = {"rejects_by_reason": [{"reason": "not_a_tar", "samples": 2}, {"reason": "empty_shard", "samples": 1}]}
    with pytest.raises(ShoalError, match=r"all 3 samples were rejected \(2 not_a_tar, 1 empty_shard\)"):
        require_embeddings(Figures("extract", {"images": 0, "rejects": 3}, tables))
    require_embeddings(Figures("extract", {"images": 1, "rejects": 3}, tables))


def test_compressed_shards_are_said_once() -> None:
    with pytest.warns(UserWarning, match="2 of 3 shards are compressed"):
        _say_compressed(["a.tar", "b.tar.gz", "C.TGZ"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _say_compressed(["a.tar"])


def test_there_is_nothing_done_where_there_is_no_table_yet(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert _done(str(tmp_path / "missing")) == _done(str(tmp_path / "empty")) == set()
    Collection.create(tmp_path / "table")
    assert _done(str(tmp_path / "table")) == set()


def test_done_is_what_the_table_has_also_inside_a_run(tmp_path: Path) -> None:
    samples = Collection.create(tmp_path / "run" / "table").create_samples(PROPERTIES)
    row = pa.table({"key": ["k"], "shard": ["a.tar"], "reason": ["not_a_tar"]})
    samples.commit([samples.write(row, REJECTED)])
    assert _done(str(tmp_path / "run")) == _done(str(tmp_path / "run" / "table")) == {"a.tar"}


def test_what_is_no_table_is_refused_rather_than_called_empty(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"")
    for foreign in (tmp_path, tmp_path / "photo.jpg"):
        with pytest.raises(TableError, match="no shoal table"):
            _done(str(foreign))
