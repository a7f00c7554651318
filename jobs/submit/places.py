"""The files and folders that a command names, as another machine will find them."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from jobs.submit.package import packed_config
from jobs.submit.parse import Given, Parsed
from models.errors import ShoalError
from pipeline.tables.storage import is_url

PATHS = frozenset(
    {"artifact", "file", "files", "inputs", "json", "metrics", "output", "path", "source", "table", "test"}
)
# Commands that are work on tables and shards. The others are about this machine, or about other machines.
SUBMITTABLE = frozenset(
    {"assign", "cluster", "demo", "diff", "evaluate", "extract", "history", "import", "probe", "recluster", "remove"}
    | {"report", "rollback", "run", "shards", "show", "train"}
)
_DEFAULT_OUTPUT = {"demo": "shoal-demo"}
_KEYWORDS = ("default", "hub", "random")  # of backbone.weights


@dataclass(frozen=True)
class Place:
    """How relative paths are read: below `folder` where the cluster is this machine; else they are refused."""

    folder: Path
    is_here: bool
    url: str

    def absolute(self, path: str) -> str:
        """The same file for any process of the cluster. Raises ShoalError where that is not known."""
        if is_url(path):
            _require_no_password(path)
            return path
        there = posixpath.join(self.folder, path)  # not normalised: `a/../b` is another file behind a link
        if there == path or self.is_here:
            return there
        raise ShoalError(
            f"{path!r} is relative, and the cluster at {self.url} is another machine; give a path or URL that its "
            f"machines have, such as {there} if they share this folder."
        )


def require_submittable(parsed: Parsed) -> None:
    """Raise ShoalError for a command that makes no sense on a cluster."""
    if parsed.command not in SUBMITTABLE:
        raise ShoalError(
            f"`shoal {parsed.command}` is not for a cluster; run it here, or submit one of "
            f"{', '.join(sorted(SUBMITTABLE))}."
        )


def placed(parsed: Parsed, place: Place) -> Parsed:
    """The command with every path as the cluster needs it, and its config file where it will be unpacked."""
    if parsed.command in _DEFAULT_OUTPUT and not parsed.values("output"):
        output = Given("output", "--output", (_DEFAULT_OUTPUT[parsed.command],))
        parsed = replace(parsed, given=(*parsed.given, output))
    changes: dict[str, Sequence[str]] = {
        each.name: [place.absolute(value) for value in each.values] for each in parsed.given if each.name in PATHS
    }
    changes["backbone"] = [
        place.absolute(value) if names_stored(value, place.folder) else value for value in parsed.values("backbone")
    ]
    own = own_config(parsed)
    if own is not None:
        changes["config"] = [packed_config(own)]
    return parsed.with_values({name: values for name, values in changes.items() if values})


def own_config(parsed: Parsed) -> Path | None:
    """The config file, if it is the user's and not one that shoal ships."""
    config = parsed.config
    return config if config is not None and (config.exists() or config.suffix) else None


def require_absolute_weights(weights: str) -> None:
    """Raise ShoalError for `backbone.weights` that another folder would not find."""
    if weights not in _KEYWORDS and not is_url(weights) and not Path(weights).is_absolute():
        raise ShoalError(
            f"backbone.weights is {weights!r}, a relative path, which a job does not find; "
            f"write it as {Path.cwd() / weights}, or wherever the cluster's machines have it."
        )


def named_output(parsed: Parsed) -> str | None:
    """What the command writes, or works on."""
    for name in ("output", "table"):
        if values := parsed.values(name):
            return values[0]
    return None


def names_stored(backbone: str, folder: Path) -> bool:
    """Whether `--backbone` names a file or a folder, and not a backbone of a library; names come first."""
    from models.backbones import backbone_names  # noqa: PLC0415  torch

    if backbone in backbone_names():
        return False
    return is_url(backbone) or backbone.startswith((".", "/")) or Path(folder, backbone).exists()


def _require_no_password(url: str) -> None:
    """Whoever sees the cluster's dashboard sees the command."""
    if "@" in urlsplit(url).netloc:
        raise ShoalError(
            f"A {urlsplit(url).scheme} URL of the command has a name or a password in it, which everybody would see "
            "who sees the cluster's dashboard; leave it out, and give credentials to the machines themselves."
        )
