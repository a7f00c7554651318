"""A run as one script for `sbatch`: the machines of a Slurm job are a Ray cluster for as long as it takes.

All machines are alike, of deploy.gpu where it has any: Slurm gives a job its machines at the start, and `ray
symmetric-run` makes the first of them the head, which works, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources

from jobs.deploy.config import MachinesConfig
from jobs.deploy.order import Order
from jobs.deploy.text import comment, quoted


def script(order: Order, header: Sequence[str]) -> str:
    """The whole script."""
    before, _, after = _common().partition("#@\n")
    parts = [
        "#!/usr/bin/env bash\n" + comment(header) + "".join(f"#SBATCH {option}\n" for option in _options(order)),
        "# shellcheck disable=SC2016,SC2329 # what is in single quotes is meant as it is; a trap calls\n",
        "set -euo pipefail\n\n",
        ': "${SLURM_JOB_ID:?give this file to sbatch}"\n',
        f"readonly most_restarts={order.deploy.slurm.restarts}\n",
        _environment(order),
        before,
        _config(order),
        f"set -- {_words(order)}\n\n",
        after,
    ]
    return "".join(parts)


def machines_of(order: Order) -> MachinesConfig:
    """What each machine has."""
    return order.groups.get("gpu") or order.groups["cpu"]


def _options(order: Order) -> list[str]:
    deploy, machines = order.deploy, machines_of(order)
    minutes = max(1, math.ceil(deploy.slurm.hours * 60))
    chosen = {"partition": deploy.slurm.partition, "account": deploy.slurm.account}
    return [
        f"--job-name={deploy.name}",
        *(f"--{name}={value}" for name, value in chosen.items() if value),
        f"--nodes={machines.limit}",
        "--ntasks-per-node=1",
        "--exclusive",
        f"--mincpus={machines.cpus}",
        f"--mem={machines.memory_gib}G",
        *([f"--gpus-per-node={machines.gpus}"] if machines.gpus else []),
        f"--time={minutes // 60:02d}:{minutes % 60:02d}:00",
        "--output=%x-%j.log",
        "--open-mode=append",
        "--requeue",
        "--signal=B:TERM@120",
    ]


def _common() -> str:
    lines = resources.files("jobs.deploy").joinpath("slurm.sh").read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(lines[2:])


def _environment(order: Order) -> str:
    environment = order.deploy.slurm.environment
    return "" if environment is None else f"SHOAL_VENV=${{SHOAL_VENV:-{quoted([environment])}}}\n"


def _config(order: Order) -> str:
    """The config file, as it is: nothing in it is expanded."""
    if order.file_text is None:
        return ""
    end = "END_OF_CONFIG"
    while end in order.file_text.splitlines():
        end += "_"
    return f"cat >\"$folder/config.yaml\" <<'{end}'\n{order.file_text}{end}\n"


def _words(order: Order) -> str:
    if order.file_text is None:
        return quoted(order.parsed.words)
    rest = replace(order.parsed, given=tuple(each for each in order.parsed.given if each.name != "config"))
    names = len(rest.command.split())
    return f'{quoted(rest.words[:names])} --config "$folder/config.yaml" {quoted(rest.words[names:])}'
