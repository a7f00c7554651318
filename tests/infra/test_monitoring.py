"""What operators look at and are woken by: every name in it is exported by the code, and every alert does what it says.

The slow part runs it: `test_monitoring_live.py`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from monitoring import (
    DASHBOARD,
    FOLDER,
    OF_PROMETHEUS,
    OF_RAY,
    RULES,
    Expression,
    alerts,
    dashboard,
    exported,
    panels,
    shown,
    watched,
)
from pydantic import BaseModel
from typer.main import get_command

from jobs.cli import app
from jobs.config import RunConfig

OURS = "shoal-ray"  # the job of our clusters
KNOWN = {**exported(), **{name: {*labels, "job"} for name, labels in OF_RAY.items()}, **OF_PROMETHEUS}
EXPRESSIONS = [*shown(), *watched()]

ASKED_FOR = {  # the list
    "images/s": "ray_shoal_images_embedded_total",
    "rejects/s": "ray_shoal_rejects_total",
    "rows committed": "ray_shoal_rows_committed_total",
    "epoch": "ray_shoal_train_epoch",
    "objective": "ray_shoal_fit_objective",
    "K": "ray_shoal_fit_clusters",
    "splits and merges": "ray_shoal_fit_moves_total",
    "drift": "ray_shoal_recluster_low_probability_fraction",
    "queue fill": "ray_shoal_images_waiting",
    "queue fill of SwAV": "ray_shoal_train_queue",
}


def problems(expression: Expression) -> list[str]:
    """Metrics and labels of an expression that nothing exports."""
    found = [f"{name} is exported by nothing" for name in sorted(expression.names - KNOWN.keys())]
    for selector in expression.selectors:
        for name in selector.names:
            wrong = selector.labels - KNOWN.get(name, selector.labels)
            found += [f"{name} has no label {label}" for label in sorted(wrong)]
    labels = {label for name in expression.names for label in KNOWN.get(name, ())}
    return found + [f"no metric of it has the label {label}" for label in sorted(expression.grouped - labels)]


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is missing, so PromQL and alerts are NOT checked; apt-get install prometheus")
    return found


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("expression", EXPRESSIONS, ids=lambda each: each.where)
def test_every_metric_and_label_of_dashboard_and_alerts_is_exported(expression: Expression) -> None:
    assert expression.names
    assert problems(expression) == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("sum(rate(ray_shoal_images_total[5m]))", "ray_shoal_images_total is exported by nothing"),
        ("sum(rate(ray_shoal_rejects[5m]))", "ray_shoal_rejects is exported by nothing"),  # a counter is a _total
        ("sum by (why) (ray_shoal_rejects_total)", "no metric of it has the label why"),
        ('ray_shoal_fit_clusters{model="dpm"}', "ray_shoal_fit_clusters has no label model"),
        ('max({__name__=~"(ray_)?shoal_recluster_drift"})', "shoal_recluster_drift is exported by nothing"),
        ("up - on (job) uptime offset 5m", "uptime is exported by nothing"),
    ],
)
def test_the_search_for_wrong_names_finds_them(text: str, wrong: str) -> None:
    assert wrong in problems(Expression("here", text))


def test_only_one_module_speaks_to_rays_metrics() -> None:
    root = FOLDER.parents[1]
    sources = [path for name in ("models", "pipeline", "jobs") for path in (root / name).rglob("*.py")]
    found = [path for path in sources if re.search(r"ray\.util(\.| import )metrics", path.read_text())]
    assert found == [root / "pipeline/metrics.py"]


@pytest.mark.parametrize("metric", ASKED_FOR.values(), ids=ASKED_FOR.keys())
def test_the_dashboard_shows_what_was_asked_for(metric: str) -> None:
    assert any(metric in expression.names for expression in shown())


def test_all_that_is_drawn_has_its_words_unit_and_bars() -> None:
    assert len(panels()) > 30
    for panel in panels():
        settings = panel["fieldConfig"]["defaults"]
        assert len(panel["description"]) > 20, panel["title"]
        assert settings["unit"], panel["title"]
        assert settings["thresholds"]["steps"][0]["value"] is None, panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        for target in panel["targets"]:
            assert target["legendFormat"], panel["title"]
            assert target["datasource"] == panel["datasource"]
    titles = Counter((panel["title"], panel["type"]) for panel in panels())
    assert max(titles.values()) == 1


def test_legends_name_labels_that_their_query_keeps() -> None:
    for panel in panels():
        for target in panel["targets"]:
            labels = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            kept = Expression(panel["title"], target["expr"]).grouped
            assert labels == kept, (panel["title"], target["legendFormat"])


def test_panels_have_numbers_of_their_own_and_do_not_overlap() -> None:
    everything = dashboard()["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    taken: set[tuple[int, int]] = set()
    for place in (panel["gridPos"] for panel in everything):
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert max(x for x, _ in cells) < 24
        assert taken.isdisjoint(cells)
        taken |= cells


def test_a_viewer_chooses_the_data_source_and_every_shoal_query_follows_session_and_run() -> None:
    variables = {each["name"]: each for each in dashboard()["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    for name in ("session", "run"):
        metric = re.match(r"label_values\((\w+)", variables[name]["query"]["query"])
        assert metric is not None
        assert metric[1] in exported()
    for panel in panels():
        for target in panel["targets"]:
            for name, inside in re.findall(r"(ray_shoal_\w+)\{([^}]*)\}", target["expr"]):
                assert 'SessionName=~"$session", run=~"$run"' in inside, name


def test_promql_is_valid(promtool: str, tmp_path: Path) -> None:
    recorded = [{"record": f"panel:{number}", "expr": each.text} for number, each in enumerate(shown())]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": recorded}]}))
    for rules in (file, RULES):
        done = run(promtool, "check", "rules", "--lint=all", "--lint-fatal", rules)
        assert done.returncode == 0, done.stdout + done.stderr
    recorded.append({"record": "panel:wrong", "expr": "sum(rate(x))"})
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": recorded}]}))
    assert run(promtool, "check", "rules", file).returncode != 0


SERIES = {  # a minute apart: an extraction of a hundred shards, a commit a minute
    'ray_shoal_extract_shards{run="a"}': "100x60",
    'ray_shoal_extract_shards_done{run="a"}': "0+1x60",
    'ray_shoal_images_embedded_total{NodeAddress="n", WorkerId="1"}': "0+900x60",
    'ray_shoal_images_embedded_total{NodeAddress="n", WorkerId="2"}': "0+600x60",
    'ray_shoal_rejects_total{reason="empty_image", WorkerId="1"}': "0+300x60",
    'ray_shoal_rejects_total{reason="not_an_image", WorkerId="2"}': "0+200x60",
    'ray_shoal_shards_total{outcome="failed", WorkerId="1"}': "2x60",
    'ray_shoal_train_epoch{run="a"}': "0+0.5x60",
    'ray_shoal_train_epochs{run="a"}': "100x60",
    'ray_shoal_fit_moves_total{algorithm="dpm", kind="split", outcome="accepted", WorkerId="1"}': "3x60",
    'ray_shoal_fit_moves_total{algorithm="dpm", kind="split", outcome="accepted", WorkerId="2"}': "4x60",
    'ray_shoal_fit_moves_total{algorithm="dpm", kind="split", outcome="refused"}': "50x60",
    'ray_node_disk_free{job="shoal-ray", ip="n"}': "30x60",
    'ray_node_disk_usage{job="shoal-ray", ip="n"}': "70x60",
}
BY_HAND = {  # after 40 minutes
    "Shards in the table A": 0.4,
    "Time left A": 60 * 60,
    "Images per second A": 25,
    "Rejected A": 0.25,
    "Shards that failed A": 2,
    "Epochs A": 0.2,
    "Splits A": 7,
    "Splits B": 50,
    "Disk left A": 0.3,
    "Alerts A": 0,
}


def test_panels_by_hand(promtool: str, tmp_path: Path) -> None:
    texts = {expression.where: expression.text for expression in reversed(shown())}  # of one title, the first panel's
    tests = [
        {"expr": f"sum({texts[where]})", "eval_time": "40m", "exp_samples": [{"labels": "{}", "value": value}]}
        for where, value in BY_HAND.items()
    ]
    series = [{"series": name, "values": values} for name, values in SERIES.items()]
    file = tmp_path / "by_hand.yml"
    file.write_text(yaml.safe_dump({"tests": [{"input_series": series, "promql_expr_test": tests, "interval": "1m"}]}))
    done = run(promtool, "test", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_scrape_configuration_is_valid(promtool: str) -> None:
    done = run(promtool, "check", "config", FOLDER / "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_where_they_have_to_and_not_elsewhere(promtool: str) -> None:
    done = run(promtool, "test", "rules", FOLDER / "rules_test.yml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        ("for: 10m", "for: 1h"),
        ("[30m])) > 0", "[30m])) >= 0"),
        ("> 0.05\n        for", "> 0.5\n        for"),
        ("offset 15m", "offset 50m"),
        ("changes(ray_shoal_train_epoch[10m])", "changes(ray_shoal_train_epochs[10m])"),
        ("max_over_time(ray_shoal_train_skipped[15m]) -", "max_over_time(ray_shoal_train_skipped[15m]) + 0 *"),
        (">= 100", ">= 1"),
        ("< 0.1", "< 0.01"),
        ("== 0\n        for", "== 2\n        for"),
    ],
)
def test_each_alert_that_is_spoilt_fails_its_test(promtool: str, tmp_path: Path, was: str, becomes: str) -> None:
    text = RULES.read_text()
    assert was in text
    (tmp_path / "rules.yml").write_text(text.replace(was, becomes, 1))
    shutil.copy(FOLDER / "rules_test.yml", tmp_path)
    assert run(promtool, "test", "rules", tmp_path / "rules_test.yml").returncode != 0


def test_every_alert_says_what_is_wrong_and_what_to_do_and_has_a_test() -> None:
    tested = (FOLDER / "rules_test.yml").read_text()
    for alert in alerts():
        assert alert["labels"]["severity"] in ("warning", "critical")
        assert alert["annotations"].keys() == {"summary", "description"}
        assert re.search(rf"\b{alert['alert']}\b", tested)


def words() -> str:
    """All that people are told by dashboard and alerts."""
    told = [panel["description"] for panel in panels()]
    told += [each["description"] for each in dashboard()["templating"]["list"]]
    return "\n".join(told + [text for alert in alerts() for text in alert["annotations"].values()])


def is_setting(path: str) -> bool:
    """Whether RunConfig has it."""
    model: object = RunConfig
    for name in path.split("."):
        if not (isinstance(model, type) and issubclass(model, BaseModel) and name in model.model_fields):
            return False
        model = model.model_fields[name].annotation
    return True


def test_commands_and_settings_that_people_are_told_of_are_there() -> None:
    commands = set(re.findall(r"`shoal (\w+)", words()))
    assert {"recluster", "status"} <= commands <= get_command(app).commands.keys()  # type: ignore[attr-defined]
    settings = set(re.findall(r"\b(?:train|extract|cluster|recluster|ray)\.[a-z_.]*[a-z_]", words()))
    assert len(settings) > 4
    assert [each for each in sorted(settings) if not is_setting(each)] == []
    assert not is_setting("train.loop.rate")


def test_kubernetes_is_given_the_same_rules_and_the_dashboard() -> None:
    rule = yaml.safe_load((FOLDER / "prometheusrule.yaml").read_text())
    assert (rule["apiVersion"], rule["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    assert rule["spec"] == yaml.safe_load(RULES.read_text())
    kustomization = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    (generated,) = kustomization["configMapGenerator"]
    named = [*kustomization["resources"], *generated["files"]]
    assert named == ["podmonitor.yaml", "prometheusrule.yaml", str(DASHBOARD.relative_to(FOLDER))]


def test_ray_pods_are_read_at_the_port_that_kuberay_names_and_alerts_know_the_job() -> None:
    monitor = yaml.safe_load((FOLDER / "podmonitor.yaml").read_text())
    assert (monitor["apiVersion"], monitor["kind"]) == ("monitoring.coreos.com/v1", "PodMonitor")
    assert monitor["spec"]["selector"]["matchLabels"] == {
        "ray.io/is-ray-node": "yes",
        "app.kubernetes.io/part-of": "shoal",
    }
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] == "metrics"
    assert {"targetLabel": "job", "replacement": OURS} in endpoint["relabelings"]
    scraped = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    assert scraped[0]["job_name"] == OURS


@pytest.mark.parametrize("expression", EXPRESSIONS, ids=lambda each: each.where)
def test_what_any_cluster_of_ray_has_is_asked_of_ours_alone(expression: Expression) -> None:
    for name in expression.names & {*OF_RAY, "up"}:
        selectors = re.findall(rf"\b{name}\b(\{{[^}}]*\}})?", expression.text)
        assert all(f'job="{OURS}"' in each for each in selectors), name


def test_kustomize_renders_it() -> None:
    tools = [command for command in (("kustomize", "build"), ("kubectl", "kustomize")) if shutil.which(command[0])]
    if not tools:
        pytest.skip("neither kustomize nor kubectl is here, so infra/monitoring is NOT rendered; install kubectl")
    done = run(*tools[0], FOLDER)
    assert done.returncode == 0, done.stderr
    kinds = {each["kind"]: each for each in yaml.safe_load_all(done.stdout)}
    assert kinds.keys() == {"ConfigMap", "PodMonitor", "PrometheusRule"}
    assert kinds["ConfigMap"]["data"]["shoal.json"] == DASHBOARD.read_text()


def test_rows_of_panels_follow_one_another() -> None:
    rows = [panel["gridPos"]["y"] for panel in dashboard()["panels"] if panel["type"] == "row"]
    assert len(rows) > 4
    assert all(above < below for above, below in pairwise(rows))
