"""The commands about generations: what changed, how it came about, and how to return."""
# ruff: noqa: PLC0415, PLR0917

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from jobs.command import carry_out
from jobs.options import NONE, ConfigFile, DryRun, Json, Name, Sets, Table

if TYPE_CHECKING:
    from pipeline.history.tree import Life

AsOf = Annotated[
    str | None,
    typer.Option(
        "--as-of", metavar="G|DATE", help="Label as that generation, or the newest then, in a clustering of its own."
    ),
]


def diff(
    table: Table,
    before: Annotated[int, typer.Argument(metavar="G1", help="A generation.")],
    after: Annotated[int, typer.Argument(metavar="G2", help="Another one; it may be older.")],
    name: Name = None,
    output: Annotated[
        str | None, typer.Option("--output", metavar="FILE", help="Every image that moved: .parquet or .csv.")
    ] = None,
    config: ConfigFile = None,
    sets: Sets = NONE,
    dry_run: DryRun = False,
    json: Json = None,
) -> None:
    """What changed between two generations?

    Images that moved, arrived or are gone; clusters that were born, split, merged or died.
    """
    from jobs.diff import DiffGenerations

    carry_out(
        lambda settings: DiffGenerations(table, before, after, name, output, settings), config, sets, dry_run, json
    )


def history(
    table: Table,
    cluster: Annotated[int | None, typer.Argument(metavar="[CLUSTER]", help="Its number; all if not given.")] = None,
    name: Name = None,
    config: ConfigFile = None,
    sets: Sets = NONE,
    dry_run: DryRun = False,
    json: Json = None,
) -> None:
    """The life of a cluster as a tree, or all generations.

    What happened to it, whom it came from, whom it took in, what split off.
    """
    from jobs.history import History, draw

    lives: list[Life] = []
    carry_out(lambda settings: History(table, cluster, name, settings, lives.append), config, sets, dry_run, json)
    for life in lives:
        draw(life)


def rollback(
    table: Table,
    generation: Annotated[int, typer.Argument(metavar="G", help="The generation to return to.")],
    name: Name = None,
    config: ConfigFile = None,
    sets: Sets = NONE,
    dry_run: DryRun = False,
    json: Json = None,
) -> None:
    """Return to an earlier generation, as a new one.

    Nothing in between is lost; `assign` then labels what came later.
    """
    from jobs.rollback import Rollback

    carry_out(lambda settings: Rollback(table, generation, name, settings), config, sets, dry_run, json)


def remove(
    table: Table,
    keys: Annotated[list[str], typer.Argument(metavar="[KEY...]", help="Keys of samples, as in the table.")] = NONE,
    file: Annotated[
        str | None, typer.Option("--keys", metavar="FILE", help="Keys: one a line, or column `key` of .csv, .parquet.")
    ] = None,
    shard: Annotated[
        str | None, typer.Option("--shard", metavar="SHARD", help="Of this shard only; else of all that have the key.")
    ] = None,
    config: ConfigFile = None,
    sets: Sets = NONE,
    dry_run: DryRun = False,
    json: Json = None,
) -> None:
    """Take images down: out of every table, model and file.

    Without keys, complete a removal that was stopped. The shards themselves stay as they are.
    """
    from jobs.remove import Remove

    carry_out(lambda _: Remove(table, tuple(keys), file, shard), config, sets, dry_run, json)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (diff, history, rollback, remove):
        app.command()(command)
