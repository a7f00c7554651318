"""YAML, comments and words of a shell, with what hostile input there is."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jobs.deploy.text import as_yaml, comment, quoted, quoted_for_kubernetes

# Of YAML 1.1 and 1.2, which differ in what is a number or a truth value; of shells; of terminals.
ODD = [
    *("1e3", "0o17", "0x1F", "1_000", "12:30:45", "y", "N", "on", "null", "~", "=", "<<", ".inf", "-1", "+2", "007"),
    *("- a", "# c", "a: b", "%x", "@x", "`id`", "!x", "&a", "*a", "|", ">", "{a}", "[a]", "'", '"', "", " a ", "a #b"),
    *(
        "$(touch pwned)",
        "$HOME",
        "$$",
        "$(HOME)",
        "a\nb",
        "a\n",
        "\n",
        "a\r\nb",
        "\t",
        "\x1b[2J",
        "é",
        "\u2028",
        "\x85",
    ),
]
WORDS = st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8")) | st.sampled_from(ODD), max_size=5)


def in_bash(words: str, *, before: str = "") -> list[str]:
    """What bash takes text of a command line for."""
    script = f"{before}printf '%s\\0' x {words}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True, env={"HOME": "/home"})  # noqa: S607
    return done.stdout.decode().split("\0")[1:-1]


def expanded_by_kubernetes(text: str) -> str:
    """Arguments of a container as Kubernetes gives them to it: $$ is $, $(NAME) a variable's value, if there is one."""
    out, rest = "", text
    while rest:
        before, dollar, after = rest.partition("$")
        out += before
        if after[:1] == "$":
            out, rest = out + "$", after[1:]
        elif after[:1] == "(" and ")" in after:
            name, _, rest = after[1:].partition(")")
            out += "/home" if name == "HOME" else f"$({name})"
        else:
            out, rest = out + dollar + after[:1], after[1:]
    return out


@settings(max_examples=25)
@given(WORDS)
def test_words_reach_a_program_as_they_are(words: list[str]) -> None:
    assert in_bash(quoted(words)) == words
    assert not {"\n", "\r", "\x85", "\u2028"} & set(quoted(words))


@settings(max_examples=25)
@given(WORDS)
@example(["$$", "$(HOME)", "$(x", "$", "a$'b"])
def test_words_reach_a_program_by_way_of_kubernetes_and_ray(words: list[str]) -> None:
    text = quoted_for_kubernetes(words)
    received = in_bash(expanded_by_kubernetes(text))  # in the submitter's pod, by `ray job submit -- ...`
    assert in_bash(shlex.join(received)) == words  # as Ray joins them, in the shell of the job
    assert shlex.split(text) == words


@given(st.dictionaries(st.text(min_size=1), st.text() | st.sampled_from(ODD) | st.lists(st.text()), max_size=4))
def test_yaml_says_what_was_meant(tree: dict[str, object]) -> None:
    assert yaml.safe_load(as_yaml([tree], ["header", *map(str, tree)])) == tree


def test_text_of_several_lines_is_a_block() -> None:
    assert as_yaml([{"data": {"a.yaml": "x: 1\ny: 2\n"}}]) == "data:\n  a.yaml: |\n    x: 1\n    y: 2\n"


def test_what_is_used_twice_is_written_twice() -> None:
    amounts = {"cpu": "1"}
    assert as_yaml([{"requests": amounts, "limits": amounts}]) == "requests:\n  cpu: '1'\nlimits:\n  cpu: '1'\n"


@settings(max_examples=25)
@given(st.lists(st.text() | st.sampled_from(ODD)))
def test_a_comment_stays_one(lines: list[str]) -> None:
    text = comment(lines)
    assert text.count("\n") == len(lines)
    assert all(line.startswith("#") for line in text.splitlines())
    assert yaml.safe_load(text) is None
    assert in_bash("y", before=text) == ["y"]


def test_kubernetes_reads_the_same(tmp_path: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip(
            "NO KUBECTL: YAML was not read by Kubernetes' own parser; install kubectl (Debian: kubernetes-client)"
        )
    odd = [text for text in ODD if text not in ("=", "<<", "\x85")]  # it is PyYAML that cannot read these back
    data = {f"k{index}": text for index, text in enumerate(odd)}
    document = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "odd"}, "data": data}
    (tmp_path / "odd.yaml").write_text(as_yaml([document]), encoding="utf-8", newline="")
    (tmp_path / "kustomization.yaml").write_text("resources: [odd.yaml]\n")
    done = subprocess.run(["kubectl", "kustomize", str(tmp_path)], capture_output=True, check=True)  # noqa: S607
    assert yaml.safe_load(done.stdout) == document
