"""Learning a backbone in miniature: what is published labels as the trained network does, and folders are one run's."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from object_store import ObjectStore
from sklearn.datasets import load_digits
from torch import Tensor

from models.backbone_config import BackboneConfig
from models.errors import ShoalError
from models.objective import ImageSummary
from models.swav.config import SwAVConfig
from models.swav.network import SwAVNet
from models.swav.objective import SwAVObjective
from models.views_config import Bank, ViewsConfig
from pipeline.cluster.assign import assign
from pipeline.cluster.fitted import read_labeller
from pipeline.extract.backbone import open_backbone
from pipeline.extract.shard import table_properties
from pipeline.ingest.digits import digits
from pipeline.ingest.write import ShardConfig, write_samples
from pipeline.tables.artifacts import read_artifact
from pipeline.tables.collection import Collection
from pipeline.train.checkpoints import CheckpointStore
from pipeline.train.config import TrainConfig
from pipeline.train.images.config import ImagesConfig
from pipeline.train.learn import LearnSummary, learn
from pipeline.train.learn_config import LearnConfig
from pipeline.train.learn_folder import LearnFolder, is_training
from pipeline.train.loop import plan_of
from pipeline.train.metrics import read_lines

IMAGES = 80
BACKBONE = BackboneConfig(name="shoal/conv4_grey", size=8)
CONFIG = LearnConfig(
    objective=SwAVConfig(prototypes=6, hidden=16, dim=8),
    views=ViewsConfig(
        policy="digits", base=8, banks=(Bank(size=8, count=2, area=(0.4, 1)), Bank(size=8, count=1, area=(0.2, 0.5)))
    ),
    images=ImagesConfig(lanes=2),
    loop=TrainConfig(batch_size=20, epochs=2, optimizer="lars", lr=0.6, log_every=2),
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighty digits in two shards."""
    folder = tmp_path_factory.mktemp("digits")
    write_samples(itertools.islice(digits(), IMAGES), folder, ShardConfig(images_per_shard=50))
    return folder


@pytest.fixture(scope="module")
def folder(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> LearnFolder:
    """Of a run that is over."""
    folder = tmp_path_factory.mktemp("run") / "trained"
    learn([str(shards)], LearnFolder(folder), CONFIG, BACKBONE)
    return LearnFolder(folder)


@pytest.fixture
def summary(folder: LearnFolder) -> LearnSummary:
    kept = folder.summary()
    assert kept is not None
    return LearnSummary(**kept)


def again(shards: Path, folder: LearnFolder, **changes: object) -> LearnSummary:
    return learn([str(shards)], LearnFolder(folder.path), CONFIG.model_copy(update=changes), BACKBONE)


def contents(folder: LearnFolder) -> dict[Path, tuple[int, int]]:
    """Everything in a folder, with sizes and times."""
    assert isinstance(folder.path, Path)
    files = (path for path in folder.path.rglob("*") if path.is_file())
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def digit_images(count: int) -> Iterator[Tensor]:
    """The first digits as decoded images."""
    for ink_88 in load_digits().images[:count]:
        yield torch.from_numpy(np.round(ink_88 * (255 / 16)).astype(np.uint8)).expand(3, -1, -1)


def test_a_run_says_what_it_came_to(folder: LearnFolder, summary: LearnSummary) -> None:
    assert (summary.images, summary.rejects, summary.epochs, summary.steps) == (IMAGES, {}, 2, 8)
    assert (summary.prototypes, summary.skipped_steps) == (6, 0)
    assert 1 <= summary.prototypes_used <= 6
    loss = summary.figures["loss"]
    assert loss is not None and loss > 0
    lines = [line for line in read_lines(folder.path) if "loss" in line]
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    assert [line["epoch"] for line in lines] == [0.5, 1.0, 1.5, 2.0]


def test_what_is_published_labels_images_as_the_trained_network_does(
    folder: LearnFolder, summary: LearnSummary
) -> None:
    backbone = open_backbone(BackboneConfig(weights=str(folder.artifacts.root / summary.backbone_artifact)))
    labeller = read_labeller(folder.artifacts, folder.artifacts.root / summary.prototypes_artifact)
    labeller.require(table_properties(backbone, {"reduce_jpeg": True}))
    assert (backbone.name, backbone.l2_normalise, backbone.pixels.channels) == ("shoal/conv4_grey", False, 1)
    image_NCHW = torch.stack([backbone.prepare(image) for image in digit_images(IMAGES)])
    labels = labeller.label(backbone.embed(image_NCHW))

    net = last_network(folder)
    with torch.no_grad():
        score_NK = net.scores(net((image_NCHW,)).unit_VBD[0])
    torch.testing.assert_close(labels.score_N, score_NK.amax(dim=1), rtol=0, atol=1e-5)
    top_N2 = score_NK.topk(2).values
    sure_N = top_N2[:, 0] - top_N2[:, 1] > 1e-4
    assert sure_N.float().mean() > 0.9
    assert torch.equal(labels.cluster_N[sure_N], score_NK.argmax(dim=1)[sure_N])


def last_network(folder: LearnFolder) -> SwAVNet:
    """Of the last checkpoint, in evaluation mode."""
    last = next(path for path in sorted(folder.checkpoints.iterdir(), reverse=True) if path.name.endswith(".json"))
    fingerprint = json.loads(last.read_text())["fingerprint"]
    found = CheckpointStore(folder.checkpoints, fingerprint).latest()
    assert found is not None and found.number == 8
    objective = SwAVObjective(CONFIG.objective, BACKBONE.model_copy(update={"weights": "random"}), CONFIG.views)
    net = objective.build(ImageSummary(IMAGES, CONFIG.loop.seed), plan_of(IMAGES, CONFIG.loop))
    net.load_state_dict(
        {name.removeprefix("net."): value for name, value in found.tensors.items() if name.startswith("net.")}
    )
    net.normalise_prototypes()  # as each step begins
    return net.eval()


def test_a_table_of_the_backbone_is_assigned_and_one_of_another_refused(
    folder: LearnFolder, summary: LearnSummary, tmp_path: Path
) -> None:
    backbone = open_backbone(BackboneConfig(weights=str(folder.artifacts.root / summary.backbone_artifact)))
    x_ND = backbone.embed(torch.stack([backbone.prepare(image) for image in digit_images(30)])).numpy()
    for name, loaded in (
        ("own", backbone),
        ("other", open_backbone(BACKBONE.model_copy(update={"weights": "random"}))),
    ):
        samples = Collection.create(tmp_path / name).create_samples(table_properties(loaded))
        rows = {"key": [f"{i:02d}" for i in range(30)], "shard": ["a.tar"] * 30, "embedding": x_ND.tolist()}
        samples.commit([samples.write(pa.table(rows), "ok")])
    artifact = folder.artifacts.root / summary.prototypes_artifact
    done = assign(Collection.open(tmp_path / "own"), artifact)
    assert (done.name, done.labelled, done.rows) == ("prototypes", 30, 30)
    with pytest.raises(ShoalError, match="re-extract with that backbone"):
        assign(Collection.open(tmp_path / "other"), artifact)


def test_prototypes_are_an_artifact_that_evaluation_and_reports_can_read(
    folder: LearnFolder, summary: LearnSummary
) -> None:
    manifest = read_artifact(folder.artifacts.root / summary.prototypes_artifact).manifest
    assert len(manifest["history"]) == len(manifest["scalars"]) == 2
    assert manifest["history"][-1][0] == pytest.approx(-manifest["scalars"][-1]["loss"])
    assert (manifest["rows"], manifest["clusters"], manifest["reduction"]) == (IMAGES, 6, None)


def test_a_run_that_is_over_is_not_trained_again(shards: Path, folder: LearnFolder, summary: LearnSummary) -> None:
    before = contents(folder)
    found = again(shards, folder)
    assert found.skipped and not summary.skipped
    assert (found.backbone_artifact, found.figures) == (summary.backbone_artifact, summary.figures)
    assert contents(folder) == before


def test_shards_may_have_moved_meanwhile(shards: Path, folder: LearnFolder, tmp_path: Path) -> None:
    moved = shutil.copytree(shards, tmp_path / "elsewhere")
    assert again(moved, folder).skipped


def test_what_a_result_does_not_depend_on_may_change(shards: Path, folder: LearnFolder) -> None:
    loop = CONFIG.loop.model_copy(update={"log_every": 1, "keep": 3, "checkpoint_minutes": 1.0})
    assert again(shards, folder, loop=loop, images=ImagesConfig(lanes=2, threads=2, ahead=1)).skipped


def test_other_settings_are_named_and_nothing_is_touched(shards: Path, folder: LearnFolder) -> None:
    before = contents(folder)
    loop = CONFIG.loop.model_copy(update={"lr": 0.3})
    with pytest.raises(ShoalError, match=r"other settings: train.loop.lr is 0.3 and was 0.6\. Give"):
        again(shards, folder, loop=loop)
    objective = CONFIG.objective.model_copy(update={"prototypes": 7, "epsilon": 0.03, "dim": 4})
    with pytest.raises(
        ShoalError, match=r"lr is 0\.3 .*objective\.dim is 4 .*objective\.epsilon is 0\.03 .*; 1 more differ"
    ):
        again(shards, folder, objective=objective, loop=loop)
    assert contents(folder) == before


def test_other_images_are_refused_and_the_first_ones_still_taken(
    shards: Path, folder: LearnFolder, tmp_path: Path
) -> None:
    one = tmp_path / "one"
    one.mkdir()
    shutil.copy(shards / "shard-000000.tar", one)
    with pytest.raises(ShoalError, match=r"input\.shards is 1 and was 2"):
        again(one, folder)
    changed = shutil.copytree(shards, tmp_path / "changed")
    shutil.copy(changed / "shard-000001.tar", changed / "shard-000000.tar")
    with pytest.raises(ShoalError, match="images changed since"):
        again(changed, folder)
    assert again(shards, folder).skipped


def test_a_run_that_was_stopped_comes_to_the_same(
    shards: Path, folder: LearnFolder, summary: LearnSummary, tmp_path: Path
) -> None:
    class Stopped(Exception):  # noqa: N818
        """As if the process had been killed."""

    def stop(step: str, done: int, total: int | None) -> None:
        if step == "train" and done == 6:  # in mid-epoch: the checkpoint is two steps back
            raise Stopped

    with pytest.raises(Stopped):
        learn([str(shards)], LearnFolder(tmp_path / "run"), CONFIG, BACKBONE, on_progress=stop)
    assert LearnFolder(tmp_path / "run").summary() is None
    found = learn([str(shards)], LearnFolder(tmp_path / "run"), CONFIG, BACKBONE)
    assert not found.skipped
    assert (found.backbone_artifact, found.prototypes_artifact, found.figures) == (
        summary.backbone_artifact,
        summary.prototypes_artifact,
        summary.figures,
    )
    steps = [line["step"] for line in read_lines(tmp_path / "run") if "loss" in line]
    assert steps == [2, 4, 6, 8]


def test_a_folder_of_something_else_is_refused_and_untouched(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(ShoalError, match=r"belongs to something else: it holds letter\.txt"):
        LearnFolder(tmp_path)
    with pytest.raises(ShoalError, match="is not a folder"):
        LearnFolder(tmp_path / "letter.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
    assert not is_training(tmp_path)


def test_a_mark_of_another_kind_is_refused(tmp_path: Path) -> None:
    for text in ("nonsense", '{"format": "shoal-training", "version": 2}', '{"format": "else"}'):
        (tmp_path / "training.json").write_text(text)
        with pytest.raises(ShoalError, match="give --output another folder"):
            LearnFolder(tmp_path)


def test_features_of_length_1_are_refused_before_anything_is_written(shards: Path, tmp_path: Path) -> None:
    backbone = BACKBONE.model_copy(update={"l2_normalise": True})
    with pytest.raises(ShoalError, match=r"backbone\.l2_normalise is true"):
        learn([str(shards)], LearnFolder(tmp_path / "run"), CONFIG, backbone)
    assert not (tmp_path / "run").exists()


def test_damaged_images_are_counted_and_the_others_trained_on(shards: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    with tarfile.open(shards / "shard-000000.tar") as whole, tarfile.open(damaged / "a.tar", "w") as tar:
        for number, info in enumerate(member for member in whole if member.name.endswith(".png")):
            file = whole.extractfile(info)
            assert file is not None
            data = file.read()[: 20 if number == 3 else None]
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    loop = CONFIG.loop.model_copy(update={"epochs": 1})
    config = CONFIG.model_copy(update={"loop": loop})
    found = learn([str(damaged)], LearnFolder(tmp_path / "run"), config, BACKBONE)
    assert (found.images, sum(found.rejects.values())) == (49, 1)


@pytest.mark.slow
def test_a_run_in_an_object_store_comes_to_the_same(
    shards: Path, folder: LearnFolder, summary: LearnSummary, bucket: ObjectStore
) -> None:
    found = learn([str(shards)], LearnFolder(f"{bucket.url}/run"), CONFIG, BACKBONE)
    assert (found.backbone_artifact, found.prototypes_artifact) == (
        summary.backbone_artifact,
        summary.prototypes_artifact,
    )
    assert again(shards, LearnFolder(f"{bucket.url}/run")).skipped


def test_a_run_that_is_over_stays_so_for_another_shoal_and_without_shards(
    shards: Path, folder: LearnFolder, summary: LearnSummary, tmp_path: Path
) -> None:
    copy = LearnFolder(shutil.copytree(str(folder.path), tmp_path / "run"))
    copy.finish({**folder.summary(), "of_a_later_shoal": 1})  # type: ignore[dict-item]
    before = contents(copy)
    assert learn([str(tmp_path / "gone")], copy, CONFIG, BACKBONE) == replace(summary, warnings=(), skipped=True)
    with pytest.raises(ShoalError, match=r"train\.loop\.lr is 0\.3 and was 0\.6"):
        loop = CONFIG.loop.model_copy(update={"lr": 0.3})
        learn([str(tmp_path / "gone")], copy, CONFIG.model_copy(update={"loop": loop}), BACKBONE)
    assert contents(copy) == before
    copy.finish({name: value for name, value in (folder.summary() or {}).items() if name != "steps"})
    found = again(shards, copy)
    assert (found.skipped, found.steps, found.backbone_artifact) == (False, 8, summary.backbone_artifact)


def test_settings_that_were_refused_leave_the_folder_to_those_that_are_not(shards: Path, tmp_path: Path) -> None:
    loop = CONFIG.loop.model_copy(update={"epochs": 1})
    config = CONFIG.model_copy(update={"loop": loop})
    for workers, lanes in ((3, 2), (16, 16)):  # of batches of 20 images
        refused = {"loop": loop.model_copy(update={"workers": workers}), "images": ImagesConfig(lanes=lanes)}
        with pytest.raises(ShoalError, match=rf"train\.loop\.workers is {workers}"):
            learn([str(shards)], LearnFolder(tmp_path / "run"), config.model_copy(update=refused), BACKBONE)
    assert not (tmp_path / "run").exists()
    damaged = CONFIG.loop.model_copy(update={"gpus_per_worker": 1, "epochs": 1, "lr": 0.3})
    if not torch.cuda.is_available():
        with pytest.raises(ShoalError, match="sees no GPU"):
            learn([str(shards)], LearnFolder(tmp_path / "run"), config.model_copy(update={"loop": damaged}), BACKBONE)
    assert learn([str(shards)], LearnFolder(tmp_path / "run"), config, BACKBONE).steps == 4


def test_compressed_shards_that_many_lanes_read_are_told_of(shards: Path, tmp_path: Path) -> None:
    for shard in shards.iterdir():
        (tmp_path / f"{shard.name}.gz").write_bytes(gzip.compress(shard.read_bytes()))
    config = CONFIG.model_copy(
        update={"images": ImagesConfig(lanes=8), "loop": CONFIG.loop.model_copy(update={"epochs": 1})}
    )
    with pytest.warns(UserWarning, match=r"2 shards are compressed.*8 of 8 lanes \(train\.images\.lanes\)"):
        learn([str(tmp_path)], LearnFolder(tmp_path / "run"), config, BACKBONE)
