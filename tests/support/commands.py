"""Commands of `shoal`, run in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from jobs.cli import app


def shoal(*arguments: str | Path) -> Result:
    """Run a command, whatever becomes of it."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def figures_of(folder: Path, *arguments: str | Path) -> dict[str, Any]:
    """Run a command and return its JSON, having checked that it ended well."""
    path = folder / "figures.json"
    result = shoal(*arguments, "--json", path)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(path.read_text())
    return found
