"""What is to be run on machines that are yet to be: the command, the config file that goes with it, the settings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path, PurePosixPath

from jobs.config import RunConfig, resolve
from jobs.deploy.config import DeployConfig, MachinesConfig
from jobs.submit.parse import Given, Parsed, parse_command
from jobs.submit.places import PATHS, own_config, require_submittable
from jobs.submit.submission import check_settings
from models.errors import ShoalError
from pipeline.extract.pool import Node
from pipeline.tables.storage import is_url

WAIT_S = 1800  # for machines that a cluster has not got yet: a new node, its GPU driver, an image of gigabytes
EXTRACTS = frozenset({"run", "extract", "probe"})
_PLACEHOLDER = re.compile(
    r"<[A-Za-z][^<>\n]*>|(?<![A-Za-z0-9])(?:YOUR[_-])?(?:BUCKET|PROJECT|REGISTRY|ACCOUNT|REGION)(?![A-Za-z0-9])"
)


@dataclass(frozen=True)
class Order:
    """A command and where it is to run."""

    parsed: Parsed  # as the machines are to carry it out
    typed: Parsed  # as it would be given here: its config file is a file of this machine
    file_text: str | None  # of a config file that goes along; None where the image has it, or there is none
    settings: RunConfig  # of the command, as the machines will resolve them
    digest: str | None  # of the settings that results depend on; None where the command has none, or an artifact's

    @property
    def deploy(self) -> DeployConfig:
        """Where it is to run."""
        return self.settings.deploy

    @property
    def file_name(self) -> str:
        """Name of the config file that goes along."""
        return f"{self.deploy.name}.yaml"

    @property
    def image(self) -> str:
        """What the machines run."""
        variant = "cuda" if self.deploy.gpu.limit and self.deploy.gpu.gpus else "cpu"
        return self.deploy.image or f"shoal:{version('shoal')}-{variant}"

    @property
    def groups(self) -> dict[str, MachinesConfig]:
        """The workers that there are to be; the first runs the command itself."""
        groups = {"cpu": self.deploy.cpu, "gpu": self.deploy.gpu}
        return {name: machines for name, machines in groups.items() if machines.limit}

    def at(self, file: str) -> Order:
        """The same with the config file that goes along at `file` of the machines."""
        return self if self.file_text is None else replace(self, parsed=self.parsed.with_values({"config": [file]}))

    def waiting(self, *, late: bool = False) -> Order:
        """The same, waiting for machines and their GPUs where the command's settings say nothing about it.

        `late`: the command may begin before the machines are there that are to be there from the start.
        """
        sets = [] if self.settings.ray.wait_s else [f"ray.wait_s={WAIT_S}"]
        sets += self._gpus(late)
        if not sets:
            return self
        parsed, typed = (_with_option(each, "sets", "--set", sets, first=True) for each in (self.parsed, self.typed))
        if parsed is None or typed is None:  # a command without settings
            return self
        settings = resolve(typed.config, typed.sets).model_copy(update={"deploy": self.deploy})
        return replace(self, parsed=parsed, typed=typed, settings=settings, digest=check_settings(typed))

    def _gpus(self, late: bool) -> list[str]:
        """Settings by which extraction asks for GPUs that are not there when it begins, instead of taking CPUs.

        None where all are there: KubeRay hands over the command when every pod is ready, and what the settings leave
        open lets small backbones share a GPU.
        """
        gpu, extract = self.deploy.gpu, self.settings.extract
        if self.parsed.command not in EXTRACTS or not (late or gpu.count < gpu.limit) or extract.gpus_per_actor == 0:
            return []
        each = extract.gpus_per_actor or 1.0
        actors = gpu.limit * Node(gpu.cpus, gpu.gpus).room(1, each)
        if not actors:
            return []
        wanted = {"gpus_per_actor": f"{each:g}", "actors": str(actors), "autoscale": "true"}
        return [f"extract.{name}={value}" for name, value in wanted.items() if not getattr(extract, name)]

    def places(self) -> Iterator[tuple[str, str]]:
        """Parameters that are paths or URLs, with their values."""
        for given in self.parsed.given:
            for value in given.values:
                if given.name in PATHS or (given.name == "backbone" and value.startswith(("/", "."))):
                    yield given.flag or given.name.upper(), value


def order(words: Sequence[str], file: Path | None, sets: Sequence[str]) -> Order:
    """What `words` after `shoal` mean with the settings of `file` and `sets`; no words: `run` of deploy.input.

    Where the command takes settings and says nothing about them, those of `file` and `sets` are its settings.
    Raises ShoalError for what the command or its settings would refuse, and for a place that only this machine has.
    """
    machines = resolve(file, sets).deploy
    further = [each for each in sets if not each.strip().startswith("deploy.")]
    parsed = parse_command(list(words) or _default(machines))
    require_submittable(parsed)
    if parsed.config is None:
        parsed = _with_settings(parsed, file, further)
    settings = resolve(parsed.config, parsed.sets).model_copy(update={"deploy": machines})
    own = own_config(parsed)
    text = None if own is None else f"{own.read_text(encoding='utf-8').rstrip()}\n"
    found = Order(parsed, parsed, text, settings, check_settings(parsed))
    _check(found)
    return found


def placeholders(order: Order, text: str = "") -> list[str]:
    """What stands, in the command, its machines or `text`, where a name of somebody's belongs: BUCKET, <...>."""
    cloud, deploy = order.deploy.cloud, order.deploy
    texts = [text, *order.parsed.words, deploy.image, cloud.project, cloud.role, cloud.subnet, cloud.machine_image]
    texts += [cloud.head_role, *cloud.security_groups, *deploy.role_annotations.values()]
    texts += deploy.role_labels.values()
    return sorted({found for text in texts for found in _PLACEHOLDER.findall(text or "")})


def elsewhere(order: Order, folder: str | None) -> list[str]:
    """Local paths that are not below `folder`, the one that all machines share."""
    return [
        value
        for _, value in order.places()
        if not is_url(value) and (folder is None or not PurePosixPath(value).is_relative_to(folder))
    ]


def _default(deploy: DeployConfig) -> list[str]:
    for name in ("input", "output"):
        if getattr(deploy, name) is None:
            raise ShoalError(
                f"deploy.{name} has no value, so there is nothing to run; give it with --set deploy.{name}=URL, "
                "or give a whole command: shoal render TARGET -c CONFIG run INPUT --output DIR."
            )
    return ["run", f"--output={deploy.output}", "--", str(deploy.input)]


def _with_settings(parsed: Parsed, file: Path | None, sets: Sequence[str]) -> Parsed:
    parsed = _with_option(parsed, "sets", "--set", sets, first=True) or parsed
    return (_with_option(parsed, "config", "--config", [str(file)]) if file is not None else None) or parsed


def _with_option(parsed: Parsed, name: str, flag: str, values: Sequence[str], *, first: bool = False) -> Parsed | None:
    """`parsed` with more of an option, after or before what it has; None where the command has no such option."""
    others = tuple(each for each in parsed.given if each.name != name)
    has = parsed.values(name)
    more = Given(name, flag, (*values, *has) if first else (*has, *values))
    changed = replace(parsed, given=(*others, more) if more.values else others)
    try:
        return parse_command(changed.words)
    except ShoalError:
        return None


def _check(order: Order) -> None:
    if order.parsed.command == "demo" and not order.parsed.values("output"):
        raise ShoalError("`shoal demo` needs --output here; give a URL, or an absolute path that the machines have.")
    for flag, value in order.places():
        if not is_url(value) and not value.startswith("/"):
            raise ShoalError(
                f"{flag} {value} is a path relative to this folder, which the machines have not got; "
                "give a URL, or an absolute path of theirs."
            )
    for word in order.parsed.words:
        if "\0" in word or word.encode(errors="ignore").decode() != word:
            raise ShoalError(f"{word!r} is no text that a command line can hold; name it otherwise.")
    if not order.groups:
        raise ShoalError(
            "deploy.cpu and deploy.gpu have no machines, and the head does no work; "
            "give some with --set deploy.cpu.count=1."
        )
