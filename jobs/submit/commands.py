"""`shoal submit` and `shoal jobs`: arguments to jobs, and nothing else."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
