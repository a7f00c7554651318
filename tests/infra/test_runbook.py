"""The runbook and the READMEs: their commands are taken by the real parser, and what they quote is said by the code."""

from __future__ import annotations

import ast
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
import typer

from jobs.submit.parse import parse_command

ROOT = Path(__file__).parents[2]
TEXTS = [ROOT / "README.md", *sorted((ROOT / "infra").rglob("README.md"))]
RUNBOOK = ROOT / "infra" / "README.md"
OF_OTHERS = {
    "exceeds the limit",
    "kubectl drain",
    "lost",
    "shoal submit",
    "shoal status",
    "shoal_driver",
}  # kubelet's; names, not quotes


def commands(text: str) -> list[str]:
    """What follows `shoal` in indented blocks; of `shoal submit` also what it submits."""
    whole = re.sub(r"\\\n\s*", "", text)
    blocks = [line.strip() for line in whole.splitlines() if line.startswith("    ")]
    parts = [part.strip() for line in blocks for part in re.split(r"\s&&\s|\s#\s", line)]
    return [part.removeprefix("shoal ") for part in parts if part.startswith("shoal ")]


CASES = [(path.relative_to(ROOT), command) for path in TEXTS for command in commands(path.read_text())]


@pytest.mark.parametrize(("path", "command"), CASES, ids=lambda each: str(each)[:60])
def test_a_command_that_is_shown_is_one(path: Path, command: str) -> None:
    words = shlex.split(command.replace("...", ""))
    try:
        parsed = parse_command(words)
    except typer.Exit:
        return  # --help
    if parsed.command == "submit":
        assert parse_command(parsed.values("command")).command


def test_there_are_commands_to_look_at() -> None:
    assert len(CASES) >= 25
    assert sum(path == Path("infra/README.md") for path, _ in CASES) >= 3


def failures() -> list[str]:
    """What the table of common failures quotes."""
    section = RUNBOOK.read_text().partition("## Common failures")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("|")][2:]
    return [quote for row in rows for quote in re.findall(r"`([^`]+)`", row) if quote not in OF_OTHERS]


@cache
def said() -> str:
    """Every text of the code, as it is in memory: lines of the source do not matter."""
    trees = (
        ast.parse(path.read_text()) for each in ("models", "pipeline", "jobs") for path in ROOT.glob(f"{each}/**/*.py")
    )
    nodes = (node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return "\0".join(value for value in nodes if isinstance(value, str))


@pytest.mark.parametrize("quote", failures())
def test_a_message_that_is_quoted_is_said(quote: str) -> None:
    assert quote in said()


def test_files_that_are_named_exist() -> None:
    text = RUNBOOK.read_text()
    named = {each.partition("#")[0] for each in re.findall(r"\]\(([^)]+)\)", text)}
    named |= set(re.findall(r"(?:^|[\s(`])((?:infra|tests|kuberay|docker|slurm|ray-up|monitoring)/[\w./-]*)", text))
    assert len(named) > 8
    assert [each for each in sorted(named) if not ((ROOT / each).exists() or (ROOT / "infra" / each).exists())] == []
