"""Metrics as Prometheus reads them: parsed back by the letter of the format, and by its own client."""

from __future__ import annotations

import json
import re
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from histories import Told, five_generations
from prometheus_client.parser import text_string_to_metric_families  # comes with Ray

from pipeline.recluster.metrics import WORST, exposition, publish_gauges, write_metrics
from pipeline.tables.clusterings import Generation

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]

_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"'
_SAMPLE = re.compile(rf"({_NAME})\{{((?:{_LABEL},?)*)\}} (\S+)")
_UNESCAPED = {r"\\": "\\", r"\"": '"', r"\n": "\n"}


@pytest.fixture(scope="module")
def told() -> Told:
    return five_generations()


def parsed(text: str) -> Samples:
    """Samples of a text in format 0.0.4; fails where a family lacks HELP or TYPE or is not in one piece."""
    assert text.endswith("\n")
    samples: Samples = {}
    lines, families = iter(text[:-1].split("\n")), []
    for line in lines:
        if line.startswith("# HELP "):
            families.append(line.split(" ")[2])
            assert len(line.split(" ")) > 3
            assert next(lines) == f"# TYPE {families[-1]} gauge"
            continue
        found = _SAMPLE.fullmatch(line)
        assert found is not None and found[1] == families[-1], line
        labels = re.findall(_LABEL, found[2])
        plain = frozenset((name, re.sub(r"\\.", lambda each: _UNESCAPED[each[0]], value)) for name, value in labels)
        assert (found[1], plain) not in samples
        samples[found[1], plain] = float(found[5])
    assert len(families) == len(set(families))
    return samples


def values(text: str, name: str, label: str | None = None) -> dict[str, float]:
    """The series of one metric by the value of one label."""
    return {dict(labels)[label or "clustering"]: value for (n, labels), value in parsed(text).items() if n == name}


def saying(generation: Generation, **evidence: object) -> Generation:
    return generation.model_copy(update={"evidence": json.dumps(evidence)})


def test_a_generation_by_hand(told: Told) -> None:
    drift = {
        "overall": {"rows": 8, "low_fraction": 0.25, "log_density_shift": -0.5},
        "clusters": [{"cluster": 3, "rows": 6, "low_fraction": 0.0, "log_density_shift": None}],
    }
    third = told.clustering.generation(3)  # 0 split, 4 came of it, 1 to 3 were kept
    said = saying(third, arrived=4, removed=1, drift=drift, seconds={"read": 0.5, "assign": 2})
    own = ("clustering", "dpm")
    expected = {
        ("generation", ()): 3,
        ("published_timestamp_seconds", ()): third.created_at.timestamp(),
        ("rows", ()): 14,
        ("clusters", ()): 5,
        ("arrived", ()): 4,
        ("removed", ()): 1,
        ("new_cluster_rate", ()): 0.25,
        ("low_probability_fraction", ()): 0.25,
        ("log_density_shift", ()): -0.5,
        ("events", ("event", "born")): 0,
        ("events", ("event", "died")): 0,
        ("events", ("event", "kept")): 3,
        ("events", ("event", "merged")): 0,
        ("events", ("event", "split")): 2,
        ("seconds", ("step", "read")): 0.5,
        ("seconds", ("step", "assign")): 2,
        ("cluster_low_probability_fraction", ("cluster", "3")): 0,
        ("cluster_arrived", ("cluster", "3")): 6,
    }
    assert parsed(exposition("dpm", said, told.clustering.events(third))) == {
        (f"shoal_recluster_{name}", frozenset({own, *([label] if label else [])})): value
        for (name, label), value in expected.items()
    }


def test_a_fit_without_evidence_has_sizes_and_no_rates(told: Told) -> None:
    first = told.clustering.generation(1)
    text = exposition("dpm", first, told.clustering.events(first))
    names = {name.removeprefix("shoal_recluster_") for name, _ in parsed(text)}
    assert names == {"generation", "published_timestamp_seconds", "rows", "clusters", "events"}


def test_clusters_that_died_are_events_and_no_clusters(told: Told) -> None:
    fourth = told.clustering.generation(4)
    text = exposition("dpm", fourth, told.clustering.events(fourth))
    assert values(text, "shoal_recluster_clusters") == {"dpm": 4}
    assert values(text, "shoal_recluster_rows") == {"dpm": 14}
    assert values(text, "shoal_recluster_events", "event") == {"born": 0, "died": 1, "kept": 3, "merged": 1, "split": 0}


@pytest.mark.parametrize("name", ['a "b" \\n c\\', "new\nline", "{x='1'} 2", "größer"])
def test_any_name_comes_back(told: Told, name: str) -> None:
    first = told.clustering.generation(1)
    text = exposition(name, saying(first, seconds={name: 1}), told.clustering.events(first))
    assert values(text, "shoal_recluster_generation") == {name: 1}
    assert values(text, "shoal_recluster_seconds", "step") == {name: 1}
    theirs = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert theirs == parsed(text)


def test_only_the_clusters_that_changed_most_have_series(told: Told) -> None:
    clusters = [{"cluster": each, "rows": 1, "low_fraction": 0.0, "p": 1 - each / 600} for each in range(600)]
    first = told.clustering.generation(1)
    said = saying(first, drift={"overall": {"rows": 600}, "clusters": clusters})
    found = values(
        exposition("dpm", said, told.clustering.events(first)),
        "shoal_recluster_cluster_low_probability_fraction",
        "cluster",
    )
    assert set(found) == {str(each) for each in range(600 - WORST, 600)}


def test_the_file_is_replaced_whole_and_nothing_is_left_beside_it(told: Told, tmp_path: Path) -> None:
    path = tmp_path / "textfile" / "dpm.prom"
    for number in (1, 4):
        write_metrics(path, told.clustering, told.clustering.generation(number))
        assert values(path.read_text(), "shoal_recluster_generation") == {"dpm": number}
    assert list(path.parent.iterdir()) == [path]
    path.unlink()
    path.mkdir()
    with pytest.raises(OSError, match=r"dpm\.prom"):
        write_metrics(path, told.clustering, told.clustering.generation(1))
    assert [each.name for each in path.parent.iterdir()] == ["dpm.prom"]


def test_without_a_session_no_gauge_is_set_and_ray_is_not_imported(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    assert not publish_gauges(told.clustering, told.clustering.generation(1))
    assert "ray" not in sys.modules


@pytest.mark.slow
def test_prometheus_finds_the_gauges_of_a_session(ray_session: None, told: Told) -> None:
    import ray  # noqa: PLC0415

    third = saying(told.clustering.generation(3), arrived=4)
    assert publish_gauges(told.clustering, third)
    wanted = {"rows": 14.0, "clusters": 5.0, "new_cluster_rate": 0.25}
    found: dict[str, float] = {}
    deadline = time.monotonic() + 60
    while found != wanted and time.monotonic() < deadline:
        time.sleep(1)
        for node in ray.nodes():  # type: ignore[no-untyped-call]
            url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            with urllib.request.urlopen(url, timeout=10) as answer:
                text = answer.read().decode()
            lines = re.findall(r'^ray_shoal_recluster_(\w+)\{.*clustering="dpm".*\} (\S+)$', text, re.MULTILINE)
            found = {name: float(value) for name, value in lines if name in wanted}
    assert found == wanted
