"""House rules that can be counted: sizes, first lines, and calls that nobody makes."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [path for package in ("models", "pipeline", "jobs") for path in sorted((ROOT / package).rglob("*.py"))]
MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 60

Function = ast.FunctionDef | ast.AsyncFunctionDef

FORBIDDEN = {
    "pickle.load": "unpickling runs code",
    "pickle.loads": "unpickling runs code",
    "pickle.Unpickler": "unpickling runs code",
    "joblib.load": "unpickling runs code",
    "yaml.load": "tags run code: yaml.safe_load",
    "yaml.unsafe_load": "tags run code: yaml.safe_load",
    "yaml.full_load": "tags run code: yaml.safe_load",
    "os.system": "a shell",
    "os.popen": "a shell",
    "eval": "runs code",
    "exec": "runs code",
}


def dotted(node: ast.expr) -> str:
    """The name that is called; empty if it is the result of another expression."""
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


def is_constant(call: ast.Call, keyword: str, value: object) -> bool:
    return any(
        each.arg == keyword and isinstance(each.value, ast.Constant) and each.value.value is value
        for each in call.keywords
    )


def wrong_calls(tree: ast.AST) -> Iterator[str]:
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = dotted(call.func)
        if name in FORBIDDEN:
            yield f"{name}: {FORBIDDEN[name]}"
        if name == "torch.load" and not is_constant(call, "weights_only", True):
            yield "torch.load without weights_only=True"
        if name in ("np.load", "numpy.load") and not is_constant(call, "allow_pickle", False):
            yield "np.load without allow_pickle=False"
        if is_constant(call, "shell", True):
            yield "shell=True"


@pytest.mark.parametrize(
    "code",
    [
        "pickle.load(f)",
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run('ls', shell=True)",
        "print(eval('1'))",
    ],
)
def test_the_search_for_wrong_calls_finds_them(code: str) -> None:
    assert len(list(wrong_calls(ast.parse(code)))) == 1


@pytest.mark.parametrize(
    "code",
    [
        "torch.load(path, weights_only=True)",
        "np.load(path, allow_pickle=False)",
        "yaml.safe_load(text)",
        "net.eval()",
        "json.load(f)",
    ],
)
def test_the_search_for_wrong_calls_leaves_others_alone(code: str) -> None:
    assert list(wrong_calls(ast.parse(code))) == []


def test_nobody_unpickles_or_opens_a_shell() -> None:
    assert {path: found for path in SOURCES if (found := list(wrong_calls(ast.parse(path.read_text()))))} == {}


def test_files_are_small() -> None:
    lines = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in SOURCES}
    assert {path: count for path, count in lines.items() if count > MAX_FILE_LINES} == {}


def test_functions_are_small() -> None:
    found = {
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, Function)
    }
    assert {name: count for name, count in found.items() if count > MAX_FUNCTION_LINES} == {}


def test_every_file_says_first_what_it_is() -> None:
    silent = [path.relative_to(ROOT) for path in SOURCES if not path.read_text().startswith('"""')]
    assert silent == []
