"""Estimates by hand, their laws, and the plans that show them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from commands import figures_of
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.config import RunConfig, resolve
from jobs.estimate.facts import Estimate, Facts
from jobs.estimate.plan import estimated
from jobs.rates import NETWORKS, RATES, Pace
from jobs.steps import State, Step

FULL = Path("imagenet_full")
STEPS = ("shards", "train", "extract", "cluster", "baseline", "assign", "evaluate", "report")


def estimates(config: RunConfig, facts: Facts | None, cpus: int = 2) -> dict[str, Estimate | None]:
    plan = estimated([Step(name, "") for name in STEPS], config, facts, cpus)
    return {step.step: step.estimate for step in plan}


def full(*sets: str) -> dict[str, Estimate]:
    config = resolve(FULL, list(sets))
    found = estimates(config, Facts(config.collection.images or 0, config.collection.image_bytes))
    return {name: each for name, each in found.items() if each is not None}


def seconds(estimate: Estimate | None) -> float:
    assert estimate is not None and estimate.seconds is not None
    return estimate.seconds


def test_learning_takes_what_its_source_published() -> None:
    train = full()["train"]
    assert seconds(train) == pytest.approx(49 * 3600, rel=0.01)  # and a Ray, and an index
    assert train.within == 3
    assert train.bytes_read == pytest.approx(801 * 1_281_167 * 108_000)
    parameters = 23_508_032 + (2_048 + 128) * 2_048 + 3_000 * 128
    assert train.bytes_written == 8 * parameters * 801
    assert "64 GPUs" in train.how and "the network takes longest" in train.how


def test_embedding_by_hand() -> None:
    extract = full()["extract"]
    assert seconds(extract) == pytest.approx(12 + 1_281_167 / (16 * 5_088))
    decoding = 1_281_167 * 108_000 / 75e6 / (16 * 9)
    assert f"decoding takes {decoding:.0f} s of 144 cores" in extract.how
    slow = full("deploy.gpu.cpus=8")["extract"]  # one core beside each GPU
    assert seconds(slow) == pytest.approx(12 + 1_281_167 * 108_000 / 75e6 / 16)


def test_gpus_that_are_missing_are_named_and_do_no_work() -> None:
    train = full("deploy.gpu.count=1")["train"]
    assert seconds(train) == pytest.approx(8 * 49 * 3600, rel=0.01)
    assert "on 8 GPUs (64 workers are wanted, but deploy.gpu has 8 GPUs)" in train.how
    extract = full("deploy.gpu.count=1")["extract"]
    assert seconds(extract) == pytest.approx(12 + 1_281_167 / (8 * 5_088))
    assert "16 workers are wanted, but deploy.gpu has 8 GPUs" in extract.how
    assert "wanted" not in full()["train"].how + full("deploy.gpu.count=1", "extract.gpus_per_actor=0.5")["extract"].how


def test_threads_that_decode_are_as_many_as_the_settings_say() -> None:
    assert "of 64 cores" in full("extract.decode_threads=4")["extract"].how  # of 16 workers
    assert "of 144 cores" in full("extract.decode_threads=99")["extract"].how  # 9 CPUs beside each GPU
    assert "of 2 cores" in full("scale=0.001", "extract.decode_threads=2000")["extract"].how


def test_a_laptop_has_no_gpus_and_takes_no_worker_beside_the_driver() -> None:
    train = full("scale=0.001")["train"]
    assert seconds(train) == pytest.approx(1_281 / 2.5 + 1_281 * 108_000 / 75e6)
    assert train.worker_bytes is None and 4e9 < (train.driver_bytes or 0) < 6e9  # measured: 4.5 GB
    assert "on 1 cores" in train.how


@pytest.mark.parametrize(
    ("config", "facts", "measured"),
    [("digits", Facts(1_797, 110), 30.5), ("fashion_mnist", Facts(70_000, 500), 106.3)],
)
def test_runs_that_were_measured_are_met_within_a_factor_of_one_and_a_half(
    config: str, facts: Facts, measured: float
) -> None:
    """On two cores with nothing else to do. The rates were made from these runs, so it proves sums, not rates."""
    found = estimates(resolve(Path(config)), facts)
    total = sum(seconds(each) for name, each in found.items() if each is not None and name != "train")
    assert measured / 1.5 < total < measured * 1.5


@settings(max_examples=10)
@given(images=st.integers(10_000, 10**8), size=st.integers(100, 10**6))
def test_twice_the_images_are_twice_the_bytes_and_no_less_time(images: int, size: int) -> None:
    config = resolve(FULL)
    once, twice = (estimates(config, Facts(count, size)) for count in (images, 2 * images))
    for name in ("shards", "train", "extract"):
        one, two = once[name], twice[name]
        assert one is not None and two is not None and two.bytes_read == pytest.approx(2 * (one.bytes_read or 0))
    for name in STEPS:
        if name != "assign":
            assert seconds(twice[name]) > seconds(once[name]), name


def test_what_is_not_known_is_not_guessed() -> None:
    config = resolve(None, ["backbone.name=timm/vit_small_patch14_dinov2"])
    found = estimates(config, Facts(1_000))
    for name in ("train", "extract", "cluster"):
        each = found[name]
        assert each is not None and each.seconds is None and each.within is None, name
    assert found["extract"] is not None and found["extract"].bytes_read is None  # nobody said how large they are
    assert estimates(config, None) == dict.fromkeys(STEPS)
    assert Pace(1, None, None, 1, "").of("bf16", 1, 0) is None


def test_what_is_done_takes_nothing() -> None:
    steps = [Step("extract", "", State.DONE), Step("report", "")]
    done, to_do = estimated(steps, RunConfig(), Facts(10), 2)
    assert done.estimate is None and to_do.estimate is not None


def test_every_rate_has_a_source_and_a_margin() -> None:
    sources = [*RATES.values(), *(pace for each in NETWORKS.values() for pace in (each.embed, each.learn))]
    assert len(sources) > 20
    assert all(each.source and each.within > 1 for each in sources)


def rows(found: dict[str, Any], table: str) -> dict[str, dict[str, Any]]:
    return {row["step"]: row for row in found[table]}


def test_a_plan_needs_neither_inputs_nor_output_where_the_settings_say_what_there_is(tmp_path: Path) -> None:
    shards = "/nowhere/imagenet-train-{0000..0146}.tar"
    found = figures_of(tmp_path, "run", shards, "--output", tmp_path / "run", "-c", FULL, "--dry-run")
    assert [row["step"] for row in found["steps"]] == [name for name in STEPS if name != "shards"]
    assert found["steps"][0]["what"].startswith("not looked at: /nowhere/imagenet-train-0000.tar")
    estimate = rows(found, "estimates")["train"]
    assert (estimate["seconds"], estimate["within_factor"], estimate["bytes_read"]) == (180_000, 3, 110 * 10**12)
    assert found["estimated_seconds"] == 180_000  # two digits: the other steps take an hour
    assert any("Caron et al. 2020" in row["source"] for row in found["rates"])
    assert not (tmp_path / "run").exists()


def test_a_plan_of_what_nobody_knows_is_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"")
    found = figures_of(tmp_path, "run", tmp_path / "a.tar", "--output", tmp_path / "run", "--dry-run")
    assert set(found) == {"command", "config_digest", "steps"}
    assert all(set(row) == {"step", "what", "state"} for row in found["steps"])
