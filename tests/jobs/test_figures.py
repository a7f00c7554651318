"""The same figures for people and for machines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.figures import Figures, shown, words, write_json
from jobs.screen import show

FIGURES = Figures(
    "extract",
    {
        "images": 1_797,
        "reject_fraction": 0.0125,
        "table": "/data/a table [bold]",
        "settled": True,
        "nothing": None,
        "silhouette": float("nan"),
    },
    {"scores": [{"clustering": "dpm", "nmi": 0.9}, {"clustering": "kmeans", "nmi": None}], "empty": []},
)


def test_json_has_the_figures_and_null_for_what_is_not_finite(tmp_path: Path) -> None:
    write_json(FIGURES, tmp_path / "out.json")
    found = json.loads((tmp_path / "out.json").read_text())
    assert found == {
        "command": "extract",
        "images": 1_797,
        "reject_fraction": 0.0125,
        "table": "/data/a table [bold]",
        "settled": True,
        "nothing": None,
        "silhouette": None,
        "scores": [{"clustering": "dpm", "nmi": 0.9}, {"clustering": "kmeans", "nmi": None}],
        "empty": [],
    }


def test_the_table_shows_every_figure_of_the_json(capsys: pytest.CaptureFixture[str]) -> None:
    show(FIGURES)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    pairs = {tuple(part.strip() for part in line.split("  ") if part.strip()) for line in lines}
    for name, value in FIGURES.values.items():
        assert (words(name), shown(value)) in pairs
    for row in FIGURES.tables["scores"]:
        assert any(line.split() == [shown(value) for value in row.values()] for line in lines)


def test_into_a_pipe_nothing_is_coloured_or_cut(capsys: pytest.CaptureFixture[str]) -> None:
    long = "/data/" + "x" * 200
    show(Figures("show", {"path": long}))
    out = capsys.readouterr().out
    assert long in out
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("value", "text"),
    [(1_797, "1,797"), (0.94249, "0.942"), (1234.56, "1,234.6"), (True, "yes"), (False, "no"), (None, "–"), ("a", "a")],
)
def test_values_as_people_read_them(value: int | float | bool | str | None, text: str) -> None:
    assert shown(value) == text


def test_a_file_that_is_there_is_replaced_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text("old")
    write_json(Figures("a", {}), path)
    assert json.loads(path.read_text()) == {"command": "a"}
    assert [each.name for each in tmp_path.iterdir()] == ["out.json"]


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_json(FIGURES, tmp_path / "missing" / "out.json")
