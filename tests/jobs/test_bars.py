"""Bars, by hand."""

from __future__ import annotations

import json
import math

import pytest

from jobs.bench.bars import Bar, Result, every, judged
from jobs.bench.registry import BENCHMARKS, json_line


@pytest.mark.parametrize(
    ("bar", "holds", "text"),
    [
        (Bar("nmi", 0.94, least=0.94), True, "at least 0.94"),
        (Bar("nmi", 0.9399, least=0.94), False, "at least 0.94"),
        (Bar("seconds", 1.5, most=1.5), True, "at most 1.5"),
        (Bar("seconds", 1.51, most=1.5), False, "at most 1.5"),
        (Bar("clusters", 9, 9, 12), True, "9 to 12"),
        (Bar("clusters", 12, 9, 12), True, "9 to 12"),
        (Bar("clusters", 13, 9, 12), False, "9 to 12"),
        (Bar("clusters", 8, 9, 12), False, "9 to 12"),
        (Bar("nmi", math.nan, least=0.94), False, "at least 0.94"),
        (Bar("nmi above", -0.005, least=-0.005), True, "at least -0.005"),
    ],
)
def test_the_ends_of_the_range_belong_to_it(bar: Bar, holds: bool, text: str) -> None:
    assert (bar.holds, bar.text) == (holds, text)


def test_every_shows_the_value_furthest_out() -> None:
    assert every("k", [10, 11, 14, 9], 9, 12) == Bar("k", 14, 9, 12)
    assert every("k", [10, 8, 12], 9, 12) == Bar("k", 8, 9, 12)
    assert every("k", [10, 11, 12], 9, 12).holds


def test_one_bar_missed_is_a_benchmark_missed() -> None:
    good, bad = Bar("nmi", 0.95, least=0.94), Bar("clusters", 13, 9, 12)
    assert judged("x", [good], {}, {}).holds
    result = judged("x", [good, bad], {}, {})
    assert (result.value, result.holds) == (0.95, False)


def test_the_line_has_its_six_parts() -> None:
    benchmark = BENCHMARKS["demo"]
    result = judged("demo", [Bar("nmi", 0.9, least=0.88)], {"clusters": 10}, {"scores": [{"nmi": float("nan")}]})
    assert isinstance(result, Result)
    assert json.loads(json_line(benchmark, result)) == {
        "bench": "demo",
        "bar": benchmark.bar,
        "value": 0.9,
        "holds": True,
        "bars": [{"name": "nmi", "value": 0.9, "bar": "at least 0.88", "holds": True}],
        "figures": {"clusters": 10, "scores": [{"nmi": None}]},
    }
