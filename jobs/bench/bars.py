"""Bars: what a benchmark must reach, what it reached, and whether that is enough."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jobs.figures import Figures, Row, Value


@dataclass(frozen=True)
class Bar:
    """A measured value and the range, ends included, that it has to be in. NaN is in no range."""

    name: str
    value: float
    least: float = -math.inf
    most: float = math.inf

    @property
    def holds(self) -> bool:
        """Whether the bar is cleared."""
        return self.least <= self.value <= self.most

    @property
    def text(self) -> str:
        """The range in words."""
        if math.isinf(self.most):
            return f"at least {self.least:,g}"
        return f"at most {self.most:,g}" if math.isinf(self.least) else f"{self.least:,g} to {self.most:,g}"

    @property
    def row(self) -> Row:
        """As a table and the JSON line show it."""
        return {"name": self.name, "value": self.value, "bar": self.text, "holds": self.holds}


@dataclass(frozen=True)
class Result:
    """One run of a benchmark: every bar of it, at least one, and all that was measured."""

    bars: tuple[Bar, ...]
    figures: Figures  # its table `bars` holds the bars

    @property
    def value(self) -> float:
        """What the first bar is about, which is the one that the benchmark is named for."""
        return self.bars[0].value

    @property
    def holds(self) -> bool:
        """Whether every bar is cleared."""
        return all(bar.holds for bar in self.bars)


def every(name: str, values: Sequence[float], least: float, most: float) -> Bar:
    """The bar that all of several values must clear: the value is the one furthest from the middle of the range."""
    middle = (least + most) / 2
    return Bar(name, max(values, key=lambda value: abs(value - middle)), least, most)


def judged(name: str, bars: Sequence[Bar], values: Mapping[str, Value], tables: Mapping[str, Sequence[Row]]) -> Result:
    """The result of the benchmark `name`; the bars come last in what is shown."""
    figures = Figures(f"bench {name}", values, {**tables, "bars": [bar.row for bar in bars]})
    return Result(tuple(bars), figures)
