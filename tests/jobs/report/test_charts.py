"""Charts: small SVG without scripts, ids or colours of their own, whatever the numbers are."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from jobs.report.charts import MAX_BARS_WITH_NAMES, MAX_MAP_LABELS, history_chart, map_chart, size_chart
from jobs.report.colours import colours
from jobs.report.data import MapPoints, Pass


def texts(svg: str) -> list[str]:
    root = ElementTree.fromstring(str(svg).replace("<svg ", '<svg xmlns:xlink="http://www.w3.org/1999/xlink" ', 1))  # noqa: S314
    return [element.text or "" for element in root.iter("text")]


def points(rows: int, clusters: int) -> MapPoints:
    rng = np.random.default_rng(0)
    return MapPoints(rng.normal(size=rows), rng.normal(size=rows), np.arange(rows) % clusters, "PCA")


def check_page_decides(svg: str) -> None:
    """The page's font and colours apply, and nothing in the chart can meet another chart's."""
    assert "var(--" in svg
    assert "#0102" not in svg
    assert "font-family" not in svg
    assert not re.search(r"<style|<script|<metadata|width=\"[^\"]*pt\"| id=\"figure", svg)
    assert 'viewBox="0 0' in svg


def test_history_shows_clusters_and_objective() -> None:
    svg = history_chart([Pass(number, -1.5e6 / number, number) for number in range(1, 9)], "a <label>")
    check_page_decides(svg)
    assert {"clusters", "objective", "pass", "−0.5 M", "0"} <= set(texts(svg))
    assert 'role="img" aria-label="a &lt;label&gt;"' in svg


@pytest.mark.parametrize("objective", [float("nan"), float("-inf"), 0.0, -5.0])
def test_history_survives_an_objective_without_range(objective: float) -> None:
    assert "objective" in texts(history_chart([Pass(1, objective, 1), Pass(2, objective, 1)], "x"))


def test_few_clusters_get_bars_with_names_and_colours() -> None:
    sizes = {3: 10, 12: 40, 7: 25}
    svg = size_chart(sizes, colours(sizes), "x")
    check_page_decides(svg)
    assert [text for text in texts(svg) if text in {"3", "7", "12"}] == ["12", "7", "3"]
    assert all(colour in svg for colour in colours(sizes).values())


def test_many_clusters_get_ranks_on_a_log_axis_when_sizes_differ_much() -> None:
    sizes = {cluster: 10**6 // (cluster + 1) ** 2 for cluster in range(MAX_BARS_WITH_NAMES + 200)}
    svg = size_chart(sizes, colours(sizes), "x")
    assert {"clusters, largest first", "1 M", "1,000"} <= set(texts(svg))


def test_map_size_does_not_grow_with_rows() -> None:
    small, large = (map_chart(points(rows, 5), colours(range(5)), [], "x") for rows in (3_000, 30_000))
    check_page_decides(small)
    assert small.count("<image") == 1
    assert len(large) < 4 * len(small)  # as vectors it would be ten times as large


def test_map_links_only_clusters_with_a_sheet() -> None:
    spread = MapPoints(np.array([0.0, 5.0, 9.0]), np.array([0.0, 5.0, 0.0]), np.array([4, 6, -1]), "PCA")
    svg = map_chart(spread, colours([4, 6]), [6], "x")
    assert texts(svg) == ["4", "6"]
    assert re.findall(r'xlink:href="(#[^"]*)"', svg) == ["#cluster-6"]
    assert "target=" not in svg


def test_map_names_do_not_collide() -> None:
    rng = np.random.default_rng(0)
    cluster_N = np.repeat(np.arange(300), 5)
    scattered = MapPoints(rng.normal(size=1_500) + cluster_N % 20, rng.normal(size=1_500), cluster_N, "PCA")
    svg = map_chart(scattered, colours(range(300)), [], "x")
    place_M2 = np.array(re.findall(r'<text [^>]*x="([\d.]+)" y="([\d.]+)"', svg), dtype=float)
    assert 5 < len(place_M2) <= MAX_MAP_LABELS
    gap_MM2 = np.abs(place_M2[:, None] - place_M2[None])
    apart_MM = (gap_MM2[..., 0] >= 29.9) | (gap_MM2[..., 1] >= 17.9)
    assert apart_MM[~np.eye(len(place_M2), dtype=bool)].all()


def test_charts_are_deterministic() -> None:
    assert map_chart(points(50, 3), colours(range(3)), [1], "x") == map_chart(
        points(50, 3), colours(range(3)), [1], "x"
    )
