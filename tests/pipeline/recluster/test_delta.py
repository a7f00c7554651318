"""Two shards of a few rows: cluster and component of row i are i and 10 i, so that every expectation is read off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from models.clusterer import NOISE
from models.kmeans import KMeansConfig
from pipeline.cluster.before import Before
from pipeline.cluster.cluster import Again, cluster
from pipeline.cluster.config import ClusterConfig
from pipeline.recluster.delta import Delta
from pipeline.tables.clusterings import Publication
from pipeline.tables.collection import Collection
from pipeline.tables.samples import SampleFile, TableProperties, embedding_array
from pipeline.tables.schema import ASSIGNMENTS, CLUSTERS, MOVES

A = "a"  # key of row 0; row i is at (i, i + 0.5)


@pytest.fixture
def table(tmp_path: Path) -> Collection:
    made = Collection.create(tmp_path / "table")
    made.create_samples(
        TableProperties(dimension=2, backbone="made", backbone_digest="0" * 64, l2_normalised=False, preprocessing={})
    )
    return made


def rows(keys: str, shard: str = "s", moved: str = "") -> pa.Table:
    """Rows in the order of `keys`; those `moved` have another embedding."""
    x_ND = np.array([[ord(key) - ord(A), ord(key) - ord(A) + 0.5] for key in keys], np.float32)
    x_ND[[key in moved for key in keys], 1] = np.nextafter(np.float32(7), np.float32(8))
    return pa.table({"key": list(keys), "shard": [shard] * len(keys), "embedding": embedding_array(x_ND)})


def committed(table: Collection, *files: pa.Table) -> None:
    table.samples.commit([table.samples.write(file) for file in files])


def rewritten(table: Collection, *files: pa.Table) -> None:
    """In place of what there is of their shard."""
    samples = table.samples
    shard = files[0]["shard"][0].as_py()
    old = [file for file in samples.files() if file.shard == shard]
    samples.replace(old, [samples.write(file) for file in files])


def labelled(names: pa.Table, offset: int = 0) -> pa.Table:
    """Assignments by key: cluster i, component 10 i, each and the others greater by `offset`; no runner-up for a."""
    index_N = np.array([ord(key) - ord(A) for key in names["key"].to_pylist()]) + offset
    columns = {
        "key": names["key"],
        "shard": names["shard"],
        "cluster": index_N,
        "component": 10 * index_N,
        "probability": (index_N / 8).astype(np.float32),
        "runner_up": pa.array(index_N, pa.int64(), mask=index_N == 0),
        "score": -index_N.astype(np.float32),
    }
    return pa.table({name: columns[name] for name in ASSIGNMENTS.names}, schema=ASSIGNMENTS)


def generation(table: Collection) -> None:
    """A generation of the clustering `made` with `labelled` rows."""
    clustering, samples = table.clustering("made"), table.samples
    number = clustering.begin()
    files = [clustering.write_assignments(labelled(samples.read(file)), file) for file in samples.files()]
    record = Publication(
        samples_version=samples.version, artifact="", config_digest="", parent=None, decision="fit", evidence="{}"
    )
    clustering.publish(number, files, CLUSTERS.empty_table(), MOVES.empty_table(), record)


def delta_of(table: Collection) -> Delta:
    clustering = table.clustering("made")
    latest = clustering.latest()
    assert latest is not None
    return Delta.since(table, clustering, latest)


def overlaid(table: Collection, delta: Delta, file: SampleFile) -> list[dict[str, object]]:
    """Where a new model would say 100 more."""
    found = delta.overlaid(file, labelled(table.samples.read(file), offset=100))
    assert found.schema == ASSIGNMENTS
    return found.to_pylist()


def test_rows_are_the_same_where_key_and_embedding_are_in_any_order(table: Collection) -> None:
    committed(table, rows("abcd"))
    generation(table)
    rewritten(table, rows("dbea", moved="b"))  # b is another row now, c is gone, e is new
    delta = delta_of(table)
    (file,), (old,) = delta.added, delta.removed
    assert delta.rewritten == {"s"}
    assert delta.fresh(file).tolist() == [False, True, True, False]
    assert delta.gone(old).tolist() == [False, True, True, False]
    assert delta.earlier(file).tolist() == [3, NOISE, NOISE, 0]
    assert delta.earlier(file, "component").tolist() == [30, NOISE, NOISE, 0]
    before, after = labelled(rows("dbea")).to_pylist(), labelled(rows("dbea"), offset=100).to_pylist()
    assert before[3]["runner_up"] is None
    assert overlaid(table, delta, file) == [before[0], after[1], after[2], before[3]]


def test_two_files_joined_into_one(table: Collection) -> None:
    committed(table, rows("ab"), rows("cd"))
    generation(table)
    rewritten(table, rows("cadb"))
    delta = delta_of(table)
    (file,) = delta.added
    assert not delta.fresh(file).any()
    assert [delta.gone(old).tolist() for old in delta.removed] == [[False, False], [False, False]]
    assert delta.earlier(file).tolist() == [2, 0, 3, 1]
    assert overlaid(table, delta, file) == labelled(rows("cadb")).to_pylist()


def test_one_file_split_in_two_and_a_shard_that_is_as_it_was(table: Collection) -> None:
    committed(table, rows("bc", shard="other"))
    committed(table, rows("abcd"))
    generation(table)
    rewritten(table, rows("ca"), rows("bde"))
    delta = delta_of(table)
    assert [file.shard for file in delta.same] == ["other"]
    (old,) = delta.removed
    found = {file.rows: (delta.fresh(file).tolist(), delta.earlier(file).tolist()) for file in delta.added}
    assert found == {2: ([False, False], [2, 0]), 3: ([False, False, True], [1, 3, NOISE])}
    assert not delta.gone(old).any()


def test_a_key_in_another_shard_is_another_row(table: Collection) -> None:
    committed(table, rows("ab"))
    generation(table)
    table.samples.replace(table.samples.files(), [])
    committed(table, rows("ab", shard="t"))
    delta = delta_of(table)
    (file,), (old,) = delta.added, delta.removed
    assert delta.fresh(file).all()
    assert delta.gone(old).all()
    assert delta.earlier(file).tolist() == [NOISE, NOISE]
    after = labelled(rows("ab", shard="t"), offset=100)
    assert delta.overlaid(file, after) is after


def test_what_is_kept_of_a_rewritten_shard_is_numbers(table: Collection) -> None:
    committed(table, rows("ab"), rows("cd"))
    generation(table)
    rewritten(table, rows("cadb"))
    delta = delta_of(table)
    delta.fresh(delta.added[0])
    (matched,) = delta._matched.values()
    assert sum(index.nbytes for index in matched.index.values()) == 4 * 8
    assert sum(mask.nbytes for mask in matched.gone.values()) == 4


def test_samples_of_rewritten_shards_tell_by_key_which_cluster_is_which(table: Collection) -> None:
    committed(table, rows("ab", shard="same"))
    committed(table, rows("ab"), rows("cd"))
    generation(table)
    for file in table.samples.files():
        if file.shard == "s":
            gone = Path(table.samples.path) / file.path
            gone.unlink()  # as after a vacuum
    rewritten(table, rows("deb", moved="d"))
    committed(table, rows("a", shard="new"))
    clustering, samples = table.clustering("made"), table.samples
    before = Before(samples, clustering, clustering.generation(1), samples.files())
    found = {file.shard: before.labels(file, samples.read(file)).to_pydict() for file in samples.files()}
    assert found == {
        "same": {"cluster": [0, 1], "component": [0, 10]},
        "s": {"cluster": [3, NOISE, 1], "component": [30, NOISE, 10]},
        "new": {"cluster": [NOISE], "component": [NOISE]},
    }
    assert {file.shard for file in samples.files() if before.knows(file)} == {"same"}


@pytest.mark.parametrize("shift", [0, 1e-5])
def test_a_full_fit_after_every_file_was_rewritten_keeps_all_ids(shift: float, table: Collection) -> None:
    rng = np.random.default_rng(0)
    for shard in ("one", "two"):
        label_N = rng.integers(0, 3, 40)
        x_ND = (20 * np.eye(3, 2)[label_N] + rng.standard_normal((40, 2))).astype(np.float32)
        keys = [f"{row:02}" for row in range(40)]
        committed(table, pa.table({"key": keys, "shard": [shard] * 40, "embedding": embedding_array(x_ND)}))
    config = ClusterConfig(algorithm=KMeansConfig(clusters=3))
    first = cluster(table, config).generation
    before = _clusters(table)
    for shard in ("one", "two"):
        (file,) = (each for each in table.samples.files() if each.shard == shard)
        old = table.samples.read(file, ["key", "shard", "embedding"]).take(pa.array(rng.permutation(40)[:30]))
        x_ND = np.stack(old["embedding"].to_numpy()) + np.float32(shift)
        new = old.set_column(2, "embedding", embedding_array(x_ND))
        rewritten(table, new[:20], new[20:])
    again = cluster(table, config, again=Again("refit", {})).generation
    clustering = table.clustering("kmeans")
    assert clustering.events(again)["event"].to_pylist() == ["kept"] * 3
    assert clustering.clusters(again)["cluster"].to_pylist() == clustering.clusters(first)["cluster"].to_pylist()
    after = _clusters(table)
    assert len(after) == 60
    assert after == {name: before[name] for name in after}


def _clusters(table: Collection) -> dict[tuple[str, str], int]:
    clustering = table.clustering("kmeans")
    latest = clustering.latest()
    assert latest is not None
    found = {}
    for file in table.samples.files():
        labels = clustering.read_assignments(latest, file)
        found |= {(row["shard"], row["key"]): row["cluster"] for row in labels.to_pylist()}
    return found
