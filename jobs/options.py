"""The options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

NONE: list[str] = []  # never changed: typer makes a list per call
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help="YAML file of settings, or the name of one that shoal ships."),
]
Sets = Annotated[list[str], typer.Option("--set", metavar="A.B=C", help="One setting by its dotted key; repeatable.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and do nothing.")]
Json = Annotated[Path | None, typer.Option("--json", metavar="PATH", help="Also write the figures as JSON.")]
Rejects = Annotated[
    float | None,
    typer.Option(
        "--max-reject-fraction", metavar="X", help="Exit with 1 when more than X of the samples are rejected."
    ),
]
BackboneOption = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        metavar="NAME|PATH",
        help="A backbone's name, or the path of a training run, an artifact or a checkpoint.",
    ),
]
Table = Annotated[str, typer.Argument(metavar="TABLE", help="Folder or URL of a table, or of a run.")]
Name = Annotated[str | None, typer.Option("--name", metavar="NAME", help="Which clustering of the table.")]
