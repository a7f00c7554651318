"""A manifest as text, with what there is to say about it. Nothing of it is secret, or it is not rendered."""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import typer

from jobs.command import finish
from jobs.deploy import kubernetes, ray_up, slurm
from jobs.deploy.order import Order, elsewhere, order, placeholders
from jobs.deploy.text import as_yaml, quoted, wrapped
from jobs.figures import Figures, Row, write_json
from models.errors import ShoalError
from pipeline.tables.place import write_whole

_SECRET_NAME = re.compile(r"(?i)secret|token|password|passwd|credential|(?:access|account|api|private|sas)_?key")
_SECRET_LENGTH = 8  # what is shorter protects nothing, and may be part of any word
_CREDENTIAL = re.compile(
    r"(?i)://[^\s/@'\"]+:[^\s/@'\"]+@|[?&](?:sig|[\w-]*(?:signature|token|credential|secret|password|access-?key[\w-]*))="
)


@dataclass(frozen=True)
class Rendering:
    """A manifest, and what there is to say about it."""

    text: str
    figures: Figures
    warnings: list[str] = field(default_factory=list)


def render(
    target: str, words: Sequence[str], file: Path | None, sets: Sequence[str], output: Path | None, json: Path | None
) -> None:
    """Print or write the manifest of a target; without `output`, nothing else goes to stdout."""
    for flag, path in {"--output": output, "--json": json}.items():
        if path is not None and not path.absolute().parent.is_dir():
            raise ShoalError(f"{flag} {path} is in a folder that does not exist; make {path.absolute().parent} first.")
    result = rendering(target, order(words, file, sets), output)
    for sentence in result.warnings:
        warnings.warn(sentence, stacklevel=1)
    if output is not None:
        write_whole(output, result.text.encode())
        finish(result.figures, json)
        return
    typer.echo(result.text, nl=False)
    if json is not None:
        write_json(result.figures, json)


def rendering(target: str, order: Order, output: Path | None = None) -> Rendering:
    """The manifest of kubernetes, slurm or ray-up. Raises ShoalError where it would hold a credential."""
    name = _Names(output.name if output else f"{order.deploy.name}{_SUFFIXES[target]}", target)
    if target != "slurm":  # which begins with all of its machines
        order = order.waiting(late=target == "ray-up")
    text = _RENDERERS[target](order, name)
    _require_no_secret("\n".join([text, *order.parsed.words]), os.environ)  # as it is written, and as it is meant
    return Rendering(text, _figures(order, target, text), _warnings(order, target, text))


@dataclass(frozen=True)
class _Names:
    file: str
    target: str

    def title(self, order: Order) -> list[str]:
        """The first lines of a manifest."""
        settings = f", settings {order.digest}" if order.digest else ""
        return [f"{order.deploy.name}: shoal {version('shoal')}{settings}; by `shoal render {self.target}`."]


def _kubernetes(order: Order, names: _Names) -> str:
    deploy, storage = order.deploy, order.deploy.storage
    needed = ["KubeRay 1.7 or later", f"the image {order.image}"]
    needed += [f"secret {name}" for name in (storage.secret, deploy.pull_secret) if name]
    needed += [f"claim {storage.claim} (ReadWriteMany)"] if storage.claim else []
    needed += [f"local queue {deploy.queue}"] if deploy.queue else []
    space = deploy.namespace
    commands = [
        f"kubectl create namespace {space}   # once, and that no pod of it may be root:",
        f"kubectl label namespace {space} pod-security.kubernetes.io/enforce=restricted",
        f"kubectl apply -f {quoted([names.file])}",
        f"kubectl -n {space} get rayjob {deploy.name}",
        f"kubectl -n {space} logs -f job/{deploy.name}",
        f"kubectl -n {space} delete rayjob {deploy.name}   # applied again, the run continues",
    ]
    return as_yaml(kubernetes.documents(order), [*names.title(order), *wrapped(_exist(needed)), *commands])


def _slurm(order: Order, names: _Names) -> str:
    machines = slurm.machines_of(order)
    says = (
        f"{machines.limit} machines, each with {machines.cpus} CPUs, {machines.memory_gib} GiB and {machines.gpus} "
        "GPUs at least. Inputs, output and the folder of submission are on storage that all of them share. Told to "
        "stop two minutes before its time is over, the job is requeued and continues from its tables."
    )
    return slurm.script(order, [*names.title(order), *wrapped(says), f"sbatch {quoted([names.file])}"])


def _ray_up(order: Order, names: _Names) -> str:
    notes = [line for note in ray_up.notes(order) for line in wrapped(note)]
    header = [*names.title(order), *notes, *ray_up.instructions(order, names.file)]
    return as_yaml([ray_up.cluster(order)], header)


_RENDERERS: dict[str, Callable[[Order, _Names], str]] = {"kubernetes": _kubernetes, "slurm": _slurm, "ray-up": _ray_up}
_SUFFIXES = {"kubernetes": ".yaml", "slurm": ".sbatch", "ray-up": ".yaml"}


def _exist(needed: Sequence[str]) -> str:
    return f"There has to be: {', '.join(needed)}."


def _figures(order: Order, target: str, text: str) -> Figures:
    groups = {"head": order.deploy.head, **order.groups}
    if target == "slurm":
        groups = {"machines": slurm.machines_of(order)}
    rows: list[Row] = [
        {
            "group": name,
            "machines": group.count,
            "most": group.limit,
            "cpus": group.cpus,
            "memory_gib": group.memory_gib,
            "gpus": group.gpus,
        }
        for name, group in groups.items()
    ]
    kinds = Counter(re.findall(r"(?m)^kind: (\w+)$", text))
    values = {
        "target": target,
        "name": order.deploy.name,
        "runs": f"shoal {order.typed.text}",
        "config_digest": order.digest,
        "image": None if target == "slurm" else order.image,
        "objects": ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or None,
    }
    return Figures("render", values, {"machines": rows})


def _warnings(order: Order, target: str, text: str) -> list[str]:
    said = []
    if found := placeholders(order, text if target == "ray-up" else ""):
        said.append(f"{', '.join(found)} stands where a name of yours belongs; nothing works before it is filled in.")
    if target != "slurm":
        said += [*_of_image(order), *_of_places(order, target)]
    return said


def _of_image(order: Order) -> list[str]:
    if order.deploy.image is not None:
        return []
    return [
        f"deploy.image is not set, and {order.image} is in no registry: machines must have it, or name yours with "
        "--set deploy.image=REGISTRY/shoal:TAG."
    ]


def _of_places(order: Order, target: str) -> list[str]:
    shared = order.deploy.storage.mount if target == "kubernetes" and order.deploy.storage.claim else None
    instead = "give a URL"
    if target == "kubernetes":
        instead += f", or a folder below {shared}" if shared else ", or name a shared volume, deploy.storage.claim"
    return [
        f"{place} is on a disk of one machine, which ends with it; {instead}." for place in elsewhere(order, shared)
    ]


def _require_no_secret(text: str, environment: Mapping[str, str]) -> None:
    if _CREDENTIAL.search(text):
        raise ShoalError(
            "The command or its config file has a URL with a credential in it, which everybody would see who sees the "
            "manifest; leave it out, and put it into a Secret or the machines' environment."
        )
    for name, value in environment.items():
        # A path to a secret is none.
        if len(value) >= _SECRET_LENGTH and _SECRET_NAME.search(name) and not value.startswith("/") and value in text:
            raise ShoalError(
                f"The manifest would hold the value of {name}, which everybody would see who sees it; take it out of "
                "the command and the config file, and put it into a Secret or the machines' environment."
            )
