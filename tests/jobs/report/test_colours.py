"""Colours: distinct, stable, and text that can be read on every background of the page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import jobs.report
from jobs.report.colours import NOISE_COLOUR, colours


def luminance(colour: str) -> float:
    """Relative luminance by WCAG 2."""
    digits = colour.lstrip("#")
    pairs = [digits[i : i + 2] for i in (0, 2, 4)] if len(digits) == 6 else [2 * digit for digit in digits]
    channels = [int(pair, 16) / 255 for pair in pairs]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def themes() -> list[dict[str, str]]:
    style = (Path(jobs.report.__file__).parent / "templates" / "style.css").read_text()
    light, dark = (
        dict(re.findall(r"--(\w+): (#\w+);", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S)
    )
    return [light, {**light, **dark}]


def test_twenty_clusters_have_twenty_colours() -> None:
    assert len(set(colours(range(20)).values())) == 20


def test_neighbours_differ_among_many() -> None:
    many = colours(range(1_000))
    assert len(many) == 1_000
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in many.values())
    assert all(many[cluster] != many[cluster + 1] for cluster in range(999))


def test_colours_do_not_depend_on_order() -> None:
    assert colours([7, 3, 5]) == colours([3, 5, 7, 7])


@pytest.mark.parametrize("theme", themes(), ids=["light", "dark"])
def test_dots_stand_out_from_both_backgrounds(theme: dict[str, str]) -> None:
    for colour in (*colours(range(20)).values(), NOISE_COLOUR):
        assert contrast(colour, theme["panel"]) > 2


@pytest.mark.parametrize("theme", themes(), ids=["light", "dark"])
@pytest.mark.parametrize("text", ["ink", "muted", "accent", "warn"])
@pytest.mark.parametrize("background", ["bg", "panel"])
def test_text_meets_the_contrast_of_wcag_aa(theme: dict[str, str], text: str, background: str) -> None:
    assert contrast(theme[text], theme[background]) >= 4.5


def test_contrast_by_hand() -> None:
    assert contrast("#fff", "#000000") == pytest.approx(21)
