"""The command `shoal`: arguments to jobs, and nothing else. What a command needs is imported when it is called."""
# ruff: noqa: PLC0415, PLR0917

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from jobs import journal, lineage_commands, look_commands
from jobs.command import backbone_sets, carry_out, finish, reject_sets
from jobs.deploy import commands as deploy_commands
from jobs.options import NONE, BackboneOption, ConfigFile, DryRun, Json, Name, Rejects, Sets, Table
from jobs.outcome import INTERRUPTED, Missed, sentences, warn_in_sentences
from jobs.submit import commands as submit_commands


class _Commands(TyperGroup):
    """Commands whose errors are sentences."""

    def invoke(self, ctx: Any) -> Any:
        with sentences():
            return super().invoke(ctx)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        found = super().resolve_command(ctx, args)
        journal.begin(found[0])
        return found


_PLAIN: dict[str, Any] = {"no_args_is_help": True, "add_completion": False, "rich_markup_mode": None}
app = typer.Typer(
    cls=_Commands,
    help="Clusters very large image collections when nobody knows how many clusters there are.",
    pretty_exceptions_enable=False,
    **_PLAIN,
)


@app.command()
def demo(
    output: Annotated[
        str, typer.Option("--output", metavar="DIR", help="Where shards, table and report go.")
    ] = "shoal-demo",
    config: ConfigFile = None,
    sets: Sets = NONE,
    dry_run: DryRun = False,
    json: Json = None,
) -> None:
    """Cluster 1,797 handwritten digits, from images to a report."""
    from jobs.config import shipped
    from jobs.demo import demo as demo_run

    carry_out(lambda settings: demo_run(output, settings), config or shipped("digits"), sets, dry_run, json)


@app.command()
def run(
    source: Annotated[str, typer.Argument(metavar="INPUT", help="Folder of images, folder of shards, or shard URLs.")],
    output: Annotated[str, typer.Option("--output", metavar="DIR", help="Where shards, table and report go.")],
    backbone: BackboneOption = None,
    max_reject_fraction: Rejects = None,
    config: ConfigFile = None,
    sets: Sets = NONE,
    dry_run: DryRun = False,
    json: Json = None,
) -> None:
    """Images to clusters and a report; the same command continues.

    Packs shards, embeds, clusters without K, scores and reports. Each step skips what is done.
    """
    from jobs.run import whole_job

    sets = [*backbone_sets(backbone, sets), *reject_sets(max_reject_fraction)]
    carry_out(lambda settings: whole_job(source, output, settings), config, sets, dry_run, json)


@app.command()
def shards(
    source: Annotated[str, typer.Argument(metavar="INPUT", help="Folder of images; its sub-folders are labels.")],
    output: Annotated[str, typer.Option("--output", metavar="DIR", help="Folder of the shards.")],
    config: ConfigFile = None,
    sets: Sets = NONE,
    dry_run: DryRun = False,
    json: Json = None,
) -> None:
    """Pack a folder of images into WebDataset shards."""
    from jobs.shards import Shards

    carry_out(lambda settings: Shards(source, output, settings), config, sets, dry_run, json)


@app.command()
def train(
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT...", help="A folder of images; or folders of shards, shards, URLs.")
    ],
    output: Annotated[str, typer.Option("--output", metavar="DIR", help="Where checkpoints, metrics, artifacts go.")],
    max_reject_fraction: Rejects = None,
    config: ConfigFile = None,
    sets: Sets = NONE,
    dry_run: DryRun = False,
    json: Json = None,
) -> None:
    """Learn a backbone from your own images, without labels.

    The same command continues a run that was stopped. What comes out is for `extract --backbone` and `assign`.
    """
    from jobs.train import Train

    sets = [*sets, *reject_sets(max_reject_fraction)]
    carry_out(lambda settings: Train(tuple(inputs), output, settings), config, sets, dry_run, json)


@app.command()
def probe(
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT...", help="Labelled shards that probes are fitted on.")],
    output: Annotated[str, typer.Option("--output", metavar="DIR", help="Where tables of embeddings go.")],
    backbone: BackboneOption = None,
    test: Annotated[
        list[str],
        typer.Option("--test", metavar="INPUT", help="Labelled shards to be tested on; repeatable. A fifth if none."),
    ] = NONE,
    max_reject_fraction: Rejects = None,
    config: ConfigFile = None,
    sets: Sets = NONE,
    dry_run: DryRun = False,
    json: Json = None,
) -> None:
    """What do a backbone's features hold, beside raw pixels and random weights?

    Weighted k-NN and a linear classifier on frozen features, k-means given K, and clusters without K.
    """
    from jobs.probe import Probe

    sets = [*backbone_sets(backbone, sets), *reject_sets(max_reject_fraction)]
    carry_out(lambda settings: Probe(tuple(inputs), tuple(test), output, settings), config, sets, dry_run, json)


@app.command()
def extract(
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT...", help="Folders of shards, shards, or their URLs.")],
    output: Annotated[str, typer.Option("--output", metavar="TABLE", help="Folder of the table.")],
    backbone: BackboneOption = None,
    profile: Annotated[bool, typer.Option("--profile", help="Also show where the time went, stage by stage.")] = False,
    max_reject_fraction: Rejects = None,
    config: ConfigFile = None,
    sets: Sets = NONE,
    dry_run: DryRun = False,
    json: Json = None,
) -> None:
    """Embed the images of shards into a table."""
    from jobs.extract import Extract

    sets = [*backbone_sets(backbone, sets), *reject_sets(max_reject_fraction)]
    carry_out(lambda settings: Extract(tuple(inputs), output, settings, profile), config, sets, dry_run, json)


@app.command()
def cluster(
    table: Table,
    name: Name = None,
    prior_scale: Annotated[
        float | None,
        typer.Option("--prior-scale", help="Prior covariance in units of the data's variance; smaller is finer."),
    ] = None,
    config: ConfigFile = None,
    sets: Sets = NONE,
    dry_run: DryRun = False,
    json: Json = None,
) -> None:
    """Find clusters, and how many there are, in a table of embeddings."""
    from jobs.cluster import Cluster

    if prior_scale is not None:
        sets = [*sets, f"cluster.algorithm.prior_scale={prior_scale}"]
    carry_out(lambda settings: Cluster(table, name, settings), config, sets, dry_run, json)


@app.command()
def assign(
    table: Table,
    artifact: Annotated[str | None, typer.Option("--artifact", metavar="PATH", help="Fitted model to use.")] = None,
    name: Name = None,
    as_of: lineage_commands.AsOf = None,
    config: ConfigFile = None,
    sets: Sets = NONE,
    dry_run: DryRun = False,
    json: Json = None,
) -> None:
    """Label new rows by the model that was fitted."""
    from jobs.assign import Assign

    carry_out(lambda settings: Assign(table, artifact, name, settings, as_of), config, sets, dry_run, json)


@app.command()
def recluster(
    table: Table,
    name: Name = None,
    mode: Annotated[
        str | None, typer.Option("--mode", metavar="MODE", help="auto, assign, refine or refit; auto decides by tests.")
    ] = None,
    metrics: Annotated[
        str | None, typer.Option("--metrics", metavar="FILE", help="Also write figures and drift for Prometheus.")
    ] = None,
    config: ConfigFile = None,
    sets: Sets = NONE,
    dry_run: DryRun = False,
    json: Json = None,
) -> None:
    """Fold new rows into a clustering: same clusters, same numbers, and what changed.

    Reads what came and went since the last generation, decides whether labels, a refinement or a full fit is due,
    and says why.
    """
    from jobs.recluster import Recluster

    sets = [*sets, *([] if mode is None else [f"recluster.mode={mode}"])]
    carry_out(lambda settings: Recluster(table, name, metrics, settings), config, sets, dry_run, json)


@app.command()
def evaluate(
    table: Table,
    name: Name = None,
    config: ConfigFile = None,
    sets: Sets = NONE,
    dry_run: DryRun = False,
    json: Json = None,
) -> None:
    """Score clusterings, against labels where there are any."""
    from jobs.evaluate import Evaluate

    carry_out(lambda settings: Evaluate(table, name, settings), config, sets, dry_run, json)


@app.command()
def report(
    table: Table,
    output: Annotated[
        str | None, typer.Option("--output", metavar="FILE", help="The HTML file; TABLE's folder if not given.")
    ] = None,
    name: Name = None,
    config: ConfigFile = None,
    sets: Sets = NONE,
    dry_run: DryRun = False,
    json: Json = None,
) -> None:
    """Show a clustering and its images in one HTML file."""
    from jobs.reporting import Report

    carry_out(lambda settings: Report(table, output, name, settings), config, sets, dry_run, json)


@app.command("import")
def import_(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help=".npy, .npz, .parquet, .arrow or .safetensors")],
    output: Annotated[str, typer.Option("--output", metavar="TABLE", help="Folder of the table.")],
    max_reject_fraction: Rejects = None,
    config: ConfigFile = None,
    sets: Sets = NONE,
    dry_run: DryRun = False,
    json: Json = None,
) -> None:
    """Bring embeddings made elsewhere into a table."""
    from jobs.importing import Import

    sets = [*sets, *reject_sets(max_reject_fraction)]
    carry_out(lambda settings: Import(tuple(files), output, settings), config, sets, dry_run, json)


@app.command()
def bench(
    name: Annotated[str, typer.Argument(metavar="list|NAME")],
    data: Annotated[
        Path | None, typer.Option("--data", metavar="PATH", help="The data, if not in its usual place.")
    ] = None,
    json: Json = None,
) -> None:
    """Measure both sides of a comparison; `list` names them.

    Prints a table and, last, one JSON line. Exits with 1 when the bar is missed.
    """
    from jobs.bench import registry

    if name == "list":
        finish(registry.listing(), json)
        return
    from jobs.screen import progress

    benchmark = registry.find(name)
    with progress() as on_progress:
        result = benchmark.run(data, on_progress)
    finish(result.figures, json)
    typer.echo(registry.json_line(benchmark, result))
    if not result.holds:
        missed = ", ".join(f"{bar.name} is {bar.value:.4g}, {bar.text}" for bar in result.bars if not bar.holds)
        raise Missed(f"{name} misses its bar ({benchmark.bar}): {missed}.")


lineage_commands.register(app)
look_commands.register(app, **_PLAIN)
submit_commands.register(app)
deploy_commands.register(app)


def main() -> None:
    """Where the command starts."""
    warn_in_sentences()
    try:
        app(prog_name="shoal")
    except SystemExit as leaving:
        if leaving.code == INTERRUPTED:  # threads of Ray's that were cut short may crash what Python does at its end
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(INTERRUPTED)
        raise
