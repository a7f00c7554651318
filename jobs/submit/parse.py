"""A command of `shoal` as it was written for another machine: parsed as `shoal` would, and not carried out."""
# ruff: noqa: PLC0415

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import typer

from models.errors import ShoalError

_Usage: Any = typer.BadParameter.__mro__[1]  # the UsageError of the click that this typer uses: its own, or a package


@dataclass(frozen=True)
class Given:
    """A parameter as the command line has it; what is left to its default is not given."""

    name: str  # of the parameter in Python: "source", "sets"
    flag: str  # "--set"; empty for an argument
    values: tuple[str, ...]  # of all times it was given; empty for a switch

    def words(self) -> list[str]:
        """As words of a command line."""
        if not self.values:
            return [self.flag]
        if not self.flag:
            return list(self.values)
        # One word each: as two, a value such as --verbose would be taken for a flag.
        return [word for value in self.values for word in self._pair(value)]

    def _pair(self, value: str) -> list[str]:
        return [f"{self.flag}={value}"] if value.startswith("-") else [self.flag, value]


@dataclass(frozen=True)
class Parsed:
    """A command and what it was given."""

    command: str  # "run", "config show"
    given: tuple[Given, ...]  # in the order in which the command declares its parameters

    @property
    def words(self) -> list[str]:
        """A command line that means the same; arguments follow the command."""
        arguments = [word for each in self.given if not each.flag for word in each.words()]
        options = [word for each in self.given if each.flag for word in each.words()]
        if any(word.startswith("-") for word in arguments):
            return [*self.command.split(), *options, "--", *arguments]
        return [*self.command.split(), *arguments, *options]

    @property
    def text(self) -> str:
        """The words as a shell reads them, without `shoal`."""
        return shlex.join(self.words)

    @property
    def config(self) -> Path | None:
        """What `--config` names."""
        values = self.values("config")
        return Path(values[0]) if values else None

    @property
    def sets(self) -> list[str]:
        """What `--set` says."""
        return list(self.values("sets"))

    def values(self, name: str) -> tuple[str, ...]:
        """Of a parameter; empty if it is not given."""
        return next((each.values for each in self.given if each.name == name), ())

    def with_values(self, changes: Mapping[str, Sequence[str]]) -> Parsed:
        """The same command with other values for parameters that it was given; of the rest nothing changes."""
        given = tuple(replace(each, values=tuple(changes.get(each.name, each.values))) for each in self.given)
        return replace(self, given=given)


def parse_command(words: Sequence[str]) -> Parsed:
    """What follows `shoal` on a command line, by the parser of `shoal` itself; nothing is read, run or imported.

    `--help` among the words prints the help and exits, as it does anywhere. Raises ShoalError for what `shoal` would
    not take.
    """
    command = _shoal()
    context = command.make_context("shoal", ["?"])  # a group must have been given something
    names: list[str] = []
    rest = list(words)
    while hasattr(command, "commands"):
        command = _chosen(command, names, rest[:1])
        names.append(rest.pop(0))
    try:
        with command.make_context(names[-1], rest, parent=context) as parsed:
            given = [_given(parameter, parsed) for parameter in command.params]
    except _Usage as error:
        name = " ".join(names)
        raise ShoalError(f"shoal {name}: {error.format_message().rstrip('.')}. See `shoal {name} --help`.") from error
    return Parsed(" ".join(names), tuple(each for each in given if each is not None))


@cache
def _shoal() -> Any:
    """The whole command, which takes a tenth of a second to build."""
    from jobs.cli import app

    return typer.main.get_command(app)


def _chosen(group: Any, names: Sequence[str], word: Sequence[str]) -> Any:
    known = group.commands
    if not word or word[0] not in known:
        said = f"{word[0]!r} is" if word else "There is"
        raise ShoalError(
            f"{said} no command of {shlex.join(['shoal', *names])}; give one of {', '.join(sorted(known))}, without "
            "`shoal` before it."
        )
    return known[word[0]]


def _given(parameter: Any, context: Any) -> Given | None:
    source = context.get_parameter_source(parameter.name)
    if source is None or source.name != "COMMANDLINE":
        return None
    value, name = context.params[parameter.name], str(parameter.name)
    if parameter.param_type_name == "argument":
        return Given(name, "", _texts(value))
    if isinstance(value, bool):
        return Given(name, (parameter.opts if value else parameter.secondary_opts)[0], ())
    return Given(name, max(parameter.opts, key=len), _texts(value))


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(str(each) for each in value) if isinstance(value, list | tuple) else (str(value),)
