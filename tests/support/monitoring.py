"""What infra/monitoring says, taken apart: expressions, the metrics and labels in them, and what the code exports."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from pipeline import metrics
from pipeline.cluster import metrics as of_fit
from pipeline.extract import meter
from pipeline.recluster.metrics import PREFIX, families
from pipeline.tables.clusterings import Generation
from pipeline.train import metrics as of_training

FOLDER = Path(__file__).parents[2] / "infra/monitoring"
DASHBOARD, RULES = FOLDER / "grafana/shoal.json", FOLDER / "rules.yml"

BY_RAY = {"SessionName", "NodeAddress", "WorkerId", "Component", "Version"}  # labels of all that a worker exports
_OF_NODES = ("disk_free", "disk_usage", "mem_used", "mem_total", "cpu_utilization")
OF_RAY = {  # Ray's own metrics that are shown or watched
    **{f"ray_node_{name}": {"SessionName", "ip"} for name in _OF_NODES},
    "ray_node_gpus_utilization": {"SessionName", "ip", "GpuIndex"},
}
OF_PROMETHEUS = {
    "up": {"job", "instance"},
    "ALERTS": {"alertname", "alertstate"},
}

_WORDS = {"by", "on", "or", "and", "unless", "offset", "bool", "without", "ignoring"}
_GROUPING = re.compile(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_SELECTOR = re.compile(r'([A-Za-z_:][\w:]*)?\s*\{((?:[^{}"]|"(?:[^"\\]|\\.)*")*)\}')
_MATCHER = re.compile(r'([A-Za-z_]\w*)\s*(?:=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Selector:
    """One choice of series in an expression."""

    names: tuple[str, ...]
    labels: frozenset[str]


@dataclass(frozen=True)
class Expression:
    """One query: where it stands, and its text with Grafana's variables filled in."""

    where: str
    text: str
    selectors: tuple[Selector, ...] = field(init=False)
    grouped: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "selectors", tuple(_selectors(self.text)))
        labels = ",".join(_GROUPING.findall(self.text))
        object.__setattr__(self, "grouped", frozenset(filter(None, (each.strip() for each in labels.split(",")))))

    @property
    def names(self) -> set[str]:
        """The metrics in it."""
        return {name for selector in self.selectors for name in selector.names}


def dashboard() -> dict[str, Any]:
    """The dashboard's model."""
    made: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return made


def panels() -> list[dict[str, Any]]:
    """Those that show something."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def filled(text: str) -> str:
    """With everything chosen, and the shortest interval that Grafana gives for a scrape every ten seconds."""
    for name, value in {"$__rate_interval": "1m", "$session": ".*", "$run": ".*"}.items():
        text = text.replace(name, value)
    return text


def shown() -> list[Expression]:
    """All of the dashboard's queries, those of panels first."""
    found = [
        Expression(f"{panel['title']} {target['refId']}", filled(target["expr"]))
        for panel in panels()
        for target in panel["targets"]
    ]
    notes = [each for each in dashboard()["annotations"]["list"] if "expr" in each]
    return found + [Expression(each["name"], filled(each["expr"])) for each in notes]


def alerts() -> list[dict[str, Any]]:
    """Those of rules.yml."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def watched() -> list[Expression]:
    """All that alerts ask."""
    return [Expression(rule["alert"], rule["expr"]) for rule in alerts()]


def exported() -> dict[str, set[str]]:
    """Every metric that shoal declares, as Prometheus reads it, and its labels."""
    declared = [
        value
        for module in (metrics, meter, of_fit, of_training)
        for value in (*vars(module).values(), *of_training.FIGURES.values())
        if isinstance(value, metrics.Counter | metrics.Gauge)
    ]
    found = {metric.exported: {*metric.labels, "run", *BY_RAY} for metric in declared}
    for name, labels in _of_generations().items():
        found[f"ray_{name}"] = {*labels, "run", *BY_RAY}
        found[name] = {*labels, "instance"}  # in the textfile
    return found


def _of_generations() -> Mapping[str, tuple[str, ...]]:
    """What a generation tells that has everything to tell."""
    one = {"rows": 8, "low_fraction": 0.25, "log_density_shift": -0.5}
    drift = {"overall": one, "clusters": [{"cluster": 3, **one}]}
    evidence = {"arrived": 4, "removed": 1, "drift": drift, "seconds": {"read": 0.5}}
    generation = Generation(
        samples_version=1,
        artifact="",
        config_digest="",
        decision="assign",
        evidence=json.dumps(evidence),
        generation=2,
        assignments_version=1,
        clusters_version=1,
        moves_version=1,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    clusters = pa.Table.from_pylist([{"cluster": 3, "size": 8, "event": "kept", "parents": [3]}])
    made = families("dpm", generation, clusters)
    return {PREFIX + family.name: tuple(family.series[0][0]) for family in made}


def _selectors(text: str) -> Iterator[Selector]:
    for name, inside in _SELECTOR.findall(text):
        labels = dict(_MATCHER.findall(inside))
        pattern = labels.pop("__name__", None)
        yield Selector((name,) if pattern is None else tuple(_alternatives(pattern)), frozenset(labels))
    bare = _SELECTOR.sub(" ", text)
    bare = _GROUPING.sub(" ", _STRING.sub(" ", re.sub(r"\[[^\]]*\]", " ", bare)))
    for name in re.findall(r"(?<![\w.:])([A-Za-z_:][\w:]*)(?!\s*\(|[\w:])", bare):
        if name not in _WORDS:
            yield Selector((name,), frozenset())


def _alternatives(pattern: str) -> list[str]:
    """The names that a pattern such as `(ray_)?x` stands for."""
    found = re.fullmatch(r"\((\w+)\)\?(\w+)", pattern)
    assert found is not None, f"{pattern} is no pattern that this reads"
    return [found[1] + found[2], found[2]]
