from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from models import kmeans
from models.clusterer import DataSummary
from models.dpm.config import DPMConfig
from models.errors import ShoalError
from models.gmm import GMMConfig
from models.kmeans import KMeans, KMeansConfig
from models.objective import Batch, EpochEnd, Loss, Passes, Plan, Reduce
from models.reduce import NoReduction, PCAConfig
from models.registry import ALGORITHMS
from pipeline.cluster.assign import assign
from pipeline.cluster.cluster import cluster
from pipeline.cluster.config import ClusterConfig
from pipeline.cluster.fit import FitConfig
from pipeline.cluster.fitted import read_labeller
from pipeline.cluster.published import published
from pipeline.cluster.rows import load_rows, row_hashes
from pipeline.cluster.source import TableRows
from pipeline.evaluate.evaluate import EvaluateConfig, evaluate
from pipeline.evaluate.exemplars import exemplars
from pipeline.progress import Progress
from pipeline.tables.collection import Collection
from pipeline.tables.imports import import_files
from pipeline.train.config import TrainConfig

CORNERS = 20 * np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)


def _file(folder: Path, name: str, rows: int, seed: int, dim: int = 3) -> Path:
    rng = np.random.default_rng(seed)
    label_N = rng.integers(0, 4, rows)
    x_ND = np.zeros((rows, dim), np.float32)
    x_ND[:, :3] = CORNERS[label_N]
    x_ND += rng.standard_normal((rows, dim)).astype(np.float32)
    path = folder / f"{name}.npz"
    np.savez(path, embedding=x_ND, label=label_N.astype(str), key=np.array([f"{name}{i}" for i in range(rows)]))
    return path


@pytest.fixture
def table(tmp_path: Path) -> Collection:
    files = [_file(tmp_path, name, 150, seed) for seed, name in enumerate("ab")]
    import_files(files, tmp_path / "table")
    return Collection.open(tmp_path / "table")


def test_a_table_is_clustered_assigned_and_published(table: Collection) -> None:
    summary = cluster(table, ClusterConfig(algorithm=DPMConfig(initial_clusters=1)))
    assert (summary.name, summary.clusters, summary.rows, summary.settled) == ("dpm", 4, 300, True)
    scores = evaluate(table, "dpm", EvaluateConfig())
    assert scores.labels is not None
    assert scores.labels.acc == 1.0
    rows = table.clustering("dpm").clusters(summary.generation).to_pylist()
    assert sum(row["size"] for row in rows) == 300
    born = {row["cluster"]: row["parents"] for row in rows}
    assert born[0] == []
    assert all(parents for each, parents in born.items() if each != 0)  # the others were split from something


def test_the_medoid_is_the_row_nearest_to_the_centre(table: Collection) -> None:
    cluster(table, ClusterConfig(algorithm=KMeansConfig(clusters=4)))
    found = published(table, "kmeans")
    assigned, x_ND = found.assigned(), found.rows().x_ND
    cluster_N = assigned["cluster"].to_numpy()
    for row in found.clustering.clusters(found.generation).to_pylist():
        members = np.flatnonzero(cluster_N == row["cluster"])
        summed = ((x_ND[members][:, None] - x_ND[members][None]) ** 2).sum(axis=(1, 2))
        assert row["medoid_key"] == assigned["key"][int(members[summed.argmin()])].as_py()


def test_done_is_skipped_and_other_settings_are_not(table: Collection) -> None:
    first = cluster(table, ClusterConfig())
    assert cluster(table, ClusterConfig()).skipped
    other = cluster(table, ClusterConfig(algorithm=DPMConfig(concentration=5.0)))
    assert not other.skipped
    assert other.generation.generation == first.generation.generation + 1


def test_equal_fits_are_one_artifact_wherever_the_table_is(tmp_path: Path) -> None:
    digests = []
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        import_files([_file(tmp_path / place, "a", 200, 0)], tmp_path / place / "table")
        table = Collection.open(tmp_path / place / "table")
        digests.append(cluster(table, ClusterConfig(reduce=PCAConfig(n_components=2))).generation.artifact)
    assert digests[0] == digests[1]


def test_new_rows_are_assigned_without_a_new_fit(table: Collection, tmp_path: Path) -> None:
    fitted = cluster(table, ClusterConfig(reduce=PCAConfig(n_components=3)))
    before = {row["key"]: row["cluster"] for row in published(table).assigned().to_pylist()}
    assert assign(table).labelled == 0
    import_files([_file(tmp_path, "c", 50, 7)], table.path)
    summary = assign(table)
    assert (summary.labelled, summary.rows) == (50, 350)
    assert summary.generation.artifact == fitted.generation.artifact
    assert summary.generation.decision == "assign only"
    after = {row["key"]: row["cluster"] for row in published(table).assigned().to_pylist()}
    assert before == {key: value for key, value in after.items() if key in before}
    scores = evaluate(table, "dpm", EvaluateConfig())
    assert scores.labels is not None
    assert scores.labels.acc == 1.0


def test_another_tables_model_labels_this_one(table: Collection, tmp_path: Path) -> None:
    fitted = cluster(table, ClusterConfig(reduce=PCAConfig(n_components=3)))
    import_files([_file(tmp_path, "d", 80, 9)], tmp_path / "other")
    other = Collection.open(tmp_path / "other")
    path = table.artifacts.path("dpm", fitted.generation.artifact)
    assert assign(other, artifact=path).labelled == 80
    assert published(other).labeller.artifact.digest == fitted.generation.artifact


def test_another_dimension_is_a_sentence(table: Collection, tmp_path: Path) -> None:
    path = table.artifacts.path("dpm", cluster(table, ClusterConfig()).generation.artifact)
    import_files([_file(tmp_path, "wide", 10, 0, dim=5)], tmp_path / "wide")
    with pytest.raises(ShoalError, match="Embeddings are 5-d but the clusterer was fitted on 3-d"):
        assign(Collection.open(tmp_path / "wide"), artifact=path)
    assert Collection.open(tmp_path / "wide").artifacts.list() == []  # what was refused leaves nothing behind


def test_a_reduction_is_no_clusterer(table: Collection) -> None:
    cluster(table, ClusterConfig(reduce=PCAConfig(n_components=2)))
    reduction = next(path for path in table.artifacts.list() if path.name.startswith("reduction"))
    with pytest.raises(ShoalError, match="is no fitted clusterer"):
        read_labeller(table.artifacts, str(reduction))


def test_no_clustering_is_a_sentence(table: Collection) -> None:
    with pytest.raises(ShoalError, match=r"no clustering named dpm \(it has none\); run `shoal cluster`"):
        assign(table)


@pytest.mark.parametrize("algorithm", [DPMConfig(), KMeansConfig(clusters=1), GMMConfig(clusters=1)])
def test_one_row_makes_one_cluster(algorithm: DPMConfig | KMeansConfig | GMMConfig, tmp_path: Path) -> None:
    import_files([_file(tmp_path, "one", 1, 0)], tmp_path / "table")
    summary = cluster(Collection.open(tmp_path / "table"), ClusterConfig(algorithm=algorithm))
    assert (summary.clusters, summary.rows) == (1, 1)


def test_equal_rows_make_one_cluster(tmp_path: Path) -> None:
    np.save(tmp_path / "equal.npy", np.ones((40, 8), np.float32))
    import_files([tmp_path / "equal.npy"], tmp_path / "table")
    assert cluster(Collection.open(tmp_path / "table"), ClusterConfig()).clusters == 1


def test_fewer_rows_than_dimensions_are_clustered(tmp_path: Path) -> None:
    np.save(tmp_path / "wide.npy", np.random.default_rng(0).standard_normal((12, 30)).astype(np.float32))
    import_files([tmp_path / "wide.npy"], tmp_path / "table")
    summary = cluster(Collection.open(tmp_path / "table"), ClusterConfig(reduce=NoReduction()))
    assert summary.rows == 12


def test_a_killed_publication_leaves_the_last_generation(table: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cluster(table, ClusterConfig())

    class Killed(BaseException):
        pass

    def kill(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.tables.clusterings.Clustering.publish", kill)
        with pytest.raises(Killed):
            cluster(table, ClusterConfig(algorithm=DPMConfig(concentration=3.0)))
    assert published(table).generation == first.generation
    assert not cluster(table, ClusterConfig(algorithm=DPMConfig(concentration=3.0))).skipped


def _stopped_at(number: int) -> Progress:
    def stop(step: str, done: int, total: int | None) -> None:
        if (step, done) == ("fit", number):
            raise KeyboardInterrupt

    return stop


def test_a_stopped_fit_goes_on_and_leaves_nothing_behind(table: Collection, tmp_path: Path) -> None:
    config = ClusterConfig(algorithm=GMMConfig(clusters=5, tolerance=0), fit=FitConfig(max_passes=6))
    with pytest.raises(KeyboardInterrupt):
        cluster(table, config, on_progress=_stopped_at(3))
    (left,) = (table.path / "unfinished" / "gmm").iterdir()
    passes: list[int] = []
    summary = cluster(table, config, on_progress=lambda step, done, _: passes.append(done) if step == "fit" else None)
    assert passes[0] == 4
    assert summary.passes == passes[-1]
    assert not left.parent.parent.exists()
    shutil.copytree(tmp_path / "table", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "clusterings")
    shutil.rmtree(tmp_path / "again" / "artifacts")
    whole = cluster(Collection.open(tmp_path / "again"), config)
    assert whole.generation.artifact == summary.generation.artifact


def test_other_settings_and_other_rows_do_not_go_on_from_there(table: Collection, tmp_path: Path) -> None:
    def begun(config: ClusterConfig) -> int:
        passes: list[int] = []
        with pytest.raises(KeyboardInterrupt):
            cluster(table, config, on_progress=lambda *step: (passes.append(step[1]), _stopped_at(3)(*step)))
        return next(number for number in passes if number)

    first = ClusterConfig(algorithm=GMMConfig(clusters=5, tolerance=0))
    begun(first)
    begun(ClusterConfig(algorithm=GMMConfig(clusters=6, tolerance=0)))
    import_files([_file(tmp_path, "c", 50, 7)], table.path)
    begun(first)
    assert len(list((table.path / "unfinished" / "gmm").iterdir())) == 3


def test_how_a_fit_is_spread_is_no_new_clustering(table: Collection) -> None:
    cluster(table, ClusterConfig(algorithm=KMeansConfig(clusters=4)))
    spread = ClusterConfig(
        algorithm=KMeansConfig(clusters=4), fit=FitConfig(threads=2, workers=2), memory_ceiling_bytes=1
    )
    assert cluster(table, spread).skipped
    assert not cluster(table, ClusterConfig(algorithm=KMeansConfig(clusters=4), fit=FitConfig(seed=1))).skipped


class _Gradient:
    """k-means as an Objective: its centroids move between epochs, and its network learns nothing of use."""

    def __init__(self, config: KMeansConfig) -> None:
        self.model = KMeans(config, torch.zeros(0, 0), 0.0, 0.0)

    def build(self, data: DataSummary, plan: Plan) -> nn.Module:
        self.model = kmeans.start(self.model.config, data)
        return nn.Linear(data.dim, 1)

    def groups(self, net: nn.Module) -> list[dict[str, Any]]:
        return [{"params": list(net.parameters())}]

    def loss(self, net: nn.Module, batch: Batch, step: int, reduce: Reduce) -> Loss:
        return Loss(net(batch.x_BD).square().mean())

    def after_backward(self, net: nn.Module, step: int) -> None: ...

    def after_step(self, net: nn.Module, batch: Batch, step: int, reduce: Reduce) -> None: ...

    def on_start(self, net: nn.Module, passes: Passes) -> None: ...

    def on_epoch_end(self, net: nn.Module, epoch: int, passes: Passes) -> EpochEnd:
        update = self.model.maximize(passes.total(self.model.expect), torch.Generator())
        assert isinstance(update.model, KMeans)
        self.model = update.model
        return EpochEnd(clusters=len(update.model.id_K), objective=update.objective, settled=update.settled)

    def state(self) -> dict[str, Tensor]:
        return self.model.tensors()

    def load(self, state: Mapping[str, Tensor], net: nn.Module) -> None:
        self.model = kmeans.load(self.model.config, dict(state))

    def clusterer(self, net: nn.Module) -> KMeans:
        return self.model


def test_a_trained_algorithm_is_published_like_a_fitted_one(
    table: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ALGORITHMS, "kmeans", replace(ALGORITHMS["kmeans"], objective=_Gradient))
    config = ClusterConfig(algorithm=KMeansConfig(clusters=4), train=TrainConfig(epochs=9))
    steps: list[str] = []
    summary = cluster(table, config, on_progress=lambda step, *_: steps.append(step))
    assert "train" in steps
    assert "fit" not in steps
    assert (summary.clusters, summary.rows, summary.settled) == (4, 300, True)
    assert not (table.path / "unfinished").exists()
    manifest = published(table, "kmeans").labeller.artifact.manifest
    assert len(manifest["scalars"]) == summary.passes
    assert manifest["scalars"][0]["loss"] > 0
    import_files([_file(tmp_path, "c", 50, 7)], table.path)
    assert assign(table, name="kmeans").labelled == 50
    scores = evaluate(table, "kmeans", EvaluateConfig())
    assert scores.labels is not None
    assert scores.labels.acc == 1.0
    assert cluster(table, config.model_copy(update={"train": TrainConfig(epochs=9, workers=2)})).rows == 350


def test_a_worker_reads_its_own_rows_of_a_table(table: Collection, tmp_path: Path) -> None:
    source = TableRows(table.path, table.samples.version, None, 1 << 30)
    whole = source.read(0, source.rows)
    assert (source.rows, source.dim) == whole.x_ND.shape == (300, 3)
    for begin, end in ((0, 100), (100, 160), (140, 300), (150, 300), (300, 300)):
        part = source.read(begin, end)
        np.testing.assert_array_equal(part.x_ND, whole.x_ND[begin:end])
        np.testing.assert_array_equal(part.row_N, whole.row_N[begin:end])
    saved = source.saved(tmp_path / "saved").read(0, 300)
    np.testing.assert_array_equal(saved.x_ND, whole.x_ND)
    np.testing.assert_array_equal(saved.row_N, whole.row_N)
    before = source.fingerprint()
    import_files([_file(tmp_path, "c", 50, 7)], table.path)
    assert TableRows(table.path, source.version, None, 1).fingerprint() == before  # the version is what is read
    assert TableRows(table.path, table.samples.version, None, 1).fingerprint() != before


def test_rows_past_the_ceiling_are_memory_mapped_and_equal(table: Collection) -> None:
    version = table.samples.version
    resident, mapped = (load_rows(table.samples, version, ceiling) for ceiling in (1 << 30, 1))
    assert isinstance(mapped.x_ND, np.memmap)
    np.testing.assert_array_equal(resident.x_ND, mapped.x_ND)


def test_row_hashes_follow_key_and_shard_name_but_not_the_folder() -> None:
    def hashes(shard: str, keys: list[str]) -> list[int]:
        return row_hashes(pa.table({"shard": [shard] * len(keys), "key": keys})).tolist()

    assert hashes("/here/a.tar", ["x", "y"]) == hashes("s3://there/a.tar", ["x", "y"])
    assert len(set(hashes("a.tar", ["x", "y"]) + hashes("b.tar", ["x", "y"]))) == 4


def test_exemplars_are_the_best_and_the_least_certain() -> None:
    assigned = pa.table(
        {
            "key": ["a", "b", "c", "d"],
            "label": ["x", "x", None, "y"],
            "cluster": [5, 5, 5, 2],
            "probability": pa.array([0.9, 0.4, 0.8, 1.0], pa.float32()),
            "score": pa.array([-1.0, -3.0, -0.5, 0.0], pa.float32()),
        }
    )
    five, two = exemplars(assigned, [5, 2], typical=2, uncertain=1)
    assert [row["key"] for row in five.typical] == ["c", "a"]
    assert [row["key"] for row in five.uncertain] == ["b"]
    assert (five.size, five.majority_label, five.purity) == (3, "x", 1.0)
    assert (two.size, two.majority_label) == (1, "y")
