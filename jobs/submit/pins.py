"""The versions of what shoal is built on, here and on the cluster: results and files depend on them."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution, requires, version
from pathlib import Path

FILE = "shoal-pins.json"  # beside the packages that are packed
PYTHON = "python"
_OF_THE_CLUSTER = ("ray", PYTHON)  # which runs before anything can be installed


def pins() -> dict[str, str]:
    """Installed version of every direct dependency of shoal, without the part after `+`, and Python's."""
    names = sorted({_name(each) for each in requires("shoal") or () if "extra ==" not in each})
    found = {name: installed(name) for name in names}
    known = {name: each for name, each in found.items() if each is not None}
    return {**known, PYTHON: ".".join(platform.python_version_tuple()[:2])}


def installed(name: str) -> str | None:
    """The public part of a version; None if it is not installed."""
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return None


def write_pins(folder: Path, wanted: Mapping[str, str]) -> None:
    """Beside what is packed, for `read_pins` on the cluster."""
    (folder / FILE).write_text(json.dumps(dict(wanted), indent=1, sort_keys=True), encoding="utf-8")


def read_pins(folder: Path) -> dict[str, str]:
    """What the sender has; empty if nothing was pinned."""
    path = folder / FILE
    if not path.exists():
        return {}
    found: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return found


def differences(wanted: Mapping[str, str]) -> dict[str, tuple[str, str | None]]:
    """Name to version wanted and version here, None if it is missing; Python is not among them.

    faiss-cpu and faiss-gpu are one package in two builds.
    """
    here = {name: _here(name) for name in wanted if name != PYTHON}
    return {name: (wanted[name], found) for name, found in here.items() if found != wanted[name]}


def requirements(wanted: Mapping[str, str]) -> list[str]:
    """As pip wants them, without what a cluster must have before it can install anything."""
    return [f"{name}=={each}" for name, each in sorted(wanted.items()) if name not in _OF_THE_CLUSTER]


def metadata_of_shoal() -> tuple[str, str]:
    """Name and text of a file by which shoal's version and dependencies are known where only its code is."""
    found = distribution("shoal")
    lines = [f"Requires-Dist: {each}" for each in found.requires or ()]
    text = "\n".join(["Metadata-Version: 2.1", "Name: shoal", f"Version: {found.version}", *lines, ""])
    return f"shoal-{found.version}.dist-info/METADATA", text


def _name(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower()


def _here(name: str) -> str | None:
    builds = ("faiss-cpu", "faiss-gpu")
    if name not in builds:
        return installed(name)
    return next((found for each in (name, *builds) if (found := installed(each)) is not None), None)
