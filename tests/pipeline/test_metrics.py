"""What is told to Prometheus: only where Ray is, never at a run's cost, and by the names that dashboards know."""

from __future__ import annotations

import math
import os
import sys
import time
import urllib.request
from pathlib import Path
from uuid import uuid4

import pytest
from prometheus_client.parser import text_string_to_metric_families  # comes with Ray

from pipeline.metrics import RUN_ID, UNDER_WAY, Counter, Gauge, ray_is_up, under_way


class Session:
    """Ray, as far as telling asks: it is up, and whatever it is told it refuses."""

    @staticmethod
    def is_initialized() -> bool:
        return True


def test_names_are_those_that_ray_exports() -> None:
    assert Counter("shoal_x", "").exported == "ray_shoal_x_total"
    assert Gauge("shoal_x", "").exported == "ray_shoal_x"


def test_without_a_session_nothing_is_told_and_ray_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    with under_way("extract"):
        Counter("shoal_test_none", "").add(3)
        Gauge("shoal_test_none", "").set(2.5)
    assert "ray" not in sys.modules


def test_what_cannot_be_told_is_a_warning_once_and_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", Session)  # whose metrics cannot be imported
    monkeypatch.delitem(sys.modules, "ray.util", raising=False)
    assert ray_is_up()
    gauge = Gauge(f"shoal_test_{uuid4().hex}", "Of a test.")
    with pytest.warns(UserWarning, match=rf"{gauge.name} cannot be told .*goes on without it") as told:
        gauge.set(1)
        gauge.set(2)
    assert len(told) == 1


def test_nothing_is_counted_down_and_no_figure_that_is_none_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", Session)
    monkeypatch.delitem(sys.modules, "ray.util", raising=False)  # so that telling would be a warning, and an error here
    for value in (0, -1, math.nan):
        Counter("shoal_test_none", "").add(value)
    for value in (math.nan, math.inf):
        Gauge("shoal_test_none", "").set(value)


def test_a_value_that_is_no_number_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", Session)
    for metric in (Counter(f"shoal_test_{uuid4().hex}", ""), Gauge(f"shoal_test_{uuid4().hex}", "")):
        tell = metric.add if isinstance(metric, Counter) else metric.set
        with pytest.warns(UserWarning, match="goes on without it"):
            tell("many")  # type: ignore[arg-type]


def test_a_step_that_fails_is_over_too(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[Gauge, float, str]] = []
    monkeypatch.setattr(Gauge, "set", lambda self, value, **labels: told.append((self, value, labels["step"])))
    with pytest.raises(KeyboardInterrupt), under_way("cluster"):
        raise KeyboardInterrupt
    assert told == [(UNDER_WAY, 1, "cluster"), (UNDER_WAY, 0, "cluster")]


@pytest.mark.slow
def test_prometheus_reads_values_labels_and_run(
    ray_session: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import ray  # noqa: PLC0415

    monkeypatch.setitem(os.environ, RUN_ID, "0123456789ab")
    name = f"shoal_test_{uuid4().hex}"
    counter, gauge = Counter(f"{name}_rows", "Of a test.", ("kind",)), Gauge(f"{name}_share", "Of a test.")
    counter.add(2, kind="a")
    counter.add(3, kind="a")
    gauge.set(7)
    gauge.set(0.5)
    wanted = {(counter.exported, "a", "0123456789ab", 5.0), (gauge.exported, None, "0123456789ab", 0.5)}
    found: set[tuple[str, str | None, str, float]] = set()
    deadline = time.monotonic() + 60
    while found != wanted and time.monotonic() < deadline:
        time.sleep(1)
        for node in ray.nodes():  # type: ignore[no-untyped-call]
            url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            with urllib.request.urlopen(url, timeout=10) as answer:
                families = text_string_to_metric_families(answer.read().decode())
            found = {
                (sample.name, sample.labels.get("kind"), sample.labels["run"], sample.value)
                for family in families
                for sample in family.samples
                if name in sample.name
            }
    assert found == wanted
