"""`shoal probe`: three backbones beside each other, and what it says of them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from jobs.config import RunConfig
from jobs.probe import Probe, conclusion
from jobs.steps import State
from models.backbones import BackboneConfig, load_backbone
from models.errors import ShoalError
from pipeline.extract.backbone import publish_backbone
from pipeline.ingest.digits import digits
from pipeline.ingest.write import NewSample, ShardConfig, write_samples
from pipeline.progress import silent
from pipeline.tables.artifacts import ArtifactStore
from pipeline.tables.collection import Collection
from pipeline.tables.samples import TableProperties
from pipeline.tables.schema import REJECTED

PROPERTIES = TableProperties(dimension=2, backbone="x", backbone_digest="0", l2_normalised=False, preprocessing={})
SETTINGS = {
    "cluster": {"reduce": {"kind": "pca"}},
    "evaluate": {"probe": {"strengths": [1e-1, 1e-2], "iterations": 50, "restarts": 2}},
}


def packed(folder: Path, samples: list[NewSample]) -> str:
    write_samples(samples, folder, ShardConfig(images_per_shard=200))
    return str(folder)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Train and test shards of digits."""
    folder, images = tmp_path_factory.mktemp("digits"), list(digits())
    return packed(folder / "train", images[:400]), packed(folder / "test", images[400:600])


def config(**backbone: object) -> RunConfig:
    return RunConfig.model_validate({**SETTINGS, "backbone": backbone})


def test_the_conclusion_counts_what_is_better_than_the_best_of_the_others() -> None:
    def row(name: str, knn: float, linear: float, nmi: float) -> dict[str, str | float]:
        return {"features": name, "knn": knn, "linear": linear, "kmeans_nmi": nmi, "kmeans_acc": 0.5}

    rows = [row("backbone", 0.84, 0.88, 0.6), row("random weights", 0.81, 0.82, 0.48), row("pixels", 0.82, 0.8, 0.61)]
    assert conclusion(rows) == (
        "Against random weights and pixels, the backbone is better in 2 of 4 probes: "
        "weighted k-NN +0.020, linear +0.060, k-means NMI -0.010, k-means ACC +0.000."
    )
    assert "all there is to compare" in conclusion(rows[:1])


def test_a_plan_touches_nothing_and_names_every_table(shards: tuple[str, str], tmp_path: Path) -> None:
    train, test = shards
    settings = config(name="shoal/conv4_grey", weights="random", seed=1)
    steps = Probe((train,), (test,), str(tmp_path / "out"), settings).plan()
    assert [step.step for step in steps] == ["extract"] * 4 + ["cluster"] * 2 + ["probe"]  # random: the backbone itself
    assert {step.state for step in steps} == {State.TO_DO}
    assert not (tmp_path / "out").exists()


def test_test_shards_that_are_train_shards_are_refused(shards: tuple[str, str], tmp_path: Path) -> None:
    job = Probe(shards, (shards[1],), str(tmp_path), config(name="pixels"))
    with pytest.raises(ShoalError, match=r"1 shards are both in INPUT and in --test, first .*test/shard"):
        job.run(silent)


def test_a_table_of_other_shards_is_refused(shards: tuple[str, str], tmp_path: Path) -> None:
    """Else images that were trained on before might be tested on now."""
    job = Probe(shards[:1], (), str(tmp_path), config(name="pixels"))
    table = Collection.create(job._sides[0].extracts["train"].table).create_samples(PROPERTIES)
    row = pa.table({"key": ["k"], "shard": ["other.tar"], "reason": ["not_a_tar"]})
    table.commit([table.write(row, REJECTED)])
    for call in (job.plan, lambda: job.run(silent)):
        with pytest.raises(ShoalError, match=r"has 1 shards that were not given now, first other\.tar"):
            call()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_backbone_is_probed_beside_random_weights_and_pixels(shards: tuple[str, str], tmp_path: Path) -> None:
    train = shards[1]
    other = load_backbone(BackboneConfig(name="shoal/conv4_grey", weights="random", seed=1, size=16))
    store = ArtifactStore(tmp_path / "artifacts")
    artifact = store.path("backbone", publish_backbone(store, other).digest)
    output = tmp_path / "out"
    job = Probe((train,), (), str(output), config(weights=str(artifact)))
    figures = job.run(silent)
    assert figures.values["classes"] == 10
    assert figures.values["train_images"] + figures.values["test_images"] == 200
    assert 25 <= figures.values["test_images"] <= 55
    rows = {row["features"]: row for row in figures.tables["probes"]}
    assert {name: row["dimension"] for name, row in rows.items()} == {
        "backbone": 256,
        "random weights": 256,
        "pixels": 256,
    }
    assert all(row["dpm_clusters"] >= 1 and 0 <= row["dpm_nmi"] <= 1 for row in rows.values())
    scores = {tuple(row[name] for name in ("knn", "linear", "kmeans_nmi", "kmeans_acc")) for row in rows.values()}
    assert len(scores) == 3  # three backbones, not one
    assert all(0 < score <= 1 for each in scores for score in each)
    assert rows["pixels"]["knn"] > 0.8
    assert figures.tables["conclusion"] == [{"in_a_sentence": conclusion(figures.tables["probes"])}]
    made = [folder.name.rpartition("-")[0] for folder in sorted(output.iterdir())]
    assert made == ["pixels", "shoal-conv4_grey", "shoal-conv4_grey"]
    assert all(Collection.open(folder / "train").samples.count() == 200 for folder in output.iterdir())
    assert {step.state for step in job.plan()[:-1]} == {State.DONE}
    again = job.run(silent)
    assert again.tables == figures.tables


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_test_shards_are_tested_and_images_without_labels_refused(shards: tuple[str, str], tmp_path: Path) -> None:
    settings = config(name="pixels", size=8, grey=True)
    figures = Probe(shards[:1], shards[1:], str(tmp_path / "out"), settings).run(silent)
    assert [row["features"] for row in figures.tables["probes"]] == ["backbone"]  # random or not, pixels are pixels
    assert (figures.values["train_images"], figures.values["test_images"]) == (400, 200)
    bare = packed(tmp_path / "bare", [image._replace(label=None) for image in list(digits())[:100]])
    with pytest.raises(ShoalError, match="no labels"):
        Probe((bare,), (), str(tmp_path / "bare-out"), settings).run(silent)
