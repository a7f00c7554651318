"""Take-downs in the log of a Delta table: the bounds of files that are gone name samples, and stay behind.

A commit of an earlier version is rewritten without such bounds; it names the same files, so every version keeps its
meaning. Checkpoints repeat bounds: one is made of the newest version, and those before it are deleted. What a disk or
a bucket keeps of replaced files by itself (snapshots, object versions) is out of reach here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import unquote

from pipeline.tables.delta import Delta
from pipeline.tables.place import Place, children, place, write_whole
from pipeline.tables.schema import TableError

_COMMIT = re.compile(r"(\d{20})\.json")
_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint\.(?:.+\.)?(?:parquet|json)")  # in one part, in several, or of version 2
_COPY = re.compile(r"\.?\d{20}\.(?:\d{20}\.compacted\.json|crc|json\.crc)")  # of commits; no reader needs it
_HINT = "_last_checkpoint"
_SIDECARS = "_sidecars"
_BOUNDS = ("minValues", "maxValues")


def scrub(delta: Delta, keys: Collection[str], versions: Collection[int]) -> None:
    """Leave no value of `keys` in the log, but in bounds of files that the newest version or one of `versions` names.

    Broken off anywhere, it can be done again; readers find every version whole meanwhile. O(bytes of the log). Raises
    TableError, and changes nothing, if another tool has cleaned up commits that `versions` need.
    """
    if not delta.exists():
        return
    needed = {file.path for version in (None, *sorted(set(versions))) for file in delta.files(version)}
    log, newest, unwanted = place(delta.path) / "_delta_log", delta.version, set(keys)
    names = [path.name for path in children(log)]
    commits = [name for name in names if _COMMIT.fullmatch(name)]
    checkpoints = [name for name in names if (found := _CHECKPOINT.fullmatch(name)) and int(found[1]) <= newest]
    if checkpoints:
        _require_commits(delta, commits, [version for version in versions if version < newest])
    try:
        for name in commits:
            _rewrite(log / name, unwanted, needed)
        if checkpoints:
            _replace_checkpoints(delta, log, checkpoints)
        for name in names:
            if name != _HINT and not _COMMIT.fullmatch(name) and not _CHECKPOINT.fullmatch(name):
                _drop(log / name, unwanted)
    except OSError as error:
        raise TableError(
            f"The log of {delta.path} cannot be rewritten ({error}); check your rights, run again."
        ) from error


def _require_commits(delta: Delta, commits: Collection[str], earlier: Collection[int]) -> None:
    """Without its checkpoints an earlier version is all commits up to it."""
    numbers = {int(name.partition(".")[0]) for name in commits}
    lost = sorted(set(range(max(earlier, default=-1) + 1)) - numbers)
    if lost:
        raise TableError(
            f"The log of {delta.path} has no commit {lost[0]}, which another tool has deleted, so version "
            f"{max(earlier)} needs a checkpoint that names what is to be taken down; end the generations that name "
            "versions before the newest, then run again."
        )


def _rewrite(commit: Place, unwanted: Collection[str], needed: Collection[str]) -> None:
    lines = commit.read_bytes().splitlines(keepends=True)
    clean = [_clean(line, unwanted, needed) for line in lines]
    if clean != lines:
        write_whole(commit, b"".join(clean))


def _clean(line: bytes, unwanted: Collection[str], needed: Collection[str]) -> bytes:
    """A line of a commit without bounds that are unwanted."""
    if b'"stats"' not in line:
        return line
    action = json.loads(line)
    for entry in (action[kind] for kind in ("add", "remove") if kind in action):
        statistics = json.loads(entry.get("stats") or "{}")
        if unquote(entry["path"]) not in needed and (columns := _columns(statistics, unwanted)):
            for side in statistics.keys() & set(_BOUNDS):
                statistics[side] = {name: value for name, value in statistics[side].items() if name not in columns}
            entry["stats"] = json.dumps(statistics)
            line = f"{json.dumps(action, separators=(',', ':'))}\n".encode()
    return line


def _columns(statistics: Mapping[str, Any], unwanted: Collection[str]) -> set[str]:
    """Columns of which either bound is unwanted."""
    bounds = [bound for side in _BOUNDS for bound in statistics.get(side, {}).items()]
    return {name for name, value in bounds if isinstance(value, str) and value in unwanted}


def _replace_checkpoints(delta: Delta, log: Place, earlier: Collection[str]) -> None:
    sidecars = children(log / _SIDECARS)  # of those checkpoints; the one to be made brings its own, if any
    made = delta.checkpoint()
    for path in [*(log / name for name in earlier if name != made), *sidecars]:
        path.unlink(missing_ok=True)


def _drop(path: Place, unwanted: Collection[str]) -> None:
    """Delete a copy of commits, or what a crash left of writing one, if it says what is unwanted."""
    if not path.is_file():
        return
    content = path.read_bytes()
    quoted = (json.dumps(json.dumps(key))[1:-1].encode() for key in unwanted)  # as in a text within JSON
    if _COPY.fullmatch(path.name) or any(each in content for each in quoted):
        path.unlink(missing_ok=True)
