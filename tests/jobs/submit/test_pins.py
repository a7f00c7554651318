"""Versions here and there."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from jobs.submit.entry import complaint, greeting
from jobs.submit.pins import (
    PYTHON,
    differences,
    installed,
    metadata_of_shoal,
    pins,
    read_pins,
    requirements,
    write_pins,
)


def test_pins_are_the_installed_versions_of_direct_dependencies() -> None:
    found = pins()
    assert found["numpy"] == version("numpy").partition("+")[0]
    assert {"ray", "torch", "pyarrow", "typer", PYTHON} <= found.keys()
    assert not {"pytest", "hypothesis", "lightly", "shoal"} & found.keys()  # of extras, and shoal itself
    assert ("faiss-cpu" in found) != ("faiss-gpu" in found)


def test_here_nothing_differs() -> None:
    assert differences(pins()) == {}
    assert complaint(pins()) is None


def test_every_difference_is_named_with_both_versions() -> None:
    wanted = {**pins(), "numpy": "0.1", "no-such-package": "2", PYTHON: "2.7"}
    assert differences(wanted) == {"numpy": ("0.1", installed("numpy")), "no-such-package": ("2", None)}
    said = complaint(wanted)
    assert said is not None
    assert f"numpy is {installed('numpy')} but 0.1 was sent, no-such-package is missing but 2 was sent" in said
    assert "--pin install" in said
    assert "(the sender has 2.7)" in greeting(wanted)
    assert "versions not compared" in greeting({})


def test_both_builds_of_faiss_are_faiss() -> None:
    here = installed("faiss-gpu") or installed("faiss-cpu")
    assert here is not None
    assert differences({"faiss-cpu": here, "faiss-gpu": here}) == {}
    assert differences({"faiss-cpu": "0"}) == {"faiss-cpu": ("0", here)}


def test_what_pip_is_to_install_is_all_but_what_must_be_there_before() -> None:
    assert requirements({"ray": "2", "numpy": "1.5", PYTHON: "3.11", "torch": "3"}) == ["numpy==1.5", "torch==3"]


def test_pins_come_back(tmp_path: Path) -> None:
    assert read_pins(tmp_path) == {}
    write_pins(tmp_path, {"numpy": "1.5"})
    assert read_pins(tmp_path) == {"numpy": "1.5"}


def test_shoal_is_known_where_only_its_code_is() -> None:
    name, text = metadata_of_shoal()
    assert name == f"shoal-{version('shoal')}.dist-info/METADATA"
    assert f"\nVersion: {version('shoal')}\n" in text
    assert "\nRequires-Dist: numpy" in text
