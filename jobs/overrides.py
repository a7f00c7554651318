"""Settings as people give them: YAML files and `--set a.b=c`, checked against the keys that exist.

A dotted key is the path of a setting in the tree of config classes: `cluster.algorithm.kind`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from models.errors import ShoalError

Tree = dict[str, Any]
_SHOWN = 80  # characters of a value in a sentence
KIND = "kind"  # the key that says which member of a union a section is
# what PyYAML lets through of a day that is in no calendar, a number of 5,000 digits, `!!int ""`, `!!bool maybe`
_NO_VALUE = (ValueError, LookupError, ArithmeticError, AttributeError, TypeError)
_PREFIXES = ("Input should be", "Value error, ", "Assertion failed, ")


def dotted_keys(config: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every key below `config`, sections included, of every member of a union."""
    for name, field in config.model_fields.items():
        yield prefix + name
        for section in _sections(field.annotation):
            yield from dotted_keys(section, f"{prefix}{name}.")


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _sections(part)


def read_yaml(path: Path, config: type[BaseModel]) -> Tree:
    """The settings of a YAML file; raises ShoalError unless it is a mapping of known keys."""
    try:
        tree = _plain(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ShoalError(
            f"{path} is not a plain YAML file ({_one_line(error)}); write settings as `key: value`."
        ) from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ShoalError(f"{path} holds {_shown(tree)} but settings are a mapping; write them as `key: value`.")
    _check_keys(tree, "", set(dotted_keys(config)), str(path))
    return tree


def parse_sets(sets: Sequence[str], config: type[BaseModel]) -> Tree:
    """The tree that `a.b=c` texts describe, in any order; of one key given twice the last counts."""
    known = set(dotted_keys(config))
    tree: Tree = {}
    for text in sets:
        key, equals, raw = text.partition("=")
        key = key.strip()
        if not equals:
            raise ShoalError(f"--set {text} has no value; write it as --set {nearest(key, known)}=VALUE.")
        value = _parse_value(key, raw)
        _check_keys({key: value}, "", known, "--set")
        _put(tree, key.split("."), value)
    return tree


def merge(base: Tree, changes: Mapping[str, Any]) -> Tree:
    """`base` with `changes` on top; a section that changes its kind keeps nothing of the other kind."""
    if KIND in changes and changes[KIND] != base.get(KIND):
        base = {}
    merged = dict(base)
    for name, value in changes.items():
        under = base.get(name)
        merged[name] = merge(under if isinstance(under, dict) else {}, value) if isinstance(value, Mapping) else value
    return merged


def nearest(key: str, known: set[str]) -> str:
    """The known key that `key` most probably means."""
    same_name = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.0)
    return same_name[0]


def explain(error: ValidationError, tree: Tree | None = None) -> str:
    """One sentence: which setting, its value, what was expected."""
    first, *others = error.errors(include_url=False)
    where = dotted(first["loc"], tree) or error.title
    more = f" (and {len(others)} more like it)" if others else ""
    return f"{_problem(first, where, tree)}{more}."


def dotted(location: Sequence[str | int], tree: Tree | None) -> str:
    """A validation error's location as a dotted key, without the union members that pydantic puts into it."""
    parts: list[str] = []
    node: Any = tree
    for index, part in enumerate(location):
        last = index == len(location) - 1
        if isinstance(node, Mapping) and part not in node and node.get(KIND) == part and not last:
            continue
        parts.append(str(part))
        node = node.get(part) if isinstance(node, Mapping) else None
    return ".".join(parts)


def _problem(error: Any, where: str, tree: Tree | None) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return _not_of_this_kind(where, tree)
    if kind == "missing":
        return f"{where} has no value; give it one with --set {where}=VALUE"
    if kind == "union_tag_invalid":
        return f"{where}.{KIND} is {context['tag']!r} but should be one of {context['expected_tags']}"
    if kind == "union_tag_not_found":
        return f"{where}.{KIND} has no value; say which with --set {where}.{KIND}=KIND"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"{where} is {_shown(error['input'])} but is a section of settings; write them as {where}.NAME"
    message = error["msg"]
    for prefix in _PREFIXES:
        message = message.removeprefix(prefix)
    wanted = f"should be{message}" if message != error["msg"] and message.startswith(" ") else f"is refused: {message}"
    return f"{where} is {_shown(error['input'])} but {wanted}"


def _not_of_this_kind(where: str, tree: Tree | None) -> str:
    """The key exists, or it would have been refused before: but another kind of this section has it."""
    section, _, name = where.rpartition(".")
    node: Any = tree
    for part in section.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    kind = node.get(KIND) if isinstance(node, Mapping) else None
    return f"{section} of kind {kind!r} has no setting {name!r}; leave it out, or choose a {section}.{KIND} that has it"


def _check_keys(tree: Mapping[Any, Any], prefix: str, known: set[str], source: str) -> None:
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if key not in known:
            raise ShoalError(f"{source}: there is no setting {key!r}; the nearest is {nearest(key, known)!r}.")
        if isinstance(value, Mapping) and any(other.startswith(f"{key}.") for other in known):
            _check_keys(value, f"{key}.", known, source)


def _parse_value(key: str, raw: str) -> Any:
    try:
        return _plain(raw)
    except yaml.YAMLError as error:
        shown = raw if len(raw) <= _SHOWN else f"{raw[: _SHOWN - 3]}..."
        raise ShoalError(f"--set {key}={shown} is not a YAML value ({_one_line(error)}); quote it.") from error


class _Loader(yaml.SafeLoader):
    """YAML without aliases: with them a few lines can mean a billion values, or a value that contains itself."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(
                None, None, f"the alias *{event.anchor}: write the values out; aliases are not read", event.start_mark
            )
        found: yaml.Node | None = super().compose_node(parent, index)
        return found


def _plain(text: str) -> Any:
    """The value of YAML text that has neither tags nor aliases in it. Raises yaml.YAMLError."""
    try:
        return _Loader(text).get_single_data()
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error
    except _NO_VALUE as error:
        raise yaml.YAMLError(f"it has a value that is none: {error}") from error


def _put(tree: Tree, path: Sequence[str], value: Any) -> None:
    for name in path[:-1]:
        under = tree.get(name)
        tree[name] = under if isinstance(under, dict) else {}
        tree = tree[name]
    both = isinstance(value, dict) and isinstance(tree.get(path[-1]), dict)
    tree[path[-1]] = merge(tree[path[-1]], value) if both else value


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # of a number with so many digits
        text = "too long to be shown"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
