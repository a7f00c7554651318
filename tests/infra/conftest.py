"""What kustomize makes of infra/kuberay, once per session."""

from __future__ import annotations

import copy
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

KUBERAY = Path(__file__).parents[2] / "infra" / "kuberay"
Documents = list[dict[str, Any]]


@cache
def _built(overlay: str) -> Documents:
    folder = str(KUBERAY / "overlays" / overlay)
    command = ["kustomize", "build", folder] if shutil.which("kustomize") else ["kubectl", "kustomize", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.load_all(done.stdout, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


@pytest.fixture(scope="session")
def build() -> Callable[[str], Documents]:
    """The objects of an overlay, a copy that a test may spoil."""
    if not (shutil.which("kustomize") or shutil.which("kubectl")):
        pytest.skip("MANIFESTS NOT CHECKED: neither kustomize nor kubectl is installed; kubernetes.io/docs/tasks/tools")
    return lambda overlay: copy.deepcopy(_built(overlay))
