"""The commands that look and change nothing: `show`, `status` and `config`."""
# ruff: noqa: PLC0415

from __future__ import annotations

from typing import Annotated, Any

import typer

from jobs.command import run_now
from jobs.options import NONE, ConfigFile, Json, Sets


def register(app: typer.Typer, **options: Any) -> None:
    """Add the commands to `app`; `options` are those of a group."""
    app.command()(show)
    app.command()(status)
    config = typer.Typer(help="The settings: as they are resolved, or as a JSON schema.", **options)
    config.command("show")(config_show)
    config.command("schema")(config_schema)
    app.add_typer(config, name="config")


def show(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A table, a run's folder, an artifact or a shard.")],
    json: Json = None,
) -> None:
    """What is this table, run, artifact or shard?

    Versions, rows, dimension, lineage and sizes.
    """
    from jobs.show import Show

    run_now(Show(path), json)


def status(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder of a run or a training, or the id of a job.")],
    address: Annotated[
        str | None, typer.Option("--address", metavar="URL", help="Dashboard of the cluster that has the job.")
    ] = None,
    json: Json = None,
) -> None:
    """Is it going, how far is it, how did it end?

    Of a run's folder, wherever it is, or of a job on a cluster.
    """
    from jobs.status import Status

    run_now(Status(run, address), json)


def config_show(config: ConfigFile = None, sets: Sets = NONE) -> None:
    """The settings as a run would use them, as YAML."""
    from jobs.settings import as_resolved

    typer.echo(as_resolved(config, sets), nl=False)


def config_schema() -> None:
    """What settings there are, as a JSON schema."""
    from jobs.settings import as_schema

    typer.echo(as_schema(), nl=False)
