"""The command `shoal`: arguments to jobs, and nothing else. What a command needs is imported when it is called."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from jobs.outcome import sentences

if TYPE_CHECKING:
    from jobs.config import RunConfig
    from jobs.steps import Job


class _Commands(TyperGroup):
    """The commands in the order they are written here, with errors as sentences."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: Any) -> Any:
        with sentences():
            return super().invoke(ctx)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Clusters very large image collections when nobody knows how many clusters there are.",
)
config_app = typer.Typer(no_args_is_help=True, help="Settings: as they are resolved, or as a JSON schema.")
app.add_typer(config_app, name="config")

ConfigFile = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="YAML file of settings.")]
Sets = Annotated[list[str], typer.Option("--set", metavar="A.B=C", help="One setting by its dotted key; repeatable.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be done and do nothing.")]
Json = Annotated[Path | None, typer.Option("--json", metavar="PATH", help="Write the figures as JSON, too.")]
Table = Annotated[str, typer.Argument(metavar="TABLE", help="Folder of a table, or of a run.")]
Name = Annotated[str | None, typer.Option("--name", help="Name of the clustering; by default its algorithm's.")]
