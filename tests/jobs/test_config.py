"""The whole tree of settings: files, sets, digests, and the named configs that are shipped."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from jobs.config import RunConfig, as_yaml, digest, resolve
from jobs.overrides import dotted_keys
from models.errors import ShoalError
from models.gmm import GMMConfig
from models.reduce import PCAConfig

SHIPPED = sorted(Path(__file__).parents[2].glob("jobs/configs/*.yaml"))


def test_sets_go_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("cluster: {fit: {seed: 3, max_passes: 7}}\n")
    fit = resolve(file, ["cluster.fit.seed=5"]).cluster.fit
    assert (fit.seed, fit.max_passes, fit.block_rows) == (5, 7, RunConfig().cluster.fit.block_rows)


def test_another_algorithm_takes_its_own_defaults() -> None:
    algorithm = resolve(None, ["cluster.algorithm.clusters=4", "cluster.algorithm.kind=gmm"]).cluster.algorithm
    assert algorithm == GMMConfig(clusters=4)


def test_a_section_that_is_null_becomes_one_by_its_kind() -> None:
    assert RunConfig().cluster.reduce is None
    assert resolve(None, ["cluster.reduce.kind=pca"]).cluster.reduce == PCAConfig()


@pytest.mark.parametrize(
    ("sets", "sentence"),
    [
        (["cluster.algorithm.kind=gnm"], "cluster.algorithm.kind is 'gnm' but should be one of "),
        (["cluster.algorithm.kind=gmm"], "cluster.algorithm.clusters has no value; give it one with --set cluster."),
        (
            ["cluster.reduce.n_neighbors=5"],
            "cluster.reduce.kind has no value; say which with --set cluster.reduce.kind=",
        ),
        (["cluster.algorithm.clusters=5"], "cluster.algorithm of kind 'dpm' has no setting 'clusters'; "),
        (["cluster.fit.seed=-1"], "cluster.fit.seed is -1 but should be greater than or equal to 0."),
        (["max_reject_fraction=much"], "max_reject_fraction is 'much' but should be a valid number"),
        (["backbone=pixels"], "backbone is 'pixels' but is a section of settings; write them as backbone.NAME."),
    ],
)
def test_a_wrong_setting_is_one_sentence(sets: list[str], sentence: str) -> None:
    with pytest.raises(ShoalError) as caught:
        resolve(None, sets)
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


def test_a_config_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(ShoalError, match=r"no config file digitz; .* one of deepdpm, digits, fashion_mnist"):
        resolve(Path("digitz"))


def test_a_config_of_shoal_is_found_by_its_name() -> None:
    assert resolve(Path("digits")) == resolve(next(file for file in SHIPPED if file.stem == "digits"))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_a_shipped_config_resolves_and_its_header_says_what_to_expect(file: Path) -> None:
    resolve(file)
    header = [line for line in file.read_text().splitlines() if line.startswith("#")]
    for word in ("command", "hardware", "time", "result"):
        assert any(line.removeprefix("#").strip().startswith(word) for line in header), word


def test_what_is_shown_reads_back_as_the_same_settings(tmp_path: Path) -> None:
    config = resolve(None, ["cluster.algorithm.kind=kmeans", "cluster.algorithm.clusters=3", "backbone.name=pixels"])
    file = tmp_path / "again.yaml"
    file.write_text(as_yaml(config))
    assert resolve(file) == config


def test_the_digest_names_what_results_depend_on() -> None:
    base = digest(resolve())
    assert digest(resolve(None, ["ray.num_cpus=3"])) == base
    assert digest(resolve(None, ["cluster.fit.seed=1"])) != base
    assert len(base) == 12


@given(st.sampled_from([key for key in dotted_keys(RunConfig) if key != "cluster.algorithm.kind"]))
def test_every_key_of_the_defaults_can_be_set_to_what_it_is(key: str) -> None:
    tree = resolve().model_dump(mode="json")
    for part in key.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return  # a key of another kind
        tree = tree[part]
    assert (
        resolve(None, [f"{key}={yaml.safe_dump(tree, default_flow_style=True).removesuffix('...' + chr(10))}"])
        == resolve()
    )
