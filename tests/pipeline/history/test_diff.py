"""What changed between generations whose every label was put there by hand."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import ItemsView
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from histories import Told
from object_store import ObjectStore

from models.errors import ShoalError
from pipeline.history.compare import MOVED, Part
from pipeline.history.diff import Diff, _overlapping, diff
from pipeline.history.moved import check_output, moved_file
from pipeline.tables.place import place


def _diff(told: Told, before: int, after: int) -> Diff:
    return diff(told.collection, "dpm", before, after)


def _counts(found: Diff) -> tuple[int, int, int, int]:
    return found.stayed, found.moved, found.arrived, found.gone


def _flows(found: Diff) -> list[tuple[int, int, int]]:
    return [(flow.before, flow.after, flow.images) for flow in found.flows]


def test_a_child_is_told_as_it_was_recorded(told: Told) -> None:
    found = _diff(told, 2, 3)
    assert _counts(found) == (12, 2, 0, 0)
    assert _flows(found) == [(0, 4, 2)]
    assert [(f.cluster, f.parents, f.size_before, f.size_after, f.log_hastings) for f in found.of("split")] == [
        (0, (0,), 6, 4, 2.5),
        (4, (0,), 0, 2, 2.5),
    ]
    assert len(found.fates) == 2
    assert found.between == ()
    assert found.examples.to_pylist() == [
        {"shard": "a", "key": "a2", "before": 0, "after": 4},
        {"shard": "a", "key": "a3", "before": 0, "after": 4},
    ]
    assert (found.sizes_before, found.sizes_after) == ({0: 6, 1: 4, 2: 2, 3: 2}, {0: 4, 1: 4, 2: 2, 3: 2, 4: 2})


def test_what_arrived_is_counted_by_cluster_and_is_no_move(told: Told) -> None:
    found = _diff(told, 1, 2)
    assert _counts(found) == (10, 0, 4, 0)
    assert (found.arrived_in, found.gone_from) == ({0: 2, 3: 2}, {})
    assert [(fate.event, fate.cluster, fate.size_after) for fate in found.fates] == [("born", 3, 2)]
    back = _diff(told, 2, 1)
    assert _counts(back) == (10, 0, 0, 4)
    assert [(fate.event, fate.cluster, fate.size_before) for fate in back.fates] == [("died", 3, 2)]


def test_generations_apart_are_told_by_overlap_and_by_what_happened_on_the_way(told: Told) -> None:
    found = _diff(told, 1, 5)
    assert _counts(found) == (6, 4, 4, 0)
    assert _flows(found) == [(0, 1, 2), (2, 1, 2)]
    assert {fate.cluster: (fate.event, fate.parents, fate.log_hastings) for fate in found.fates} == {
        1: ("merged", (1, 2), -1.5),  # of the last merge that had a ratio
        2: ("died", (2,), None),
        3: ("born", (), None),
    }
    way = [(node.generation, node.cluster, node.event, node.log_hastings) for node in found.between]
    assert way == [
        (2, 3, "born", None),
        (3, 0, "split", 2.5),
        (3, 4, "split", 2.5),
        (4, 1, "merged", -1.5),
        (4, 4, "died", None),
        (5, 1, "merged", None),
        (5, 2, "died", None),
    ]
    assert found.passing == [4]  # born after 1, gone before 5
    back = _diff(told, 5, 1)
    assert {fate.cluster: fate.event for fate in back.fates} == {1: "split", 2: "split", 3: "died"}
    assert back.between == ()


def test_files_that_both_have_are_not_opened(told: Told) -> None:
    found = _diff(told, 4, 5)
    assert (found.files_read, found.files_shared) == (2, 2)  # b of both; a and c are shared
    clustering = told.clustering
    generation = clustering.generation(5)
    shared = [clustering.assignment_file(generation, file).path for file in told.samples.files() if file.shard != "b"]
    paths = [Path(clustering.path, "assignments", path) for path in shared]
    kept = [path.read_bytes() for path in paths]
    try:
        for path in paths:
            path.write_bytes(b"not Parquet")
        assert _counts(_diff(told, 4, 5)) == (12, 2, 0, 0)
    finally:
        for path, data in zip(paths, kept, strict=True):
            path.write_bytes(data)


def test_every_pair_is_what_counting_says_its_inverse_and_nothing_for_one_and_the_same(tmp_path: Path) -> None:
    told = Told(tmp_path / "table")
    rng = np.random.default_rng(6)
    keys = [f"{shard}{i}" for shard in "abc" for i in range(8)]
    for shard in "abc":
        told.shard(key for key in keys if key[0] == shard)
    for number in range(3):
        if number == 1:
            keys = [key for key in keys if key not in ("b2", "b5")]
            told.shard_anew(key for key in keys if key[0] == "b")
        if number == 2:
            keys += [f"d{i}" for i in range(5)]
            told.shard(key for key in keys if key[0] == "d")
        old = told.labels.get(number, {})
        labels = {key: int(rng.integers(-1, 4)) if rng.random() < 0.2 else old.get(key, 0) for key in keys}
        told.publish(labels, parent=None if not number else -1)
    diffs = {pair: _diff(told, *pair) for pair in itertools.product(told.labels, repeat=2)}
    for (before, after), found in diffs.items():
        old, new, back = told.labels[before], told.labels[after], diffs[after, before]
        pairs = Counter((old[key], new[key]) for key in old.keys() & new.keys())
        moved = {ends: images for ends, images in pairs.items() if ends[0] != ends[1]}
        assert found.stayed == sum(pairs.values()) - sum(moved.values())
        assert {(flow.before, flow.after): flow.images for flow in found.flows} == moved
        assert found.arrived_in == Counter(new[key] for key in new.keys() - old.keys())
        assert _counts(back) == (found.stayed, found.moved, found.gone, found.arrived)
        assert {(flow.after, flow.before): flow.images for flow in back.flows} == moved
        assert (back.sizes_before, back.sizes_after) == (found.sizes_after, found.sizes_before)
        assert (back.arrived_in, back.gone_from) == (found.gone_from, found.arrived_in)
        if before == after:
            assert (found.stayed, found.moved, found.files_read, found.fates) == (len(old), 0, 0, ())
        rows = {row["key"]: (row["before"], row["after"]) for row in found.examples.to_pylist()}
        assert rows == {key: (old[key], new[key]) for key in old.keys() & new.keys() if old[key] != new[key]}


class _Watched(Counter[tuple[int, int]]):
    """Counts how often all flows are gone through."""

    times = 0

    def items(self) -> ItemsView[tuple[int, int], int]:
        self.times += 1
        return super().items()


def test_flows_are_gone_through_once_however_many_clusters_there_are() -> None:
    ids = range(40)
    moved = _Watched({(cluster, (cluster + 1) % 40): 2 for cluster in ids})
    moved[7, 40] = 10  # with the 2 that went on, 12 of 20 left 7
    sizes = dict.fromkeys(ids, 20), dict.fromkeys(ids, 20) | {7: 10, 40: 10}
    found = _overlapping(sizes, Part(moved=moved))
    assert [(each.cluster, each.event, each.parents, each.size_before, each.size_after) for each in found] == [
        (7, "split", (7,), 20, 10),
        (40, "split", (7,), 0, 10),
    ]
    assert moved.times == 1


def test_rows_in_no_cluster_are_noise_and_no_event(tmp_path: Path) -> None:
    told = Told(tmp_path / "table")
    told.shard(f"a{i}" for i in range(4))
    told.publish({"a0": 0, "a1": 0, "a2": -1, "a3": -1}, parent=None)
    told.publish({"a0": 0, "a1": 0, "a2": 0, "a3": -1}, {-1: ("split", (-1,), None)})
    found = _diff(told, 1, 2)
    assert _flows(found) == [(-1, 0, 1)]
    assert (found.sizes_before, found.sizes_after) == ({0: 2, -1: 2}, {0: 3, -1: 1})
    assert found.fates == _diff(told, 2, 1).fates == ()


def test_fits_of_their_own_have_no_events_in_common(copy: Told) -> None:
    copy.publish(dict.fromkeys(copy.labels[5], 7), parent=None, decision="fit")
    found = _diff(copy, 5, 6)
    assert not found.related
    assert (found.moved, found.fates) == (14, ())
    copy.publish(copy.labels[1] | {f"c{i}": 0 for i in range(4)}, parent=1, decision="rollback to 1")
    found = _diff(copy, 5, 7)
    assert found.related  # both come from 1
    fates = {fate.cluster: fate.event for fate in found.fates}
    assert fates == {0: "merged", 1: "split", 2: "split", 3: "died"}


def test_a_generation_that_is_not_there_is_a_sentence(told: Told) -> None:
    with pytest.raises(ShoalError, match=r"has no generation 9; it has 1-5\."):
        _diff(told, 1, 9)
    with pytest.raises(ShoalError, match=r"has no generation 0; it has 1-5\."):
        _diff(told, 0, 1)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_every_image_that_moved_goes_into_the_file(told: Told, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"moved{suffix}"
    path.write_text("what was there before")
    with moved_file(path) as on_moved:
        diff(told.collection, "dpm", 1, 5, on_moved=on_moved)
        assert path.read_text() == "what was there before"
    rows = (pq.read_table(path) if suffix == ".parquet" else pyarrow.csv.read_csv(path)).to_pylist()
    assert [(row["shard"], row["key"], row["before"], row["after"]) for row in rows] == [
        ("a", "a2", 0, 1),
        ("a", "a3", 0, 1),
        ("b", "b2", 2, 1),
        ("b", "b3", 2, 1),
    ]
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_a_file_that_cannot_be_finished_is_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "moved.csv"
    path.write_text("before")
    with pytest.raises(ZeroDivisionError), moved_file(path) as on_moved:
        on_moved(MOVED.empty_table())
        raise ZeroDivisionError
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("moved.csv", "before")]


def test_a_file_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    for name, sentence in [
        ("moved.txt", r"ends in \.txt; end it in \.parquet or \.csv"),
        ("moved", "ends in nothing"),
        ("folder.csv", "is a folder; name a file in it"),
        ("none/moved.csv", "is in a folder that does not exist"),
    ]:
        with pytest.raises(ShoalError, match=sentence):
            check_output(tmp_path / name)


@pytest.mark.slow  # starts a server
def test_the_file_may_be_an_object_in_a_store(told: Told, bucket: ObjectStore) -> None:
    path = place(f"{bucket.url}/some/moved.parquet")
    with pytest.raises(ZeroDivisionError), moved_file(path):
        raise ZeroDivisionError
    assert not path.exists()
    with moved_file(path) as on_moved:
        diff(told.collection, "dpm", 1, 5, on_moved=on_moved)
    assert pq.read_table(pa.BufferReader(path.read_bytes()))["key"].to_pylist() == ["a2", "a3", "b2", "b3"]
