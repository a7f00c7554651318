"""A generation that holds together is told from one that does not, whatever is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from models.errors import ShoalError
from models.kmeans import KMeansConfig
from pipeline.cluster.cluster import cluster
from pipeline.cluster.config import ClusterConfig
from pipeline.evaluate.following import arrive, begun
from pipeline.evaluate.streams import Mixture
from pipeline.recluster.verify import against_one_pass, apart, verify
from pipeline.tables.artifacts import TENSORS
from pipeline.tables.clusterings import Generation, Publication
from pipeline.tables.collection import Collection
from pipeline.tables.schema import TableError

Change = Callable[[pa.Table], pa.Table]


@pytest.fixture
def table(tmp_path: Path) -> Collection:
    """Two files of 40 rows in three clusters, by k-means."""
    rng = np.random.default_rng(0)
    mixture = Mixture.drawn(3, 2, 20.0, rng)
    found = begun(tmp_path / "table", 2)
    arrive(found, [mixture.draw(40, rng) for _ in range(2)])
    cluster(found, ClusterConfig(algorithm=KMeansConfig(clusters=3, restarts=1)))
    return found


def latest(table: Collection) -> Generation:
    found = table.clustering("kmeans").latest()
    assert found is not None
    return found


def same(rows: pa.Table) -> pa.Table:
    return rows


def republished(table: Collection, assignments: Change = same, clusters: Change = same, **record: Any) -> Generation:
    """Another generation with the model of the first, and something changed."""
    clustering = table.clustering("kmeans")
    first, number = clustering.generation(1), clustering.begin()
    files = [
        clustering.write_assignments(assignments(clustering.read_assignments(first, file)), file)
        for file in table.samples.files(version=first.samples_version)
    ]
    told = clustering.events(first)
    kept = told.set_column(told.column_names.index("generation"), "generation", pa.array([number] * len(told)))
    kept = kept.set_column(kept.column_names.index("event"), "event", pa.array(["kept"] * len(told)))
    fields = first.model_dump(include=set(Publication.model_fields)) | {"parent": first.generation} | record
    moves = clustering.moves(first).slice(0, 0)
    return clustering.publish(number, files, clusters(kept), moves, Publication(**fields))


def replaced(rows: pa.Table, column: str, values: list[Any]) -> pa.Table:
    index = rows.column_names.index(column)
    return rows.set_column(index, rows.schema.field(index), pa.array(values, rows.schema.field(index).type))


def test_what_a_fit_publishes_holds_together(table: Collection) -> None:
    found = verify(table, "kmeans", latest(table))
    assert (found.generation, found.files, found.rows, found.clusters) == (1, 2, 80, 3)
    assert found.error is not None
    assert 0 <= found.error <= 1e-12
    assert against_one_pass(table, "kmeans") <= 1e-12
    assert verify(table, "kmeans", republished(table)).rows == 80


def test_rows_in_another_order_than_the_samples_are_found(table: Collection) -> None:
    def turned(rows: pa.Table) -> pa.Table:
        return rows.take(list(range(len(rows)))[::-1])

    with pytest.raises(
        ShoalError, match=r"Generation 2 .* is damaged: it has other keys in the assignments of shard 0"
    ):
        verify(table, "kmeans", republished(table, turned))


def test_rows_that_have_no_assignment_are_found(table: Collection) -> None:
    more = Mixture.drawn(1, 2, 1.0, np.random.default_rng(1)).draw(5, np.random.default_rng(2))
    version = arrive(table, [more])
    with pytest.raises(ShoalError, match="assignments of 80 rows for 85 samples"):
        verify(table, "kmeans", republished(table, samples_version=version))


def test_assignments_of_rows_that_are_gone_are_found(table: Collection) -> None:
    files = table.samples.files()
    version = table.samples.replace(files[:1], [], {})
    clustering, first = table.clustering("kmeans"), latest(table)
    record = Publication(**first.model_dump(include=set(Publication.model_fields)) | {"samples_version": version})
    rows = clustering.events(first)
    rows = replaced(rows, "generation", [2] * len(rows))
    old = [clustering.write_assignments(clustering.read_assignments(first, file), file) for file in files]
    generation = clustering.publish(clustering.begin(), old, rows, clustering.moves(first).slice(0, 0), record)
    with pytest.raises(ShoalError, match="assignments of 80 rows for 40 samples"):
        verify(table, "kmeans", generation)


def test_components_that_the_model_does_not_have_are_found(table: Collection) -> None:
    def foreign(rows: pa.Table) -> pa.Table:
        return replaced(rows, "component", [77] * len(rows))

    with pytest.raises(ShoalError, match=r"components \[77\] of shard 000000 that its model does not have"):
        verify(table, "kmeans", republished(table, foreign))


def test_rows_in_another_cluster_than_their_component_are_found(table: Collection) -> None:
    def strayed(rows: pa.Table) -> pa.Table:
        clusters = rows["cluster"].to_pylist()
        return replaced(rows, "cluster", [(clusters[0] + 1) % 3, *clusters[1:]])

    with pytest.raises(ShoalError, match="1 rows of shard 000000 in another cluster than their component"):
        verify(table, "kmeans", republished(table, strayed))


def test_statistics_of_other_components_than_the_stored_ones_are_found(table: Collection) -> None:
    """One row moved to another component and its cluster: sizes are changed with it, statistics are not."""

    def moved(rows: pa.Table) -> pa.Table:
        if rows["shard"][0].as_py() != "000001":
            return rows
        clusters = rows["cluster"].to_pylist()
        clusters[0] = (clusters[0] + 1) % 3
        return replaced(replaced(rows, "cluster", clusters), "component", clusters)

    def resized(rows: pa.Table) -> pa.Table:
        clustering, first = table.clustering("kmeans"), latest(table)
        parts = [moved(clustering.read_assignments(first, file)) for file in table.samples.files()]
        counts = {
            each["values"]: each["counts"] for each in pc.value_counts(pa.concat_tables(parts)["cluster"]).to_pylist()
        }
        return replaced(rows, "size", [counts[each] for each in rows["cluster"].to_pylist()])

    with pytest.raises(ShoalError, match=r"statistics that differ from those of its rows by .*, beyond 1e-09"):
        verify(table, "kmeans", republished(table, moved, resized))


def test_sizes_and_medoids_that_are_not_their_rows_are_found(table: Collection) -> None:
    def grown(rows: pa.Table) -> pa.Table:
        sizes = rows["size"].to_pylist()
        return replaced(rows, "size", [sizes[0] + 1, *sizes[1:]])

    def astray(rows: pa.Table) -> pa.Table:
        medoids = rows["medoid_key"].to_pylist()
        return replaced(rows, "medoid_key", [medoids[1], medoids[0], *medoids[2:]])

    def unknown(rows: pa.Table) -> pa.Table:
        return replaced(rows, "medoid_key", ["nobody", *rows["medoid_key"].to_pylist()[1:]])

    with pytest.raises(ShoalError, match="sizes of clusters that are not their rows'"):
        verify(table, "kmeans", republished(table, clusters=grown))
    with pytest.raises(ShoalError, match=r"which is not its own|medoids that are no rows"):
        verify(table, "kmeans", republished(table, clusters=astray))
    with pytest.raises(ShoalError, match=r"medoids that are no rows of it, first .*nobody"):
        verify(table, "kmeans", republished(table, clusters=unknown))


def test_events_that_do_not_explain_the_clusters_are_found(table: Collection) -> None:
    def reborn(rows: pa.Table) -> pa.Table:
        rows = replaced(rows, "event", ["born", "kept", "kept"])
        return replaced(rows, "parents", [[], *rows["parents"].to_pylist()[1:]])

    def dead(rows: pa.Table) -> pa.Table:
        ghost = {**rows.to_pylist()[0], "cluster": 9, "size": 0, "event": "died", "parents": [9]}
        return pa.concat_tables([rows, pa.Table.from_pylist([ghost], schema=rows.schema)])

    with pytest.raises(ShoalError, match=r"new clusters \[0\] with ids that others had before"):
        verify(table, "kmeans", republished(table, clusters=reborn))
    with pytest.raises(ShoalError, match="without an event, or an event without that"):
        verify(table, "kmeans", republished(table, clusters=dead))


def test_an_artifact_that_was_changed_is_found(table: Collection) -> None:
    generation = latest(table)
    assert generation.statistics is not None
    [folder] = [path for path in table.artifacts.list() if path.name.startswith("statistics-")]
    packed = bytearray((folder / TENSORS).read_bytes())
    packed[-1] ^= 1
    (folder / TENSORS).write_bytes(bytes(packed))
    with pytest.raises(TableError, match="changed"):
        verify(table, "kmeans", generation)


def test_differences_are_relative_to_each_component() -> None:
    counted = {"count_K": torch.tensor([1e6, 10.0]), "sum_KD": torch.tensor([[1.0, -2.0], [0.0, 4.0]])}
    stored = {"count_K": torch.tensor([1e6, 10.0]), "sum_KD": torch.tensor([[1.0, -2.0], [0.0, 4.1]])}
    counted, stored = ({name: value.double() for name, value in each.items()} for each in (counted, stored))
    assert apart(stored, counted) == pytest.approx(0.1 / 4.0, rel=1e-5)
    assert apart(counted, counted) == 0.0
    assert apart({**stored, "sum_KD": torch.zeros(3, 2)}, counted) == float("inf")
    assert not apart({**stored, "sum_KD": torch.full((2, 2), torch.nan)}, counted) <= 1e-9
    with pytest.raises(ShoalError, match="nothing is compared"):
        apart({}, {})
