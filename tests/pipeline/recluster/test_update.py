from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from models.deepdpm.config import DeepDPMConfig
from models.dpm.config import DPMConfig
from models.errors import ShoalError
from models.gmm import GMMConfig
from models.kmeans import KMeansConfig
from models.registry import ClustererConfig
from pipeline.cluster.assign import assign
from pipeline.cluster.cluster import cluster
from pipeline.cluster.config import ClusterConfig
from pipeline.cluster.fitted import read_labeller
from pipeline.cluster.memory import read_memory
from pipeline.cluster.published import published
from pipeline.recluster.config import ReclusterConfig
from pipeline.recluster.update import forget, recluster
from pipeline.recluster.verify import verify
from pipeline.tables.clusterings import Clustering, Generation
from pipeline.tables.collection import Collection
from pipeline.tables.samples import SampleFile, TableProperties, embedding_array
from pipeline.tables.schema import TableError
from pipeline.train.config import TrainConfig

CENTRES = 20 * np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
ALGORITHMS: list[ClustererConfig] = [DPMConfig(), KMeansConfig(clusters=4), GMMConfig(clusters=4)]


def add(table: Collection, shard: str, label_N: np.ndarray, seed: int, centres: np.ndarray = CENTRES) -> None:
    """One shard, one data file: rows around the centres that `label_N` names."""
    rng = np.random.default_rng(seed)
    x_ND = (centres[label_N] + rng.standard_normal((len(label_N), centres.shape[1]))).astype(np.float32)
    rows = {
        "key": [f"{shard}-{row:05}" for row in range(len(label_N))],
        "shard": [f"{shard}.tar"] * len(label_N),
        "label": [str(label) for label in label_N],
        "embedding": embedding_array(x_ND),
    }
    samples = table.samples
    samples.commit([samples.write(pa.table(rows))])


def mixed(rows: int, clusters: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(1000 + seed).integers(0, clusters, rows)


@pytest.fixture
def table(tmp_path: Path) -> Collection:
    return _made(tmp_path / "table")


@pytest.fixture(scope="session")
def _first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table that is clustered, made once: tests change copies."""
    path = tmp_path_factory.mktemp("first") / "table"
    cluster(_made(path), ClusterConfig())
    return path


@pytest.fixture
def clustered(_first: Path, tmp_path: Path) -> Collection:
    shutil.copytree(_first, tmp_path / "table")
    return Collection.open(tmp_path / "table")


def _first_of(table: Collection) -> Generation:
    (generation,) = table.clustering("dpm").generations()
    return generation


def _made(path: Path) -> Collection:
    made = Collection.create(path)
    properties = TableProperties(
        dimension=3, backbone="made", backbone_digest="0" * 64, l2_normalised=False, preprocessing={}
    )
    made.create_samples(properties)
    for index, shard in enumerate("abc"):
        add(made, shard, mixed(200, seed=index), index)
    return made


def labels(table: Collection, name: str = "dpm") -> dict[str, int]:
    return {row["key"]: row["cluster"] for row in published(table, name).assigned().to_pylist()}


def paths(table: Collection, clustering: Clustering, generation: Generation) -> dict[str, str]:
    files: Iterator[SampleFile] = iter(table.samples.files(version=generation.samples_version))
    return {file.shard: clustering.assignment_file(generation, file).path for file in files}


def remove(table: Collection, shard: str) -> None:
    samples = table.samples
    samples.replace([file for file in samples.files() if file.shard == f"{shard}.tar"], [], {})


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda each: each.kind)
def test_rows_like_those_before_are_labelled_and_nothing_else_changes(
    algorithm: ClustererConfig, table: Collection
) -> None:
    first = cluster(table, ClusterConfig(algorithm=algorithm))
    before = labels(table, first.name)
    add(table, "d", mixed(100, seed=7), 7)
    summary = recluster(table, ReclusterConfig())
    assert (summary.decision, summary.arrived, summary.rows, summary.clusters) == ("assign", 100, 700, 4)
    assert summary.generation.artifact == first.generation.artifact
    assert summary.generation.parent == first.generation.generation
    after = labels(table, first.name)
    assert before == {key: after[key] for key in before}
    clustering = table.clustering(first.name)
    kept, now = (paths(table, clustering, each) for each in (first.generation, summary.generation))
    assert kept == {shard: now[shard] for shard in kept}
    assert clustering.events(summary.generation)["event"].to_pylist() == ["kept"] * 4
    verify(table, first.name, summary.generation)
    assert recluster(table, ReclusterConfig()).decision == "nothing"


def test_new_clusters_among_arrivals_are_born_and_the_old_ones_keep_their_ids(clustered: Collection) -> None:
    table = clustered
    before = labels(table)
    centres = np.vstack([CENTRES, [[20, 20, 0]], [[0, 20, 20]]]).astype(np.float32)
    add(table, "d", np.repeat(np.arange(6), 50), 9, centres)
    summary = recluster(table, ReclusterConfig())
    assert (summary.decision, summary.clusters, summary.events["born"]) == ("refine", 6, 2)
    after = labels(table)
    assert before == {key: after[key] for key in before}
    fresh = {after[f"d-{row:05}"] for row in range(200, 300)}
    assert len(fresh) == 2
    assert min(fresh) > max(before.values())
    clustering = table.clustering("dpm")
    born = [row for row in clustering.events(summary.generation).to_pylist() if row["event"] == "born"]
    assert all(row["log_hastings"] > 0 and row["size"] == 50 for row in born)
    assert summary.files_kept == 3
    verify(table, "dpm", summary.generation)


def test_a_cluster_whose_rows_all_went_dies_and_its_id_is_not_given_again(table: Collection) -> None:
    centres = np.vstack([CENTRES, [[20, 20, 0]]]).astype(np.float32)
    add(table, "d", np.full(60, 4), 9, centres)
    first = cluster(table, ClusterConfig())
    assert first.clusters == 5
    gone = labels(table)["d-00000"]
    remove(table, "d")
    died = recluster(table, ReclusterConfig())
    events = {row["cluster"]: row["event"] for row in table.clustering("dpm").events(died.generation).to_pylist()}
    assert events[gone] == "died"
    assert died.clusters == 4
    add(table, "e", np.full(60, 4), 10, centres)
    born = recluster(table, ReclusterConfig())
    assert born.clusters == 5
    assert labels(table)["e-00000"] > max(gone, *events)
    verify(table, "dpm", born.generation)


def test_a_full_fit_keeps_the_ids_of_clusters_that_live_on(clustered: Collection) -> None:
    table = clustered
    before = labels(table)
    add(table, "d", mixed(100, seed=7), 7)
    summary = recluster(table, ReclusterConfig(mode="refit"))
    after = labels(table)
    assert summary.generation.decision == "refit"
    assert before == {key: after[key] for key in before}
    verify(table, "dpm", summary.generation)


@pytest.mark.parametrize(
    "kind", ["dpm", pytest.param("kmeans", marks=pytest.mark.slow), pytest.param("gmm", marks=pytest.mark.slow)]
)
def test_statistics_after_ten_increments_are_those_of_one_pass(kind: str, table: Collection) -> None:
    algorithm = next(each for each in ALGORITHMS if each.kind == kind)
    cluster(table, ClusterConfig(algorithm=algorithm))
    for step in range(10):
        add(table, f"s{step}", mixed(20 + 7 * step, seed=step), 50 + step)
        last = recluster(table, ReclusterConfig(mode="assign", fold_after=4)).generation
    labeller = read_labeller(table.artifacts, last.artifact)
    assert last.statistics is not None
    found = read_memory(table.artifacts, last.statistics, labeller.model).stats().tensors()
    rows = published(table, kind).rows()
    expected = labeller.model.expect(torch.from_numpy(np.array(rows.x_ND)), torch.from_numpy(rows.row_N)).tensors()
    for name in ("count_K", "sum_KD"):
        torch.testing.assert_close(
            found[name], expected[name], rtol=1e-9, atol=1e-9 * float(expected[name].abs().max())
        )


def test_of_two_at_once_one_publishes(clustered: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    table = clustered
    add(table, "d", mixed(100, seed=7), 7)
    original, others = Clustering.publish, []

    def publish(self: Clustering, *args: object, **named: object) -> Generation:
        if not others:
            others.append(None)
            others[0] = recluster(Collection.open(table.path), ReclusterConfig()).generation  # type: ignore[call-overload]
        return original(self, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Clustering, "publish", publish)
    with pytest.raises(TableError, match="another writer published first; run again"):
        recluster(table, ReclusterConfig())
    assert table.clustering("dpm").latest() == others[0]
    verify(table, "dpm", others[0])  # type: ignore[arg-type]


def test_what_an_earlier_shoal_left_is_counted_again(clustered: Collection) -> None:
    table, first = clustered, _first_of(clustered)
    clustering = table.clustering("dpm")
    record = json.loads(first.model_dump_json())
    del record["generation"], record["created_at"]
    for version in ("assignments_version", "clusters_version", "moves_version"):
        del record[version]
    from pipeline.tables.clusterings import Publication  # noqa: PLC0415

    old = Publication(**{**record, "statistics": None, "parent": 1})
    events = clustering.clusters(first)
    again = events.set_column(0, "generation", pa.array([2] * len(events)))
    clustering.publish(2, [], again, clustering.moves(first).slice(0, 0), old)
    before = labels(table)
    add(table, "d", mixed(100, seed=7), 7)
    summary = recluster(table, ReclusterConfig())
    assert summary.why.startswith("everything was labelled again")
    assert summary.generation.statistics is not None
    after = labels(table)
    assert before == {key: after[key] for key in before}
    verify(table, "dpm", summary.generation)


def test_rows_in_other_files_keep_their_labels_and_those_taken_out_weigh_nothing(clustered: Collection) -> None:
    table, first = clustered, _first_of(clustered)
    before = labels(table)
    samples = table.samples
    file = next(each for each in samples.files() if each.shard == "b.tar")
    rows = samples.read(file)
    kept = rows.filter(pa.array([index % 10 != 0 for index in range(len(rows))]))
    samples.replace([file], [samples.write(kept)], {})
    generation = forget(table, "dpm", first)
    assert generation.decision == "removal"
    after = labels(table)
    assert len(after) == 580
    assert after == {key: before[key] for key in after}
    verify(table, "dpm", generation)


def test_older_rows_fade_where_they_are_told_to(clustered: Collection) -> None:
    table = clustered
    add(table, "d", mixed(100, seed=7), 7)
    generation = recluster(table, ReclusterConfig(decay=0.5)).generation
    labeller = read_labeller(table.artifacts, generation.artifact)
    memory = read_memory(table.artifacts, str(generation.statistics), labeller.model)
    assert float(memory.stats().tensors()["count_K"].sum()) == pytest.approx(0.5 * 600 + 100)
    remove(table, "a")
    generation = recluster(table, ReclusterConfig()).generation
    memory = read_memory(table.artifacts, str(generation.statistics), labeller.model)
    assert float(memory.stats().tensors()["count_K"].sum()) == pytest.approx(0.5 * 400 + 100)


@pytest.mark.parametrize("vacuumed", [False, True])
@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda each: each.kind)
def test_a_shard_that_went_is_taken_out_of_every_algorithm(
    algorithm: ClustererConfig, vacuumed: bool, table: Collection
) -> None:
    cluster(table, ClusterConfig(algorithm=algorithm))
    (file,) = (each for each in table.samples.files() if each.shard == "b.tar")
    remove(table, "b")
    if vacuumed:
        (Path(table.samples.path) / file.path).unlink()
    summary = recluster(table, ReclusterConfig())
    assert (summary.removed, summary.rows, summary.clusters) == (200, 400, 4)
    verify(table, algorithm.kind, summary.generation)


@pytest.mark.slow
def test_deepdpm_is_tuned_on_what_arrived(table: Collection) -> None:
    config = ClusterConfig(algorithm=DeepDPMConfig(), train=TrainConfig(epochs=60, batch_size=128))
    cluster(table, config)
    before = labels(table, "deepdpm")
    assert len(set(before.values())) == 4
    centres = np.vstack([CENTRES, [[20, 20, 0]]]).astype(np.float32)
    add(table, "d", np.repeat(np.arange(5), 60), 9, centres)
    summary = recluster(table, ReclusterConfig())
    assert (summary.decision, summary.clusters) == ("refine", 5)
    after = labels(table, "deepdpm")
    assert before == {key: after[key] for key in before}
    assert len({after[f"d-{row:05}"] for row in range(240, 300)}) == 1
    verify(table, "deepdpm", summary.generation)


def test_assign_goes_on_where_recluster_does(clustered: Collection) -> None:
    table = clustered
    add(table, "d", mixed(100, seed=7), 7)
    assign(table)
    add(table, "e", mixed(100, seed=8), 8)
    summary = recluster(table, ReclusterConfig())
    assert (summary.decision, summary.arrived, summary.rows) == ("assign", 100, 800)
    verify(table, "dpm", summary.generation)


def test_generations_beyond_those_kept_are_ended(clustered: Collection) -> None:
    table = clustered
    for step in range(3):
        add(table, f"s{step}", mixed(20, seed=step), 60 + step)
        last = recluster(table, ReclusterConfig(keep_generations=2)).generation
    assert [each.generation for each in table.clustering("dpm").generations()] == [3, 4]
    verify(table, "dpm", last)
    add(table, "t", mixed(20, seed=5), 70)
    verify(table, "dpm", recluster(table, ReclusterConfig(keep_generations=2)).generation)


def test_without_a_clustering_there_is_a_sentence(table: Collection) -> None:
    with pytest.raises(ShoalError, match="no clustering named"):
        recluster(table, ReclusterConfig())
