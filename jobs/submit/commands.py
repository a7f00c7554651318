"""`shoal submit` and `shoal jobs`: arguments to jobs, and nothing else."""
# ruff: noqa: PLC0415, PLR0917

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from jobs.options import Json

Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="URL",
        help="The cluster's dashboard; else RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265.",
    ),
]
_JOBS = "Jobs on a cluster: which there are, what they say, an end to one."
JobId = Annotated[str, typer.Argument(metavar="ID", help="As `shoal submit` and `shoal jobs list` give it.")]


def submit(
    command: Annotated[
        list[str], typer.Argument(metavar="COMMAND...", help="What would follow `shoal` here, with all its options.")
    ],
    address: Address = None,
    watch: Annotated[
        bool, typer.Option("--watch/--no-watch", help="Stay until it is over, and end with its exit code.")
    ] = False,
    pin: Annotated[
        str, typer.Option("--pin", metavar="HOW", help="Versions as here: require, install, or off (not compared).")
    ] = "require",
    id_: Annotated[str | None, typer.Option("--id", metavar="ID", help="The job's id, if not a fresh one.")] = None,
    driver: Annotated[
        str | None,
        typer.Option("--driver-resource", metavar="NAME", help="Run the command itself on a machine that has this."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be sent, and send nothing.")] = False,
    json: Json = None,
) -> None:
    """Run a command on a cluster, with the code that is here.

    Packs shoal's code and nothing else. The same command again continues what was stopped.
    """
    from jobs.command import finish, require_folder
    from jobs.submit import submit as job
    from jobs.submit.submission import PINS
    from models.errors import ShoalError

    if pin not in PINS:
        raise ShoalError(f"--pin is {pin!r} but should be one of {', '.join(PINS)}.")
    require_folder(json)
    options = job.Options(address, pin, id_, driver)
    handed = job.prepare(command, options)
    if dry_run:
        finish(job.planned(handed), json)
        return
    with _named(handed.submission.id):
        package = job.submit(handed)
        if not watch:
            finish(job.figures(handed, package), json)
            return
        on = f"Job {handed.submission.id} on {handed.client.address.url}"
        typer.echo(f"{job.packed_sentence(package)}\n{on}", err=True)
        ended = _watched(handed.client, handed.submission.id)
    if json is not None:
        from jobs.figures import write_json

        write_json(job.figures(handed, package, ended), json)
    _leave(ended)


def jobs_list(address: Address = None, json: Json = None) -> None:
    """Which jobs are there, and how did they end?"""
    from jobs.command import finish, require_folder
    from jobs.submit.address import find_address
    from jobs.submit.client import Client
    from jobs.submit.control import listing

    require_folder(json)
    finish(listing(Client(find_address(address))), json)


def jobs_logs(
    id_: JobId,
    follow: Annotated[
        bool, typer.Option("--follow", help="Stay until it is over, and end with its exit code.")
    ] = False,
    address: Address = None,
) -> None:
    """What a job said so far, or says from now on."""
    from jobs.submit.address import find_address
    from jobs.submit.client import Client
    from jobs.submit.watch import shown

    client = Client(find_address(address))
    if follow:
        _leave(_watched(client, id_))
    with shown() as show:
        show(client.log(id_))


def jobs_stop(id_: JobId, address: Address = None, json: Json = None) -> None:
    """End a job; what it committed is kept.

    Waits until it is over: it is given half a minute to end in order.
    """
    from jobs.command import finish, require_folder
    from jobs.submit.address import find_address
    from jobs.submit.client import Client
    from jobs.submit.control import stop

    require_folder(json)
    finish(stop(Client(find_address(address)), id_), json)


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command(context_settings={"allow_interspersed_args": False})(submit)
    jobs = typer.Typer(help=_JOBS, no_args_is_help=True, add_completion=False, rich_markup_mode=None)
    jobs.command("list")(jobs_list)
    jobs.command("logs")(jobs_logs)
    jobs.command("stop")(jobs_stop)
    app.add_typer(jobs, name="jobs")


@contextmanager
def _named(id_: str) -> Iterator[None]:
    """Ctrl-C while a job is handed over names it: nobody else knows whether the cluster has it by then."""
    from jobs.outcome import INTERRUPTED

    try:
        yield
    except KeyboardInterrupt as interrupt:
        typer.echo(
            f"Interrupted; job {id_} may run already. Look at it with `shoal jobs logs {id_}`, stop it with "
            f"`shoal jobs stop {id_}`, with the same --address.",
            err=True,
        )
        raise typer.Exit(INTERRUPTED) from interrupt


def _watched(client: Any, id_: str) -> Any:
    """The job when it is over; exits with 130 where nobody stays that long."""
    from jobs.outcome import INTERRUPTED
    from jobs.submit.watch import Detached, watch

    try:
        return watch(client, id_)
    except Detached as detached:
        typer.echo(str(detached), err=True)
        raise typer.Exit(INTERRUPTED) from detached


def _leave(job: Any) -> None:
    from jobs.submit.watch import ending, exit_code

    typer.echo(ending(job), err=True)
    raise typer.Exit(exit_code(job))
