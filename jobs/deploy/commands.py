"""`shoal render`: arguments to a manifest, and nothing else."""
# ruff: noqa: PLC0415

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.options import NONE, ConfigFile, Sets

Words = Annotated[
    list[str], typer.Argument(metavar="COMMAND...", help="What follows `shoal`; if none, `run` of deploy.input.")
]
Output = Annotated[
    Path | None, typer.Option("--output", metavar="FILE", help="Where it goes; if not given, to stdout.")
]
Json = Annotated[Path | None, typer.Option("--json", metavar="PATH", help="Also write what is asked for as JSON.")]
# What follows the first word of COMMAND is its own, options included.
_ITS_OWN: dict[str, Any] = {"allow_interspersed_args": False, "ignore_unknown_options": False}


def kubernetes(
    words: Words = NONE, config: ConfigFile = None, sets: Sets = NONE, output: Output = None, json: Json = None
) -> None:
    """A RayJob of KubeRay, and what it needs.

    Accounts, network policies and config map go with it. The settings `deploy` say which machines, image and storage.
    """
    from jobs.deploy.render import render

    render("kubernetes", words, config, sets, output, json)


def slurm(
    words: Words = NONE, config: ConfigFile = None, sets: Sets = NONE, output: Output = None, json: Json = None
) -> None:
    """One script for sbatch.

    Its machines are a Ray cluster for as long as the job takes. The settings `deploy` say which machines.
    """
    from jobs.deploy.render import render

    render("slurm", words, config, sets, output, json)


def ray_up(
    words: Words = NONE, config: ConfigFile = None, sets: Sets = NONE, output: Output = None, json: Json = None
) -> None:
    """A cluster for Ray's launcher, on aws or gcp.

    The comment at its head says what to type. The settings `deploy` and `deploy.cloud` say which machines.
    """
    from jobs.deploy.render import render

    render("ray-up", words, config, sets, output, json)


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    renders = typer.Typer(
        help="What makes the machines for a command: a manifest.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
    )
    for name, command in {"kubernetes": kubernetes, "slurm": slurm, "ray-up": ray_up}.items():
        renders.command(name, context_settings=_ITS_OWN)(command)
    app.add_typer(renders, name="render")
