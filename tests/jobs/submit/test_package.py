"""What leaves this machine: the code, the user's config file, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from jobs.submit.package import DATA, PACKAGES, packed_config, stage

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    own = tmp_path_factory.mktemp("own") / "mine.yaml"
    own.write_text("baseline: false\n")
    package = stage(folder, own, {"numpy": "0.0"})
    found = [path for path in folder.rglob("*") if path.is_file()]
    assert (package.files, package.size_bytes) == (len(found), sum(path.stat().st_size for path in found))
    return folder


def test_nothing_but_code_its_data_and_the_config_is_packed(packed: Path) -> None:
    names = {str(path.relative_to(packed)) for path in packed.rglob("*") if path.is_file()}
    code = {name for name in names if name.split("/")[0] in PACKAGES}
    assert names - code == {
        f"shoal-{version('shoal')}.dist-info/METADATA",
        packed_config(Path("mine.yaml")),
        "shoal-pins.json",
    }
    assert {Path(name).suffix for name in code} == {".py", ".yaml", ".sh", ".j2", ".css", ".svg"}
    assert not [name for name in code if "__pycache__" in name or "/." in name]
    assert (packed / "jobs" / "cli.py").read_bytes() == (ROOT / "jobs" / "cli.py").read_bytes()


def test_the_data_of_packages_is_that_of_the_distribution() -> None:
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert {name: list(patterns) for name, patterns in DATA.items()} == stated["package-data"]
    assert [f"{name}*" for name in PACKAGES] == stated["packages"]["find"]["include"]


def test_links_and_hidden_files_stay_here_and_the_rest_is_packed_the_same_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tmp_path / "tree"
    for package in PACKAGES:
        (tree / package / ".secrets").mkdir(parents=True)
        (tree / package / "__init__.py").write_text("")
        (tree / package / ".secrets" / "key.py").write_text("")
        (tree / package / "key.pem").write_text("")
    (tmp_path / "elsewhere.py").write_text("")
    (tree / "jobs" / "link.py").symlink_to(tmp_path / "elsewhere.py")
    monkeypatch.setattr("jobs.submit.package._root", lambda package: tree / package)
    stage(tmp_path / "packed", None, {"numpy": "0.0"})
    stage(tmp_path / "again", None, {"numpy": "0.0"})
    contents = [
        {str(path.relative_to(at)): path.read_bytes() for path in at.rglob("*") if path.is_file()}
        for at in (tmp_path / "packed", tmp_path / "again")
    ]
    assert contents[0] == contents[1]  # or Ray would upload it again
    found = {str(path.relative_to(tmp_path / "packed")) for path in (tmp_path / "packed").rglob("*.*")}
    code = {name for name in found if "/" in name and "dist-info" not in name}
    assert code == {f"{package}/__init__.py" for package in PACKAGES}


def test_what_is_packed_runs_alone_and_compares_versions_first(packed: Path) -> None:
    """With nothing of the tree but what is packed, where the head has Python and other versions."""
    ran = subprocess.run(
        [sys.executable, "-m", "jobs.submit.entry", "--", "show", "/"],
        cwd=packed,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 2
    assert f"numpy is {version('numpy')} but 0.0 was sent" in ran.stderr
