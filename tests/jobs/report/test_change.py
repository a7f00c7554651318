"""What changed, in words, tables and a timeline: bounded, escaped, and silent where nothing is known."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser

import pytest
from histories import Told, five_generations

from jobs.report.build import render
from jobs.report.change import Change, EventCounts, GenerationLine
from jobs.report.change_view import AT_ONCE, change_view, timeline, told
from jobs.report.collect_change import change, generation_lines
from jobs.report.data import Picture, ReportConfig, ReportData, Sheet, shown_clusters
from pipeline.cluster.published import Published
from pipeline.history.diff import Fate, Flow
from pipeline.history.lineage import Lineage
from pipeline.progress import silent
from pipeline.recluster.evidence import ClusterDrift, Drift

SPLIT = (Fate(0, "split", (0,), 90, 50), Fate(9, "split", (0,), 0, 38, 212.4))
MERGE = (Fate(3, "merged", (3, 17), 55, 71, -4.2), Fate(17, "died", (17,), 14, 0))
BORN, ENDED = Fate(8, "born", (), 0, 31), Fate(25, "died", (25,), 4, 0)
ATTACK = """<script>alert("x")</script>'"><img src=x onerror=alert(1)>{{ 7 * 7 }}"""
START = datetime(2026, 3, 1, tzinfo=UTC)


class Page(HTMLParser):
    """Text, ids and links of each section."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text: dict[str, str] = {}
        self.tags: dict[str, list[tuple[str, dict[str, str | None]]]] = {}
        self.section = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("section", "article"):
            self.section = dict(attrs)["id"] or ""
        self.tags.setdefault(self.section, []).append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text[self.section] = " ".join((self.text.get(self.section, "") + " " + data).split())

    def rows(self, section: str) -> int:
        return sum(tag == "tr" for tag, _ in self.tags[section])

    def links(self, section: str) -> list[str]:
        return [attrs["href"] or "" for tag, attrs in self.tags[section] if tag == "a"]


def page(data: ReportData, **config: int) -> Page:
    return Page(render(data, ReportConfig(**config)))


def changed(**parts: object) -> Change:
    whole = {"fates": (*SPLIT, *MERGE, BORN, ENDED), "arrived": 60, "removed": 4, "moved": 52, **parts}
    return Change(12, 11, **{"decision": "refine", **whole})  # type: ignore[arg-type]


def lines(number: int) -> tuple[GenerationLine, ...]:
    counts = EventCounts(1, 0, 0, 0)
    return tuple(
        GenerationLine(
            g, START + timedelta(days=g), "fit" if g == 1 else "assign", 100, 5, counts if g > 1 else None, 10, 0.02
        )
        for g in range(1, number + 1)
    )


def test_new_clusters_are_counted_and_survivors_are_not() -> None:
    assert EventCounts.of((*SPLIT, *MERGE, BORN, ENDED)) == EventCounts(born=1, split=1, merged=1, died=2)
    line = GenerationLine(2, START, "refine", 9, 3, EventCounts(2, 1, 0, 0), arrived=60)
    assert line.new_rate == 0.05
    assert replace(line, arrived=0).new_rate is replace(line, counts=None).new_rate is None


def test_the_story_of_each_cluster() -> None:
    new = Fate(30, "merged", (1, 2), 0, 20)
    stories = told([*SPLIT, *MERGE, BORN, ENDED, new, Fate(4, "kept", (4,), 3, 3), Fate(6, "split", (6,), 3, 2)])
    assert {cluster: str(story) for cluster, story in stories.items()} == {
        0: "gave off 9",
        9: "split from 0",
        3: "took in 17",
        17: "taken in by 3",
        8: "born",
        25: "ended",
        30: "merged from 1, 2",
        4: "",
        6: "split",
    }
    many = told([Fate(0, "merged", tuple(range(12)), 1, 12)])[0]
    assert str(many) == "took in 1, 2, 3, 4, 5, 6, 7, 8 and 3 more"


def test_every_kind_of_event_is_seen_however_many_there_are_of_one() -> None:
    births = tuple(Fate(100 + each, "born", (), 0, 1_000 - each) for each in range(200))
    view = change_view(changed(fates=(*births, *SPLIT, *MERGE)), limit=30)
    first, rest = ([fate.cluster for fate, _ in part] for part in view.fates)
    assert first == [*range(100, 108), 0, 9, 3, 17]
    assert rest == list(range(108, 126))
    assert view.more_fates == 204 - 30
    assert [len(part) for part in change_view(changed(fates=births[:5]), limit=30).fates] == [5]


@pytest.mark.parametrize(
    ("decision", "sentence"),
    [
        ("assign", "Generation 12 labels what arrived with the model of generation 11"),
        ("refine", "Generation 12 refines the model of generation 11"),
        ("refit", "Generation 12 is a new fit, matched to the clusters of generation 11"),
        ("removal", "Generation 12 is generation 11 without the images that were removed"),
        ("rollback to 3", "Generation 12 goes back to generation 3"),
        ("{parent} dreams", "Generation 12 follows generation 11 ({parent} dreams)"),
    ],
)
def test_each_decision_is_a_sentence(decision: str, sentence: str) -> None:
    assert change_view(changed(decision=decision), 10).happened == sentence


def test_numbers_that_are_zero_or_unknown_are_not_told() -> None:
    assert change_view(changed(), 10).numbers == (
        "Images: 60 arrived, 4 removed, 52 moved to another cluster. Clusters: 1 born, 1 split off, 1 merged, 2 ended."
    )
    assert change_view(changed(removed=0, moved=None, fates=()), 10).numbers == (
        "Images: 60 arrived. No cluster came or went."
    )
    assert change_view(Change(2, 1, "assign only"), 10).numbers == "No cluster came or went."


def test_new_clusters_get_a_quarter_of_the_sheets_at_most() -> None:
    sizes = {cluster: 1_000 - cluster for cluster in range(100)}
    fates = tuple(Fate(cluster, "born", (), 0, 1) for cluster in range(90, 100))
    chosen = shown_clusters(sizes, ReportConfig(max_clusters=8), changed(fates=fates))
    assert chosen == [0, 1, 2, 3, 4, 5, 90, 91]
    assert shown_clusters(sizes, ReportConfig(max_clusters=3), changed(fates=fates)) == [0, 1, 2]
    gone = changed(fates=(Fate(7_000, "born", (), 0, 1), Fate(3, "died", (3,), 1, 0)))
    assert shown_clusters(sizes, ReportConfig(max_clusters=8), gone) == list(range(8))


def test_the_section_shows_events_flows_and_drift(plain_report: ReportData) -> None:
    overall = ClusterDrift(rows=60, low_fraction=0.031, log_density_shift=-0.12, is_novel=True)
    ones = ClusterDrift(cluster=1, rows=7, low_fraction=0.0, log_density_shift=None)
    what = changed(
        why="3.1% score low.",
        flows=(Flow(0, 9, 38), Flow(17, 3, 12), Flow(2, -1, 1)),
        drift=Drift(overall=overall, clusters=(ones,)),
    )
    sheets = tuple(replace(sheet, since=sheet.cluster + 1) for sheet in plain_report.sheets)
    made = page(replace(plain_report, change=what, sheets=sheets))
    text = made.text["change"]
    assert "Generation 12 refines the model of generation 11: 3.1% score low. Images: 60 arrived" in text
    assert "split from 0 – 38 +212.4" in text and "gave off 9 90 50 –" in text
    assert "taken in by 3 14 – –" in text
    assert "17 3 12" in text and "2 noise 1" in text
    assert "All novel 60 3.1% −0.12 1 7 0% –" in text
    assert {"#cluster-0", "#cluster-9", "#cluster-3", "#cluster-8"} <= set(made.links("change"))
    assert not {"#cluster-17", "#cluster--1"} & set(made.links("change"))
    assert sum(tag == "img" for tag, _ in made.tags["change"]) == 4 * 4  # of clusters 0, 3, 8 and 9
    assert "split from 0 label" in made.text["cluster-9"] and "since generation 10" in made.text["cluster-9"]
    assert "took in" not in made.text["cluster-1"] and "split" not in made.text["cluster-1"]


def test_a_fresh_fit_has_the_timeline_only_and_a_first_one_nothing(bare_report: ReportData) -> None:
    fresh = page(replace(bare_report, generations=lines(3)))
    assert "change" not in fresh.tags and "#generations" in fresh.links("")
    assert fresh.rows("generations") == 1 + 3
    assert "since generation" not in fresh.text["cluster-0"]
    first = page(replace(bare_report, generations=lines(1)))
    assert not {"change", "generations"} & first.tags.keys()


def test_an_older_generation_without_evidence(bare_report: ReportData) -> None:
    plain = tuple(replace(line, arrived=None, low_fraction=None) for line in lines(2))
    made = page(replace(bare_report, change=Change(2, 1, "assign only"), generations=plain))
    assert made.text["change"].endswith("generation 1. No cluster came or went.")
    assert made.rows("change") == 0
    assert "score below" not in made.text["generations"]


def test_hundreds_of_clusters_and_generations_stay_bounded(bare_report: ReportData) -> None:
    sizes = {cluster: 10_000 - cluster for cluster in range(600)}
    fates = tuple(Fate(400 + each, ("born", "split", "died")[each % 3], (), 5, 5) for each in range(200))
    drift = Drift(overall=ClusterDrift(rows=9), clusters=tuple(ClusterDrift(cluster=each, rows=1) for each in sizes))
    flows = tuple(Flow(each, each + 1, 600 - each) for each in range(500))
    sheets = tuple(Sheet(cluster, size, (Picture("key", "shard", None),)) for cluster, size in sizes.items())
    what = changed(fates=fates, flows=flows, drift=drift)
    data = replace(bare_report, sizes=sizes, sheets=sheets, change=what, generations=lines(130))
    made = page(data, max_changes=30, max_generations=50, max_clusters=8)
    assert made.rows("change") == (30 + 2) + (30 + 2) + (30 + 1 + 2)  # each table in two parts with a head
    assert "170 events of smaller clusters not shown" in made.text["change"]
    assert "470 smaller flows not shown" in made.text["change"]
    assert "570 clusters that changed less not shown" in made.text["change"]
    assert made.rows("generations") == 50 + 2
    assert f"{50 - AT_ONCE} earlier generations" in made.text["generations"]
    assert "80 older generations not shown" in made.text["generations"]
    assert "8 of 600 clusters, the largest and some that are new" in made.text["clusters"]
    assert (len(timeline(lines(5), 3).newest), timeline(lines(5), 3).more) == (3, 2)


def test_what_the_tables_say_is_never_markup(bare_report: ReportData) -> None:
    fates = (Fate(0, ATTACK, (1,), 1, 1),)
    what = changed(decision=ATTACK, why=ATTACK, fates=fates)
    generations = tuple(replace(line, decision=ATTACK) for line in lines(2))
    html = render(replace(bare_report, change=what, generations=generations), ReportConfig())
    assert "<script" not in html and "<img src=x" not in html
    made = Page(html)
    assert made.text["change"].count(ATTACK) == 3 and made.text["generations"].count(ATTACK) == 2
    assert ATTACK in made.text["cluster-0"]


@pytest.fixture(scope="module")
def history() -> Told:
    return five_generations()


def collected(history: Told, number: int, lineage: Lineage | None = None, **evidence: object) -> Change | None:
    generation = history.clustering.generation(number).model_copy(update={"evidence": json.dumps(evidence)})
    found = Published(history.collection, history.clustering, generation, labeller=None)  # type: ignore[arg-type]
    return change(found, lineage or Lineage(history.clustering), silent)


def test_a_change_is_collected_from_the_tables(history: Told) -> None:
    assert collected(history, 1) is None
    assert collected(history, 2, why="all like before") == Change(
        2, 1, "assign", "all like before", 4, 0, 0, fates=(Fate(3, "born", (), 0, 2),)
    )
    third = collected(history, 3)
    assert third is not None
    assert (third.arrived, third.removed, third.moved, third.flows) == (0, 0, 2, (Flow(0, 4, 2),))
    assert set(third.fates) == {Fate(0, "split", (0,), 6, 4, 2.5), Fate(4, "split", (0,), 0, 2, 2.5)}
    fourth = collected(history, 4)
    assert fourth is not None
    assert set(fourth.fates) == {Fate(1, "merged", (1, 4), 4, 6, -1.5), Fate(4, "died", (4,), 2, 0)}


def test_where_the_parent_has_ended_its_events_are_still_told(history: Told) -> None:
    lineage = Lineage(history.clustering)
    del lineage.generations[2]
    third = collected(history, 3, lineage, arrived=7, drift={"overall": {"rows": 3}})
    assert third is not None and third.drift is not None
    assert (third.arrived, third.removed, third.moved, third.flows) == (7, None, None, ())
    assert set(third.fates) == {Fate(0, "split", (0,), 6, 4, 2.5), Fate(4, "split", (0,), 0, 2, 2.5)}


def test_the_line_of_generations_is_collected_from_the_tables(history: Told) -> None:
    found = generation_lines(Lineage(history.clustering))
    assert [(line.number, line.decision, line.images, line.clusters) for line in found] == [
        (1, "fit", 10, 3),
        (2, "assign", 14, 4),
        (3, "refine", 14, 5),
        (4, "refine", 14, 4),
        (5, "refine", 14, 3),
    ]
    none = EventCounts(0, 0, 0, 0)
    assert [line.counts for line in found] == [
        None,
        replace(none, born=1),
        replace(none, split=1),
        replace(none, merged=1, died=1),
        replace(none, merged=1, died=1),
    ]


def test_the_chart_of_generations_shows_what_is_known(bare_report: ReportData) -> None:
    html = render(replace(bare_report, generations=lines(30)), ReportConfig())
    assert all(f">{name}</text>" in html for name in ("clusters", "low scores, %", "new per 1,000", "generation"))
    plain = tuple(replace(line, arrived=None, low_fraction=None) for line in lines(30))
    alone = render(replace(bare_report, generations=plain), ReportConfig())
    assert ">clusters</text>" in alone and not re.search(">(low scores, %|new per 1,000)</text>", alone)
