"""`shoal train` from a folder of images to labels by prototype, and the configs that it comes with."""

from __future__ import annotations

import io
import itertools
import json
import shlex
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import figures_of, shoal

from jobs.backbone import with_backbone
from jobs.config import RunConfig, resolve
from jobs.extract import room_of as extract_room
from jobs.train import figures_of as figures_of_summary
from jobs.train import room_of
from models.backbone_config import BackboneConfig
from models.errors import ShoalError
from models.objective import ImageSummary, whole_batch
from models.swav.objective import SwAVObjective
from models.views_config import Bank, ViewsConfig
from pipeline.extract.backbone import open_backbone
from pipeline.ingest.digits import digits
from pipeline.tables.artifacts import read_artifact
from pipeline.train.learn import begun_from, finished
from pipeline.train.learn_folder import LearnFolder
from pipeline.train.loop import plan_of
from pipeline.train.optimizer import make_optimizer, schedule
from pipeline.train.world import Alone

TINY = """
backbone: {name: shoal/conv4_grey, size: 8}
shards: {images_per_shard: 30}
train:
  objective: {prototypes: 5, hidden: 16, dim: 8}
  views: {policy: digits, base: 8, banks: [{size: 8, count: 2, area: [0.4, 1.0]}]}
  images: {lanes: 2}
  loop: {batch_size: 20, epochs: 1}
"""
IMAGES = 60
CONFIGS = (
    "swav_digits_cpu",
    "swav_fashion_cpu",
    "swav_small_images",
    "swav_imagenet_rn50_800ep",
    "swav_imagenet_rn50_bs256_200ep",
)
PUBLISHED = {  # rows of a step; lr at the first step, at its height, at the end; epochs of warm-up, and of all
    "swav_imagenet_rn50_800ep": (4096, 0.3, 4.8, 0.0048, 10, 800),
    "swav_imagenet_rn50_bs256_200ep": (256, 0.6, 0.6, 0.0006, 0, 200),
}
IMAGENET = 1_281_167


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of sixty digits, without labels."""
    folder = tmp_path_factory.mktemp("photos")
    for sample in itertools.islice(digits(), IMAGES):
        (folder / f"{sample.key}.png").write_bytes(sample.image)
    return folder


@pytest.fixture(scope="module")
def trained(photos: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The figures of a run on a folder of images; `output` is where it is."""
    folder = tmp_path_factory.mktemp("trained")
    found = figures_of(folder, "train", photos, "--output", folder / "run", "-c", tiny)
    return found | {"output": folder / "run"}


def test_a_folder_of_images_is_packed_and_learned_from(trained: dict[str, Any]) -> None:
    assert {
        name: trained[name] for name in ("images", "rejects", "epochs", "steps", "skipped_steps", "prototypes")
    } == {
        "images": IMAGES,
        "rejects": 0,
        "epochs": 1,
        "steps": 3,
        "skipped_steps": 0,
        "prototypes": 5,
    }
    assert trained["loss_of_guessing"] == pytest.approx(1.6094, abs=1e-4)  # ln 5
    assert trained["skipped"] is False
    assert trained["loss"] > 0 and 1 <= trained["prototypes_used"] <= 5 and trained["images_per_second"] > 0
    assert len(list((trained["output"] / "shards").glob("*.tar"))) == 2


def test_the_figures_name_both_artifacts_and_the_next_commands(trained: dict[str, Any]) -> None:
    assert read_artifact(trained["backbone"]).kind == "backbone"
    assert read_artifact(trained["prototypes_artifact"]).kind == "prototypes"
    commands = [row["command"] for row in trained["what_to_do_next"]]
    shards = trained["output"] / "shards"
    assert commands[0] == f"shoal extract {shards} --output TABLE --backbone {trained['backbone']}"
    assert commands[1] == f"shoal assign TABLE --artifact {trained['prototypes_artifact']}"


def test_the_same_command_again_is_done(trained: dict[str, Any], photos: Path, tiny: Path, tmp_path: Path) -> None:
    again = ("train", photos, "--output", trained["output"], "--config", tiny)
    assert [step["state"] for step in figures_of(tmp_path, *again, "--dry-run")["steps"]][-1] == "done, skipped"
    found = figures_of(tmp_path, *again)
    assert found["skipped"] is True
    assert found["backbone"] == trained["backbone"]


def test_other_settings_or_images_are_one_sentence(
    trained: dict[str, Any], photos: Path, tiny: Path, tmp_path: Path
) -> None:
    for extra in ((), ("--dry-run",)):
        lr = ("--set", "train.loop.lr=0.25", *extra)
        result = shoal("train", trained["output"] / "shards", "--output", trained["output"], "-c", tiny, *lr)
        assert result.exit_code == 2
        assert "train.loop.lr is 0.25 and was 0.6" in result.stderr
        assert result.stderr.count("\n") == 1
    other = tmp_path / "other"
    other.mkdir()
    (other / "one.png").write_bytes(next(photos.iterdir()).read_bytes())
    before = sorted((trained["output"] / "shards").iterdir())
    result = shoal("train", other, "--output", trained["output"], "-c", tiny)
    assert result.exit_code == 2 and "images changed" in result.stderr
    assert sorted((trained["output"] / "shards").iterdir()) == before


def test_a_folder_of_something_else_is_one_sentence(photos: Path, tiny: Path) -> None:
    result = shoal("train", photos, "--output", photos, "-c", tiny)
    assert result.exit_code == 2 and "belongs to something else" in result.stderr


def test_a_plan_touches_nothing(photos: Path, tiny: Path, tmp_path: Path) -> None:
    plan = figures_of(tmp_path, "train", photos, "--output", tmp_path / "run", "-c", tiny, "--dry-run")
    assert [(step["step"], step["state"]) for step in plan["steps"]] == [("shards", "to do"), ("train", "to do")]
    assert not (tmp_path / "run").exists()


def test_too_many_rejects_end_with_exit_code_1_and_are_counted(photos: Path, tiny: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number, path in enumerate(sorted(photos.iterdir())[:25]):
            data = path.read_bytes()[: 20 if number < 4 else None]
            info = tarfile.TarInfo(path.name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    output = ("--output", tmp_path / "run", "-c", tiny, "--json", tmp_path / "f.json")
    told = r"4 of 25 samples were rejected \(16.0%.*4 truncated_image.*digit-0000 in \S+a\.tar"
    with pytest.warns(UserWarning, match=told):  # before training
        result = shoal("train", tmp_path / "a.tar", *output)
    index = tmp_path / "run" / "images" / "index.parquet"
    assert result.exit_code == 1 and f"{index} names every reject" in result.stderr
    found = json.loads((tmp_path / "f.json").read_text())
    assert sum(row["samples"] for row in found["rejects_by_reason"]) == 4


def test_images_beside_a_shard_are_told_of(photos: Path, tiny: Path, tmp_path: Path) -> None:
    both = Path(shutil.copytree(photos, tmp_path / "both"))
    with tarfile.open(both / "stray.tar", "w") as tar:
        tar.add(both / "digit-0000.png", "digit-0000.png")
    with pytest.warns(
        UserWarning, match=r"holds 1 shards \(\.tar\) and 60 images beside them; only what is in the shards"
    ):
        plan = figures_of(tmp_path, "train", both, "--output", tmp_path / "run", "-c", tiny, "--dry-run")
    assert [step["step"] for step in plan["steps"]] == ["train"]


def test_commands_to_copy_are_quoted(trained: dict[str, Any]) -> None:
    folder = LearnFolder(trained["output"])
    summary = finished(folder)
    assert summary is not None
    figures = figures_of_summary(summary, folder, ["s3://b/train-{0..9}.tar", "my photos"], 0.05)
    commands = [str(row["command"]) for row in figures.tables["what_to_do_next"]]
    assert shlex.split(commands[0])[2:4] == ["s3://b/train-{0..9}.tar", "my photos"]
    assert "'s3://b/train-{0..9}.tar' 'my photos'" in commands[0]


def test_a_run_that_is_over_needs_neither_shards_nor_photos(
    photos: Path, tiny: Path, trained: dict[str, Any], tmp_path: Path
) -> None:
    output = Path(shutil.copytree(trained["output"], tmp_path / "run"))
    shutil.rmtree(output / "shards")
    for source in (photos, tmp_path / "gone"):
        again = ("train", source, "--output", output, "-c", tiny)
        assert [step["state"] for step in figures_of(tmp_path, *again, "--dry-run")["steps"]][-1] == "done, skipped"
        assert figures_of(tmp_path, *again)["skipped"] is True
    assert not (output / "shards").exists()


def test_too_many_workers_are_refused_before_anything_is_packed(photos: Path, tiny: Path, tmp_path: Path) -> None:
    for extra in ((), ("--dry-run",)):
        sets = ("--set", "train.loop.workers=3", *extra)
        result = shoal("train", photos, "--output", tmp_path / "run", "-c", tiny, *sets)
        assert result.exit_code == 2 and "train.images.lanes to at least 3" in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_run_and_its_artifacts_are_shown(trained: dict[str, Any], tmp_path: Path) -> None:
    run = figures_of(tmp_path, "show", trained["output"])
    assert (run["kind"], run["finished"], run["backbone"]) == ("training run", True, "shoal/conv4_grey")
    assert {row["artifact"] for row in run["artifacts"]} == {trained["backbone"], trained["prototypes_artifact"]}
    assert run["last_metrics"][0]["step"] == 3
    backbone = figures_of(tmp_path, "show", trained["backbone"])
    assert (backbone["kind"], backbone["weights"]) == ("artifact: backbone", "SwAV by shoal (1 epochs, 60 images)")
    prototypes = figures_of(tmp_path, "show", trained["prototypes_artifact"])
    assert (prototypes["kind"], prototypes["clusters"]) == ("artifact: prototypes", 5)


def test_warnings_of_a_run_are_sentences(photos: Path, tiny: Path, tmp_path: Path) -> None:
    sets = ("--set", "train.objective.prototypes=50", "--set", "train.objective.queue=0")
    with pytest.warns(UserWarning, match="50 prototypes but only 20 rows"):
        shoal("train", photos, "--output", tmp_path / "run", "-c", tiny, *sets)


def test_a_backbone_is_given_by_name_run_artifact_or_checkpoint(trained: dict[str, Any], tmp_path: Path) -> None:
    assert with_backbone("pixels", ["a=b"]) == ["a=b", "learn=false", 'backbone.name="pixels"']
    for given in (trained["output"], trained["backbone"]):
        sets = with_backbone(str(given), ["backbone.size=16"])
        found = resolve(Path("fashion_mnist"), sets).backbone  # whose own backbone is of grey pixels
        assert found == BackboneConfig(weights=trained["backbone"], size=16)
    checkpoint = tmp_path / "net.pth"
    checkpoint.write_bytes(b"")
    found = resolve(None, with_backbone(str(checkpoint), ["backbone.name=timm/resnet18"])).backbone
    assert (found.name, found.weights) == ("timm/resnet18", str(checkpoint))
    with pytest.raises(ShoalError, match="nearest names"):
        with_backbone("timm/resnet_18", [])


def test_the_backbone_of_a_run_under_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "training.json").write_text('{"format": "shoal-training", "version": 1}')
    with pytest.raises(ShoalError, match="is not over"):
        with_backbone(str(tmp_path), [])


def test_a_cluster_is_asked_for_the_least_that_training_begins_with() -> None:
    full = Path("imagenet_full")
    assert room_of(resolve(full)) == [{"CPU": 8, "GPU": 1}] * 64  # it has GPUs by `deploy`
    assert room_of(resolve(full, ["deploy.gpu.count=0"])) == [{"CPU": 8}] * 64
    assert room_of(resolve(full, ["train.loop.min_workers=32"])) == [{"CPU": 8, "GPU": 1}] * 32
    remote = ["train.images.feed=remote", "train.loop.workers=2", "train.images.threads=3"]
    assert room_of(resolve(None, remote)) == [{"CPU": 1}] * 2 + [{"CPU": 3}] * 4
    assert extract_room(resolve(full), 147) == [{"CPU": 1, "GPU": 1}] * 16
    assert extract_room(resolve(full), 2) == [{"CPU": 1, "GPU": 1}] * 2  # a worker per shard at most
    assert extract_room(resolve(None, ["extract.gpus_per_actor=0.5"]), 9) == []  # as many as there is room for


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_constants_are_those_of_the_paper(name: str) -> None:
    config = resolve(Path(name)).train
    rows, first, height, last, warmup, epochs = PUBLISHED[name]
    assert (config.loop.batch_size, config.loop.epochs, config.loop.optimizer) == (rows, epochs, "lars")
    assert (config.loop.weight_decay, config.loop.momentum, config.loop.seed) == (1e-6, 0.9, 31)
    assert config.views == ViewsConfig(
        banks=(Bank(size=224, count=2, area=(0.14, 1)), Bank(size=96, count=6, area=(0.05, 0.14)))
    )
    swav = config.objective
    assert (swav.prototypes, swav.epsilon, swav.iterations, swav.temperature) == (3000, 0.05, 3, 0.1)
    assert (swav.hidden, swav.dim, swav.freeze) == (2048, 128, 1)
    assert (swav.queue, swav.queue_start) == ((3840, 15) if rows == 256 else (0, None))
    assert plan_of(IMAGENET, config.loop).steps == {4096: 313, 256: 5005}[rows]  # how long theirs are frozen
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=config.loop.lr)
    for epoch, expected in ((0, first), (warmup, height), (epochs, last)):
        schedule(config.loop, optimizer, epoch)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if "rn50" in name else ()) for name in CONFIGS]
)
def test_a_step_of_every_config_moves_the_network(name: str) -> None:
    config = small(resolve(Path(name)))
    learned = config.train
    objective = SwAVObjective(learned.objective, begun_from(config.backbone), learned.views)
    net = objective.build(ImageSummary(64, learned.loop.seed), plan_of(64, learned.loop))
    optimizer = make_optimizer(learned.loop, objective, net)
    channels, generator = objective.pixels.channels, torch.Generator().manual_seed(0)
    views = tuple(
        torch.randint(0, 256, (4, channels, size, size), dtype=torch.uint8, generator=generator)
        for size in learned.views.sizes
    )
    batch = whole_batch(views, torch.arange(4))
    before = {key: value.detach().clone() for key, value in net.named_parameters()}
    schedule(learned.loop, optimizer, 0.5)
    with torch.autocast("cpu", torch.bfloat16, enabled=learned.loop.precision == "bf16"):
        loss = objective.loss(net, batch, 0, Alone())
    loss.total.backward()
    objective.after_backward(net, 0)
    optimizer.step()
    assert torch.isfinite(loss.total)
    moved = {key: float((value.detach() - before[key]).abs().max()) for key, value in net.named_parameters()}
    assert moved["prototypes.weight"] < 1e-6  # frozen in the first epoch
    weights = [moved[key] > 0 for key, value in before.items() if value.ndim > 1 and key != "prototypes.weight"]
    assert np.mean(weights) > 0.9  # in half precision a gradient of so few images may vanish


def small(config: RunConfig) -> RunConfig:
    """The same with batches, prototypes and crops that take no time."""
    banks = tuple(
        bank.model_copy(update={"size": max(8, bank.size // 7), "count": 2}) for bank in config.train.views.banks
    )
    train = config.train.model_copy(
        update={
            "objective": config.train.objective.model_copy(
                update={"prototypes": 4, "queue": 0, "hidden": 16, "dim": 8}
            ),
            "views": config.train.views.model_copy(update={"banks": banks}),
            "loop": config.train.loop.model_copy(update={"batch_size": 4, "workers": 1, "gpus_per_worker": 0}),
        }
    )
    return config.model_copy(update={"train": train})


@pytest.mark.slow
def test_from_images_to_labels_by_prototype(trained: dict[str, Any], ray_session: None, tmp_path: Path) -> None:
    """With a table's own workers: embeddings are those of the artifact, and assignments their labels."""
    shards, table = trained["output"] / "shards", tmp_path / "table"
    extracted = figures_of(tmp_path, "extract", shards, "--output", table, "--backbone", trained["output"])
    assert (extracted["images"], extracted["dimension"], extracted["backbone"]) == (IMAGES, 256, "shoal/conv4_grey")
    assigned = figures_of(tmp_path, "assign", table, "--artifact", trained["prototypes_artifact"])
    assert (assigned["clustering"], assigned["new_rows"]) == ("prototypes", IMAGES)
    assert figures_of(tmp_path, "evaluate", table)["scores"][0]["clusters"] == assigned["clusters"]
    assert (tmp_path / figures_of(tmp_path, "report", table, "--output", tmp_path / "r.html")["report"]).is_file()


@pytest.mark.slow
def test_two_workers_learn_the_same(photos: Path, tiny: Path, ray_session: None, tmp_path: Path) -> None:
    sgd = ("--set", "train.loop.optimizer=sgd", "--set", "train.loop.lr=0.02")
    alone, together = (
        figures_of(tmp_path, "train", photos, "--output", tmp_path / str(workers), "-c", tiny, *sgd, *sets)
        for workers, sets in ((1, ()), (2, ("--set", "train.loop.workers=2")))
    )
    assert together["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    mine, theirs = (open_backbone(BackboneConfig(weights=each["backbone"])).tensors() for each in (alone, together))
    for name, value in mine.items():  # rounding turns single ReLUs on and off; test_world.py has it in float64
        torch.testing.assert_close(torch.from_numpy(value), torch.from_numpy(theirs[name]), rtol=0, atol=5e-4)
