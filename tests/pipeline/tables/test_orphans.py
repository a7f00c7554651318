"""Artifacts go when the last generation that needs them has ended, and not before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.tables.clusterings import Generation
from pipeline.tables.collection import Collection
from pipeline.tables.place import children
from pipeline.tables.samples import SamplesTable

Rows = Callable[..., pa.Table]
Publish = Callable[..., Generation]


@pytest.fixture
def filled(samples: SamplesTable, rows: Rows) -> SamplesTable:
    samples.commit([samples.write(rows("a", range(3)))])
    return samples


def _put(collection: Collection, kind: str, number: int, **manifest: object) -> str:
    return collection.artifacts.write(kind, {"number": number, **manifest}, {"x": np.array([number])}).digest


def _held(collection: Collection) -> set[str]:
    return {collection.artifacts.read(path).digest for path in collection.artifacts.list()}


def test_what_only_ended_generations_need_is_removed(
    collection: Collection, filled: SamplesTable, rows: Rows, publish: Publish
) -> None:
    one, two = collection.clustering("dpm"), collection.clustering("gmm")
    backbone = _put(collection, "backbone", 0)
    reductions = [_put(collection, "reduction", number, inputs={"samples_version": 1}) for number in range(2)]
    states = [_put(collection, "statistics", 0)]
    models = [_put(collection, "dpm", n, reduction=reductions[n], table={"of": [backbone]}) for n in range(2)]
    for number in range(1, 3):
        states.append(_put(collection, "statistics", number, base=states[-1]))
    fitted = _put(collection, "dpm", 9, reduction=_put(collection, "reduction", 9))  # of a fit that is under way
    publish(one, 7, artifact=models[0], statistics=states[0])
    publish(one, 8, artifact=models[0], statistics=states[2])
    publish(two, 7, artifact=models[1], statistics=states[1])
    filled.commit([filled.write(rows("b", range(1)))])
    assert collection.sweep_artifacts() == []
    everything = _held(collection)
    one.end([1])
    assert collection.sweep_artifacts() == []  # the second goes on from the first's statistics
    one.end([2])
    removed = collection.sweep_artifacts()
    assert sorted(removed) == sorted([reductions[0], models[0], states[2]])
    assert removed.index(reductions[0]) < removed.index(models[0])
    assert _held(collection) == everything - {reductions[0], models[0], states[2]}
    two.end([1])
    removed = collection.sweep_artifacts()
    assert sorted(removed) == sorted([reductions[1], models[1], *states[:2]])
    assert removed.index(states[0]) < removed.index(states[1])
    assert {backbone, fitted} < _held(collection)
    assert len(_held(collection)) == 3
    assert collection.sweep_artifacts() == []
    assert list(Path(one.path, "generations").glob("*.parquet")) != []
    assert (one.begin(), two.begin()) == (3, 2)


def test_a_reduction_of_the_newest_samples_is_there_for_the_next_fit(
    collection: Collection, filled: SamplesTable, rows: Rows, publish: Publish
) -> None:
    clustering = collection.clustering("dpm")
    reduction = _put(collection, "reduction", 0, inputs={"samples_version": 1})
    model = _put(collection, "dpm", 0, reduction=reduction)
    publish(clustering, 7, artifact=model)
    clustering.end([1])
    assert collection.sweep_artifacts() == []
    filled.commit([filled.write(rows("b", range(1)))])
    assert collection.sweep_artifacts() == [reduction, model]
    assert _held(collection) == set()


def test_a_sweep_that_breaks_off_anywhere_is_finished_by_the_next(
    collection: Collection, filled: SamplesTable, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    clustering = collection.clustering("dpm")
    base = _put(collection, "statistics", 0)
    publish(clustering, 7, artifact=_put(collection, "dpm", 0), statistics=_put(collection, "statistics", 1, base=base))
    clustering.end([1])
    for broken, left in (("pipeline.tables.artifacts.remove_tree", 2), ("pipeline.tables.generations.delete", 0)):
        for _ in range(2):
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(broken, _interrupt)
                collection.sweep_artifacts()
            assert len(_held(collection)) == left
    assert collection.sweep_artifacts() == []
    assert children(collection.artifacts.root) == []
    assert len(list(Path(clustering.path, "generations").glob("*.parquet"))) == 1


def _interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt
