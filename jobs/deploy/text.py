"""YAML and shell text that says what was meant, whatever is in it."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import yaml

from jobs.brief import legible

Node = dict[str, Any]  # of YAML


class _Plain(yaml.SafeDumper):
    """YAML as people write it: text of several lines as a block, no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, _style(text))


def _style(text: str) -> str | None:
    lines = text.split("\n")
    if not all(line.isprintable() for line in lines):
        return '"'  # with escapes: PyYAML loses some of what else ends a line
    if len(lines) > 1:
        return "|"
    # Kubernetes reads YAML 1.2, where 1e3 and 0o17 are numbers; PyYAML writes 1.1, where they are text.
    return None if text[:1].isalpha() or text[:1] == "/" else "'"


_Plain.add_representer(str, _text)


def as_yaml(documents: Iterable[Node], header: Sequence[str] = ()) -> str:
    """The documents with `header` as comments before the first."""
    texts = [yaml.dump(each, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=2**20) for each in documents]
    return comment(header) + "---\n".join(texts)


def comment(lines: Iterable[str]) -> str:
    """Lines that neither YAML nor a shell reads, whatever is in them."""
    return "".join(f"# {legible(line)}".rstrip() + "\n" for line in lines)


def wrapped(sentence: str) -> list[str]:
    """A sentence as lines of a comment."""
    return textwrap.wrap(sentence, 110, break_long_words=False, break_on_hyphens=False)


def quoted(words: Iterable[str]) -> str:
    """Words of a command line as any POSIX shell reads them."""
    return " ".join(_word(word) for word in words)


def quoted_for_kubernetes(words: Iterable[str]) -> str:
    """As `quoted`, and no $(NAME) or $$ is left in it, which Kubernetes replaces in the arguments of a container."""
    return shlex.join(words).replace(
        "$", "$''"
    )  # within single quotes, where shlex leaves every $: ends and begins them


def _word(word: str) -> str:
    """Of one line: a script with a carriage return in it is refused by sbatch, and a comment ends at any line end."""
    if word.isprintable():
        return shlex.quote(word)
    escaped = "".join(each if each.isprintable() and each not in "\\'" else _escape(each) for each in word)
    return f"$'{escaped}'"


def _escape(character: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in character.encode())
