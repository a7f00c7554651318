"""A large run made small: which settings shrink, by how much, and which part of the images is taken."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.config import RunConfig, as_yaml, digest, resolve
from jobs.overrides import read_yaml
from jobs.scale import scaled
from models.umap_network import UMAPConfig

FULL = Path("imagenet_full")


def test_a_thousandth_of_imagenet_by_hand() -> None:
    small = resolve(FULL, ["scale=0.001"])
    learn, loop = small.train, small.train.loop
    assert (small.scale, small.collection.part, small.collection.images) == (1, 0.001, 1_281)
    assert (loop.epochs, loop.batch_size, loop.workers, loop.min_workers, loop.cpus_per_worker) == (1, 16, 1, None, 1)
    assert loop.lr == pytest.approx(4.8 * 16 / 4096)
    assert loop.warmup_epochs == pytest.approx(10 / 800)
    assert learn.objective.freeze == pytest.approx(1 / 800)  # or prototypes would never move
    assert (learn.objective.prototypes, learn.images.lanes, learn.images.threads) == (16, 8, 1)
    assert (small.extract.actors, small.cluster.train.batch_size) == (1, 128)
    assert isinstance(small.cluster.reduce, UMAPConfig) and small.cluster.reduce.max_fit_rows == 2_000
    assert (small.deploy.gpu.limit, small.deploy.cpu.limit, small.deploy.head.limit) == (0, 1, 1)


def test_half_of_imagenet_keeps_its_proportions() -> None:
    full, half = resolve(FULL), resolve(FULL, ["scale=0.5"])
    for name in ("epochs", "batch_size", "lr", "warmup_epochs", "workers", "cpus_per_worker"):
        assert getattr(half.train.loop, name) == pytest.approx(getattr(full.train.loop, name) / 2), name
    assert half.train.objective.prototypes == 1_500
    assert half.deploy.gpu.count == 4
    assert half.cluster.train.epochs == full.cluster.train.epochs  # a limit, not a length


def test_scale_1_changes_nothing() -> None:
    assert scaled(resolve(FULL)) is not None and resolve(FULL, ["scale=1"]) == resolve(FULL)


@settings(max_examples=8)
@given(scale=st.floats(1e-6, 1), name=st.sampled_from(["imagenet_full", "swav_fashion_cpu", "digits", "deepdpm"]))
def test_what_is_scaled_is_valid_no_larger_and_scaled_only_once(scale: float, name: str) -> None:
    full, small = resolve(Path(name)), resolve(Path(name), [f"scale={scale!r}"])
    assert RunConfig.model_validate(small.model_dump(mode="json")) == small
    assert scaled(small) == small
    loop = small.train.loop
    for each in ("epochs", "batch_size", "workers", "lr", "cpus_per_worker"):
        assert 0 < getattr(loop, each) <= getattr(full.train.loop, each), each
    assert loop.workers <= small.train.images.lanes or loop.workers == full.train.loop.workers


def test_scaled_settings_read_back_as_the_same_run(tmp_path: Path) -> None:
    small, file = resolve(FULL, ["scale=0.01"]), tmp_path / "config.yaml"
    file.write_text(as_yaml(small))
    assert resolve(file) == small
    assert digest(resolve(file)) == digest(small)


def test_the_part_that_is_taken_belongs_to_the_digest_and_the_guess_of_its_size_does_not() -> None:
    assert digest(resolve(None, ["collection.images=7"])) == digest(resolve())
    assert digest(resolve(None, ["collection.part=0.5"])) != digest(resolve())


def test_the_full_imagenet_learns_by_the_published_settings() -> None:
    free = {"min_workers": None, "checkpoint_minutes": None, "gpus_per_worker": 1}
    full, published = resolve(FULL), resolve(Path("swav_imagenet_rn50_800ep"))
    loop = full.train.loop.model_copy(update=free)
    assert full.train.model_copy(update={"loop": loop}) == published.train
    assert full.backbone.name == published.backbone.name


def test_placeholders_are_there_to_be_filled_in() -> None:
    deploy = read_yaml(Path(__file__).parents[2] / "jobs/configs/imagenet_full.yaml", RunConfig)["deploy"]
    assert "BUCKET" in deploy["input"] and "BUCKET" in deploy["output"]
