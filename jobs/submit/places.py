"""The files and folders that a command names, as another machine will find them."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import braceexpand

from jobs.submit.confidential import require_no_secret
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
_PATTERNS = ("inputs", "source")  # parameters whose braces are expanded where shards are looked for
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
            return path
        # Not normalised: `a/../b` is another file behind a link.
        there = posixpath.join(self.folder, posixpath.expanduser(path))
        if there == path or self.is_here:
            return there
        what = "in a home folder" if path.startswith("~") else "relative"
        raise ShoalError(
            f"{path!r} is {what}, and the cluster at {self.url} is another machine; give a path or URL that its "
            f"machines have, such as {there} if they share this folder."
        )

    def absolute_pattern(self, path: str) -> str:
        """The same with braces, whose parts may each be absolute. Raises ShoalError where only some of them are."""
        if is_url(path) or "{" not in path or (self.is_here and Path(self.folder, path).exists()):
            return self.absolute(path)
        try:
            kinds = {_kind(each) for each in braceexpand.braceexpand(path)}
        except ValueError:  # which the command itself will say
            kinds = {_kind(path)}
        if kinds == {"whole"}:
            return path
        if kinds == {_kind(path)}:  # then what stands before the pattern stands before each part
            return self.absolute(path)
        raise ShoalError(
            f"{path!r} is a pattern for paths of several kinds; give each part as a URL or an absolute path, or give "
            "them one by one."
        )


def require_submittable(parsed: Parsed) -> None:
    """Raise ShoalError for a command that makes no sense on a cluster, or that tells it a secret."""
    if parsed.command not in SUBMITTABLE:
        raise ShoalError(
            f"`shoal {parsed.command}` is not for a cluster; run it here, or submit one of "
            f"{', '.join(sorted(SUBMITTABLE))}."
        )
    require_no_secret(parsed)


def placed(parsed: Parsed, place: Place) -> Parsed:
    """The command with every path as the cluster needs it, and its config file where it will be unpacked."""
    if parsed.command in _DEFAULT_OUTPUT and not parsed.values("output"):
        output = Given("output", "--output", (_DEFAULT_OUTPUT[parsed.command],))
        parsed = replace(parsed, given=(*parsed.given, output))
    changes: dict[str, Sequence[str]] = {
        each.name: [
            (place.absolute_pattern if each.name in _PATTERNS else place.absolute)(path) for path in each.values
        ]
        for each in parsed.given
        if each.name in PATHS
    }
    changes["backbone"] = [
        place.absolute(value) if names_stored(value, place.folder) else value for value in parsed.values("backbone")
    ]
    own = own_config(parsed)
    if own is not None:
        changes["config"] = [packed_config(own)]
    return parsed.with_values({name: values for name, values in changes.items() if values})


def own_config(parsed: Parsed) -> Path | None:
    """The config file, if it is the user's and not one that shoal ships.

    Raises ShoalError for a pipe and the like: it is read to check it, and again to send it.
    """
    config = parsed.config
    if config is not None and config.exists() and not config.is_file():
        raise ShoalError(f"--config {config} is no regular file, and can be read once at most; write it to a file.")
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


def _kind(path: str) -> str:
    """What is to be done about a path."""
    if is_url(path) or path.startswith("/"):
        return "whole"
    return "home" if path.startswith("~") else "relative"
