"""Probes of features: which rows train and test, what is refused, and that the order of rows does not matter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from models.errors import ShoalError
from models.probes import best_strength, linear_probe, weighted_knn
from pipeline.cluster.rows import row_hashes
from pipeline.evaluate.probe import LabelledRows, labelled_rows, probe
from pipeline.evaluate.probe_config import ProbeConfig
from pipeline.extract.rows import ok_rows
from pipeline.ingest.shards import Sample
from pipeline.tables.collection import Collection
from pipeline.tables.samples import TableProperties

CONFIG = ProbeConfig(strengths=(1.0, 1e-2), iterations=50, restarts=3)


def rows(count: int, seed: int = 0, spread: float = 0.5) -> LabelledRows:
    """Three overlapping classes at 0, 60 and 120 degrees."""
    rng = np.random.default_rng(seed)
    class_N = np.arange(count) % 3
    angle_N = class_N * np.pi / 3 + rng.normal(scale=spread, size=count)
    x_ND = np.stack([np.cos(angle_N), np.sin(angle_N)], axis=1) * rng.uniform(1, 9, size=(count, 1))
    hash_N = rng.integers(-(2**63), 2**63, size=count)
    return LabelledRows(x_ND.astype(np.float32), np.array([f"c{each}" for each in class_N], object), hash_N)


@pytest.fixture(scope="module")
def train() -> LabelledRows:
    return rows(300)


@pytest.fixture(scope="module")
def tested() -> LabelledRows:
    return rows(150, seed=1)


def shuffled(given: LabelledRows, seed: int = 9) -> LabelledRows:
    return given[np.random.default_rng(seed).permutation(len(given))]


def test_scores_are_those_of_the_classifiers_and_in_their_range(train: LabelledRows, tested: LabelledRows) -> None:
    found = probe(train, tested, CONFIG)
    known, asked = train.by_hash, tested.by_hash
    class_N, class_M = (np.array([int(label[1]) for label in each.label_N]) for each in (known, asked))
    knn_M = weighted_knn(known.x_ND, class_N, asked.x_ND, CONFIG.k, CONFIG.temperature)
    assert found.knn == np.mean(knn_M == class_M)
    held_out_N = known.row_N.view(np.uint64) // np.uint64(5) % np.uint64(5) == 0
    assert found.strength == best_strength(known.x_ND, class_N, held_out_N, CONFIG.strengths, 50)
    assert found.linear == np.mean(linear_probe(known.x_ND, class_N, asked.x_ND, found.strength, 50) == class_M)
    assert 0.5 < min(found.knn, found.linear, found.kmeans_acc) <= max(found.knn, found.linear, found.kmeans_acc) < 1
    assert (found.classes, found.rows, found.train_rows, found.test_rows) == (3, 300, 300, 150)


def test_nothing_depends_on_the_order_of_rows(train: LabelledRows, tested: LabelledRows) -> None:
    assert probe(shuffled(train), shuffled(tested), CONFIG) == probe(train, tested, CONFIG)
    assert probe(shuffled(train), None, CONFIG) == probe(train, None, CONFIG)


def test_hashes_and_not_positions_choose_among_equally_near_rows() -> None:
    """40 equal rows, of whose labels 5 vote: those of some 5 rows are mostly a, those of others b."""
    rng = np.random.default_rng(0)
    hash_N = rng.integers(2**62, size=40)
    train = LabelledRows(np.ones((40, 2), np.float32), rng.permuted(np.array(["a", "b"] * 20, object)), hash_N)
    asked = LabelledRows(np.ones((1, 2), np.float32), np.array(["a"], object), hash_N[:1])
    config = CONFIG.model_copy(update={"k": 5})
    assert len({probe(shuffled(train, seed), asked, config).knn for seed in range(8)}) == 1


def test_kmeans_sees_directions_and_not_lengths(train: LabelledRows, tested: LabelledRows) -> None:
    longer = replace(train, x_ND=train.x_ND * np.float32(2.0) ** (np.arange(300) % 11)[:, None])
    first, second = probe(train, tested, CONFIG), probe(longer, tested, CONFIG)
    assert (first.kmeans_nmi, first.kmeans_acc, first.knn) == (second.kmeans_nmi, second.kmeans_acc, second.knn)


def test_without_test_rows_a_fifth_is_tested_on_the_others(train: LabelledRows) -> None:
    held_out_N = train.row_N.view(np.uint64) % np.uint64(5) == 0
    assert 40 < held_out_N.sum() < 80
    found = probe(train, None, CONFIG)
    assert (found.rows, found.train_rows, found.test_rows) == (300, (~held_out_N).sum(), held_out_N.sum())
    apart = probe(train[~held_out_N], train[held_out_N], CONFIG)
    assert (found.knn, found.linear, found.strength) == (apart.knn, apart.linear, apart.strength)


def test_the_fifth_that_tunes_is_there_in_every_other_fifth(train: LabelledRows) -> None:
    tested_N, tuned_N = train.fifth(0), train.fifth(1)
    assert 0 < (tested_N & tuned_N).sum() < 30
    assert 20 < (~tested_N & tuned_N).sum() < 80


def test_rows_without_a_label_are_clustered_and_nothing_else(train: LabelledRows, tested: LabelledRows) -> None:
    def without(given: LabelledRows, which_N: NDArray[np.bool_]) -> LabelledRows:
        return replace(given, label_N=np.where(which_N, None, given.label_N))

    lost_N, lost_M = np.arange(300) % 4 == 0, np.arange(150) % 4 == 0
    found = probe(without(train, lost_N), without(tested, lost_M), CONFIG)
    fewer = probe(train[~lost_N], tested[~lost_M], CONFIG)
    assert (found.rows, found.train_rows, found.test_rows) == (300, 225, (~lost_M).sum())
    assert (found.knn, found.linear) == (fewer.knn, fewer.linear)


def test_a_label_that_nobody_trained_is_never_right(train: LabelledRows, tested: LabelledRows) -> None:
    other = replace(tested, label_N=np.where(np.arange(150) % 2 == 0, "unheard of", tested.label_N))
    assert probe(train, other, CONFIG).knn == pytest.approx(
        probe(train, tested[np.arange(150) % 2 == 1], CONFIG).knn / 2
    )


def test_the_linear_probe_has_the_rows_of_least_hash(train: LabelledRows, tested: LabelledRows) -> None:
    least = train.by_hash[:60]
    found = probe(train, tested, CONFIG.model_copy(update={"linear_rows": 60}))
    assert found.linear == probe(least, tested, CONFIG).linear
    assert found.knn == probe(train, tested, CONFIG).knn != probe(least, tested, CONFIG).knn


def test_what_cannot_be_probed_is_refused(train: LabelledRows, tested: LabelledRows) -> None:
    none = replace(train, label_N=np.full(300, None))
    with pytest.raises(ShoalError, match=r"INPUT have no labels, .* give shards whose samples have a \.cls"):
        probe(none, tested, CONFIG)
    with pytest.raises(ShoalError, match="only the label 'c1'"):
        probe(train[np.arange(300) % 3 == 1], tested, CONFIG)
    for asked in (none, replace(tested, label_N=np.full(150, "d"))):
        with pytest.raises(ShoalError, match="none has a label of the 300 train images"):
            probe(train, asked, CONFIG)


def test_rows_come_from_a_table_with_their_labels_and_hashes(tmp_path: Path) -> None:
    properties = TableProperties(dimension=1, backbone="x", backbone_digest="x", l2_normalised=False, preprocessing={})
    table = Collection.create(tmp_path).create_samples(properties)
    for shard, labels in (("b.tar", ["z", None]), ("a.tar", ["y"])):
        read = [Sample(f"{n}", shard, 512 * n, 9, label, b"", "png") for n, label in enumerate(labels)]
        table.commit([table.write(ok_rows(read, np.arange(len(labels), dtype=np.float32)[:, None] + len(labels)))])
    found = labelled_rows(Collection.open(tmp_path), ceiling_bytes=1 << 20)
    assert found.label_N.tolist() == ["y", "z", None]
    assert found.x_ND.tolist() == [[1.0], [2.0], [3.0]]
    keys = pa.table({"shard": ["a.tar", "b.tar", "b.tar"], "key": ["0", "0", "1"]})
    assert found.row_N.tolist() == row_hashes(keys).tolist()
