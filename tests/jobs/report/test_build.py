"""The HTML file: complete by itself, escaped, written whole, and honest about what it leaves out."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from jobs.report.build import build, render
from jobs.report.data import (
    MoveRow,
    Picture,
    RejectRow,
    ReportConfig,
    ReportData,
    ScoreRow,
    Sheet,
    Summary,
    largest_clusters,
)
from pipeline.evaluate.metrics import score_geometry, score_labels

VOID = {"meta", "link", "img", "br", "hr", "input"}
ATTACK = """<script>alert("x")</script>'"><img src=x onerror=alert(1)>{{ 7 * 7 }}"""


class Page(HTMLParser):
    """Elements, ids and references of a page; fails on tags that do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def attribute(self, name: str) -> list[str]:
        return [value for _, attributes in self.tags if (value := attributes.get(name)) is not None]


def page(data: ReportData, **config: int) -> Page:
    return Page(render(data, ReportConfig(**config)))


def test_the_file_refers_to_nothing_outside_itself(digits_report: ReportData) -> None:
    html = render(digits_report, ReportConfig())
    made = Page(html)
    references = [made.attribute(name) for name in ("src", "href", "xlink:href", "action", "srcset", "poster")]
    assert all(re.match(r"data:image/|data:,|#", value) for values in references for value in values)
    assert "url(" not in re.sub(r"url\(#\w+\)", "", html)
    assert "@import" not in html
    assert "script" not in {tag for tag, _ in made.tags}
    policy = next(meta["content"] for meta in made.all("meta") if "http-equiv" in meta)
    assert policy is not None and policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")


def test_links_lead_somewhere_and_ids_are_unique(digits_report: ReportData) -> None:
    made = page(digits_report, max_clusters=4)
    ids = made.attribute("id")
    assert len(ids) == len(set(ids))
    targets = [
        value[1:]
        for name in ("href", "xlink:href", "aria-labelledby")
        for value in made.attribute(name)
        if value[:1] == "#"
    ]
    assert set(targets) <= set(ids)
    assert set(made.attribute("aria-labelledby")) <= set(ids)
    assert sum(target.startswith("cluster-") for target in targets) > 4


def test_every_picture_has_alternative_text(plain_report: ReportData) -> None:
    made = page(plain_report)
    assert len(made.all("img")) == 10 * (12 + 6)
    assert all((image.get("alt") or "").startswith("digit-") for image in made.all("img"))
    assert all("aria-label" in svg or "aria-hidden" in svg for svg in made.all("svg"))
    assert made.all("html") == [{"lang": "en"}]


def test_sections_follow_what_there_is(digits_report: ReportData, bare_report: ReportData) -> None:
    full = [section["id"] for section in page(digits_report).all("section")]
    bare = [section["id"] for section in page(bare_report).all("section")]
    assert full == ["overview", "scores", "clusters", "moves", "rejects", "provenance"]
    assert bare == ["overview", "clusters", "rejects", "provenance"]
    empty = replace(bare_report, sizes={}, sheets=(), summary=replace(bare_report.summary, images=0, clusters=0))
    assert [section["id"] for section in page(empty).all("section")] == ["overview", "rejects", "provenance"]


def test_text_of_the_data_is_never_markup(digits_report: ReportData) -> None:
    hostile: list[str] = []

    def bad() -> str:
        hostile.append(f"{ATTACK}-{len(hostile)}-")
        return hostile[-1]

    assert digits_report.contingency is not None and digits_report.map is not None
    picture = replace(digits_report.sheets[0].typical[0], label=bad())
    sheet = replace(digits_report.sheets[0], typical=(picture,), majority_label=bad(), event=bad(), parents=())
    data = replace(
        digits_report,
        title=bad(),
        summary=Summary(1, 1, bad(), bad(), bad(), 3, bad(), {bad(): 1.0}, 1, 0, {bad(): 1}, {bad(): 1.0}),
        sheets=(sheet,),
        scores=(replace(digits_report.scores[0], name=bad()),),
        map=replace(digits_report.map, method=bad()),
        contingency=replace(digits_report.contingency, labels=(bad(), *digits_report.contingency.labels[1:])),
        moves=(MoveRow(1, bad(), (0,), 0.0, False, bad()),),
        rejects=(RejectRow(bad(), bad(), bad(), 0, 1, bad()),),
        provenance={bad(): bad()},
        config_yaml=bad(),
    )
    html = render(data, ReportConfig())
    assert "<script" not in html and "<img src=x" not in html
    made = Page(html)
    assert not made.attribute("onerror")
    assert [text for text in hostile if text not in made.text] == []


@pytest.mark.parametrize("image", [None, b"broken", "as it was"])
def test_keys_and_shards_are_never_markup(plain_report: ReportData, image: bytes | str | None) -> None:
    first = plain_report.sheets[0].typical[0]
    bad = replace(first, key=ATTACK, shard=ATTACK, image=first.image if isinstance(image, str) else image)
    html = render(replace(plain_report, sheets=(Sheet(0, 9, (bad,), (bad,)),)), ReportConfig())
    assert "<script" not in html and "<img src=x" not in html
    made = Page(html)
    assert not made.attribute("onerror")
    assert sum(f"{ATTACK}, in {ATTACK}" in title for title in made.attribute("title")) == 2


def test_sheets_are_capped_to_the_largest_clusters(bare_report: ReportData) -> None:
    sizes = {cluster: 1_000 - cluster for cluster in range(300)}
    sheets = tuple(Sheet(cluster, size, (Picture("key", "shard", None),)) for cluster, size in sizes.items())
    summary = replace(bare_report.summary, images=sum(sizes.values()), clusters=300)
    made = page(replace(bare_report, sizes=sizes, sheets=sheets, summary=summary), max_clusters=5)
    assert [article["id"] for article in made.all("article")] == [f"cluster-{cluster}" for cluster in range(5)]
    assert "The 5 largest of 300 clusters, with 2% of the images" in " ".join(made.text.split())


def test_rows_beyond_the_limits_are_counted(plain_report: ReportData) -> None:
    summary = replace(plain_report.summary, rejects={"corrupt_image": 1_200})
    data = replace(plain_report, summary=summary, rejects=(RejectRow("s", "corrupt_image"),) * 50)
    text = " ".join(page(data, max_rejects=7, max_moves=1).text.split())
    assert "7 of them; 1,193 more are in the samples table" in text
    assert "The newest 1 move (3 older ones are in the moves table)" in text


def test_images_per_sheet_are_configured(plain_report: ReportData) -> None:
    assert len(page(plain_report, typical=2, uncertain=1, max_clusters=3).all("img")) == 9


def test_an_image_that_cannot_be_decoded_leaves_a_placeholder(plain_report: ReportData) -> None:
    good, bad = plain_report.sheets[0].typical[0], replace(plain_report.sheets[0].typical[1], image=b"broken")
    made = page(replace(plain_report, sheets=(replace(plain_report.sheets[0], typical=(good, bad), uncertain=()),)))
    assert len(made.all("img")) == 1
    assert any(label.startswith("No picture: digit-") for label in made.attribute("aria-label"))


def test_without_any_picture_the_sheets_list_keys(bare_report: ReportData) -> None:
    made = page(bare_report)
    assert made.all("img") == []
    assert "No pictures could be read" in made.text
    assert made.text.count("row-") == 5


def test_a_runner_up_is_named_if_it_is_a_cluster_of_the_report(bare_report: ReportData) -> None:
    pictures = tuple(
        Picture(f"row-{row}", "s", None, 0.75, runner_up=each) for row, each in enumerate((1, 77, -1, None))
    )
    sheets = (Sheet(0, 4, typical=pictures, uncertain=pictures), Sheet(1, 2, typical=pictures[:1]))
    made = page(replace(bare_report, sizes={0: 4, 1: 2}, sheets=sheets))
    assert re.findall(r"row-\d 75%(?: or \w+)?", " ".join(made.text.split())) == [
        "row-0 75% or 1",
        "row-1 75%",
        "row-2 75%",
        "row-3 75%",
    ]


def test_stray_labels_are_tagged(plain_report: ReportData) -> None:
    first = plain_report.sheets[0]
    typical = (replace(first.typical[0], label="owl"), replace(first.typical[1], label=first.majority_label))
    made = page(replace(plain_report, sheets=(replace(first, typical=typical, uncertain=()),)))
    assert [span for span in made.all("span") if "stray" in (span.get("class") or "")] != []
    assert made.text.count("owl") == 1
    assert "An orange tag" in made.text


def test_figures_without_labels_fall_back_to_the_silhouette(plain_report: ReportData) -> None:
    row = ScoreRow("dpm", 10, silhouette=0.321)
    text = page(replace(plain_report, scores=(row,), contingency=None)).text
    assert "Silhouette0.321no labels to compare with" in text.replace("\n", "").replace("    ", "")
    assert "NMI" in page(plain_report).text


def test_names_that_are_no_unicode_are_written_as_escapes(bare_report: ReportData, tmp_path: Path) -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    path = tmp_path / "report.html"
    build(replace(bare_report, title=name), path)
    assert "caf\\udce9" in path.read_text(encoding="utf-8")


def test_the_file_is_replaced_whole(bare_report: ReportData, tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    assert build(bare_report, path) == path.stat().st_size
    first = path.read_text()
    build(replace(bare_report, title="Second"), path)
    assert "Second" in path.read_text() and "Second" not in first
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_report_and_no_debris(bare_report: ReportData, tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()  # cannot be replaced by a file
    with pytest.raises(OSError, match=r"report\.html"):
        build(bare_report, tmp_path / "report.html")
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_a_report_of_digits_is_small(digits_report: ReportData, tmp_path: Path) -> None:
    assert build(digits_report, tmp_path / "report.html") < 1_000_000


def test_the_same_data_give_the_same_bytes(digits_report: ReportData) -> None:
    assert render(digits_report, ReportConfig()) == render(digits_report, ReportConfig())


def test_largest_clusters_break_ties_by_id() -> None:
    assert largest_clusters({5: 10, 2: 10, 9: 30, 1: 1}, ReportConfig(max_clusters=3)) == [9, 2, 5]


def test_a_score_row_takes_over_the_scores_of_the_pipeline(digits_report: ReportData) -> None:
    assert digits_report.map is not None
    cluster_N, labels = digits_report.map.cluster_N, [None] * 600
    x_ND = digits_report.map.x_N[:, None]
    geometry, agreement = score_geometry(x_ND, cluster_N), score_labels(labels, cluster_N)
    row = ScoreRow.of("dpm", geometry, agreement, objective=1.0)
    assert (row.clusters, row.silhouette, row.nmi, row.objective) == (10, geometry.silhouette, None, 1.0)
    labelled = digits_report.scores[0]
    assert None not in (
        labelled.nmi,
        labelled.ari,
        labelled.acc,
        labelled.purity,
        labelled.homogeneity,
        labelled.completeness,
    )
