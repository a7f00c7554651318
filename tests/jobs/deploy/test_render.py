"""`shoal render`, from the command line to the manifest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from commands import shoal
from orders import PLACES

SETS = [word for place in PLACES for word in ("--set", place)]
# What a config would say, so that there is nothing to warn of.
QUIET = ["--set", "deploy.image=registry.example/shoal:1", "--set", "deploy.cloud.machine_image=ami-1"]
TARGETS = ["kubernetes", "slurm", "ray-up"]
KEY = "wJalrXUtnFEMI-bPxRfiCYEXAMPLEKEY"


def test_a_manifest_and_nothing_else_goes_to_stdout() -> None:
    result = shoal("render", "kubernetes", *SETS, *QUIET)
    assert result.exit_code == 0, result.output
    kinds = [each["kind"] for each in yaml.safe_load_all(result.stdout)]
    assert kinds == [*["ServiceAccount"] * 2, *["NetworkPolicy"] * 3, "PodDisruptionBudget", "RayJob"]
    assert result.stderr == ""


def test_a_command_of_ones_own_has_its_own_options() -> None:
    command = ["extract", "s3://a/shards", "--output", "s3://a/table", "--profile"]
    result = shoal("render", "slurm", "--set", "deploy.name=embed", *command)
    assert "set -- extract s3://a/shards --output s3://a/table --profile\n" in result.stdout


def test_what_is_to_be_typed_is_at_the_head() -> None:
    text = shoal("render", "kubernetes", *SETS, *QUIET, "--set", "deploy.namespace=team-1").stdout
    comments = [line for line in text.splitlines() if line.startswith("# kubectl")]
    assert [line.partition("   #")[0].removeprefix("# kubectl ") for line in comments] == [
        "create namespace team-1",
        "label namespace team-1 pod-security.kubernetes.io/enforce=restricted",
        "apply -f shoal.yaml",
        "-n team-1 get rayjob shoal",
        "-n team-1 logs -f job/shoal",
        "-n team-1 delete rayjob shoal",
    ]


def test_gpus_that_come_later_are_in_the_command() -> None:
    wanted = "--set extract.gpus_per_actor=1 --set extract.actors=4 --set extract.autoscale=true"
    for target, count in (("kubernetes", 0), ("ray-up", 4)):
        gpus = ["--set", f"deploy.gpu.count={count}", "--set", "deploy.gpu.most=4"]
        assert wanted in shoal("render", target, *SETS, *QUIET, *gpus).stdout
        assert wanted not in shoal("render", "slurm", *SETS, *QUIET, *gpus).stdout  # which begins with all machines


def test_a_file_is_written_whole_and_figures_say_what_is_asked_for(tmp_path: Path) -> None:
    out, figures = tmp_path / "run.yaml", tmp_path / "figures.json"
    gpus = ["--set", "deploy.gpu.most=4"]
    result = shoal("render", "kubernetes", *SETS, *QUIET, *gpus, "--output", out, "--json", figures)
    assert result.exit_code == 0, result.output
    assert "kubectl apply -f" in out.read_text()
    found = json.loads(figures.read_text())
    assert found["objects"] == "2 ServiceAccount, 3 NetworkPolicy, 1 PodDisruptionBudget, 1 RayJob"
    assert found["machines"][2] == {
        **{"group": "gpu", "machines": 0, "most": 4, "cpus": 8, "memory_gib": 64, "gpus": 1},
    }
    assert [each.name for each in tmp_path.iterdir() if each not in (out, figures)] == []


@pytest.mark.parametrize("flag", ["--output", "--json"])
def test_a_folder_that_is_not_there_is_told_before_anything_is_printed(flag: str, tmp_path: Path) -> None:
    result = shoal("render", "slurm", *SETS, flag, tmp_path / "none" / "file")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert f"make {tmp_path / 'none'} first" in result.stderr


@pytest.mark.parametrize("target", TARGETS)
def test_no_secret_of_the_environment_gets_into_it(
    target: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "RAY_AUTH_TOKEN", "GOOGLE_API_KEY"):
        monkeypatch.setenv(name, f"{name}-{KEY}")
    file = tmp_path / "mine.yaml"
    file.write_text("max_reject_fraction: 0.5\n")
    result = shoal("render", target, *SETS, *QUIET, "-c", file)
    assert result.exit_code == 0, result.output
    assert KEY not in result.output
    assert str(tmp_path) not in result.output or target == "ray-up"  # there it is what is to be typed here


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("where", ["command", "config"])
def test_a_secret_that_is_in_the_command_is_refused(
    target: str, where: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STORE_SECRET", KEY)
    file = tmp_path / "mine.yaml"
    file.write_text(f"max_reject_fraction: 0.5\n# {KEY}\n" if where == "config" else "max_reject_fraction: 0.5\n")
    output = f"s3://a/{KEY}" if where == "command" else "s3://a/b"
    result = shoal("render", target, "-c", file, "run", "s3://a/in", "--output", output)
    if target == "ray-up" and where == "config":  # the file stays here; `shoal submit` sends it to the cluster alone
        assert KEY not in result.output
        return
    assert result.exit_code == 2
    assert "the value of STORE_SECRET" in result.output
    assert KEY not in result.output


@pytest.mark.parametrize(
    "url",
    ["https://me:pass@host/a.tar", "https://host/a.tar?X-Amz-Signature=00aa11", "https://host/a.tar?sv=1&sig=00aa11"],
)
def test_a_url_with_a_credential_is_refused(url: str) -> None:
    result = shoal("render", "kubernetes", "extract", url, "--output", "s3://a/b")
    assert result.exit_code == 2
    assert "credential" in result.output
    assert "00aa11" not in result.output
    assert "pass@" not in result.output


@pytest.mark.parametrize(
    ("target", "sets", "reason"),
    [
        ("kubernetes", ["deploy.input=s3://BUCKET/a"], "BUCKET stands where a name of yours belongs"),
        ("ray-up", ["deploy.cloud.machine_image=null"], "<AMI> stands where"),
        ("kubernetes", ["deploy.image=null"], "shoal:0.1.0-cpu is in no registry"),
        ("kubernetes", ["deploy.output=/out"], "/out is on a disk of one machine.*deploy.storage.claim"),
        ("kubernetes", ["deploy.output=/out", "deploy.storage.claim=c"], "/out is on a disk.*a folder below /data"),
        ("ray-up", ["deploy.output=/out"], "/out is on a disk of one machine"),
    ],
)
def test_what_will_not_work_is_told(target: str, sets: list[str], reason: str) -> None:
    words = [word for each in sets for word in ("--set", each)]
    with pytest.warns(UserWarning, match=reason):
        assert shoal("render", target, *SETS, *QUIET, *words).exit_code == 0


@pytest.mark.parametrize("name", ["Shoal", "a.b", "1a", "a" * 41, "a\nb", "-a", "a-"])
def test_names_are_those_of_kubernetes(name: str) -> None:
    result = shoal("render", "kubernetes", *SETS, "--set", f"deploy.name={json.dumps(name)}")
    assert result.exit_code == 2
    assert "deploy.name" in result.output
