"""The report in a real browser: nothing asked of the network, nothing wider than the screen, nothing run."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from jobs.report.build import build
from jobs.report.change import Change, EventCounts, GenerationLine
from jobs.report.data import MoveRow, Picture, RejectRow, ReportConfig, ReportData, Sheet
from pipeline.history.diff import Fate, Flow
from pipeline.recluster.evidence import ClusterDrift, Drift

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(
    CHROMIUM is None,
    reason="NO BROWSER: install chromium to test what people see of the report (apt-get install chromium)",
)

Show = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="NO PLAYWRIGHT: pip install playwright")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield launched
        launched.close()


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Show]:
    """Opens a report; fails at the end if it logged an error or asked for anything but itself."""
    contexts, complaints = [], []

    def open_page(
        data: ReportData, width: int = 1280, scheme: str = "light", config: ReportConfig | None = None
    ) -> Any:
        path = tmp_path / "report.html"
        build(data, path, config)
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked(request.url))
        page.goto(path.as_uri())
        return page

    def asked(url: str) -> None:
        if not url.startswith(("data:", (tmp_path / "report.html").as_uri())):
            complaints.append(f"requested {url}")

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def wordy(data: ReportData) -> ReportData:
    """The report with names too long for any column."""
    long = "unbroken" * 40
    sheet = replace(
        data.sheets[0],
        majority_label=long,
        typical=tuple(
            replace(item, label=long + str(row), key=long) for row, item in enumerate(data.sheets[0].typical)
        ),
    )
    return replace(
        data,
        title=long,
        summary=replace(data.summary, images=9_876_543_210, backbone=long, rejects={long: 10**9}, seconds={long: 1e6}),
        sheets=(sheet, *data.sheets[1:]),
        scores=(replace(data.scores[0], name=long, objective=-1.23e12), *data.scores[1:]),
        moves=(MoveRow(10**6, "split", tuple(range(40)), -1e9, False, long), *data.moves),
        rejects=(RejectRow(long, long, long, 10**12, 10**12 + 5, long),),
        provenance={long: long},
        config_yaml=long,
    )


def overflow(page: Any) -> Any:
    """Pixels by which the page is wider than its window, with every <details> open."""
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    return page.evaluate("document.documentElement.scrollWidth - window.innerWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_renders_without_scrolling_sideways(digits_report: ReportData, show: Show, width: int, scheme: str) -> None:
    page = show(digits_report, width, scheme)
    assert overflow(page) <= 0
    assert page.locator("main > section").count() == 6
    assert page.locator("article").count() == 10
    assert page.locator("main figure svg").count() == 3
    assert page.evaluate("[...document.images].filter(image => image.naturalWidth === 8).length") == 180
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(int(part) for part in background[4:-1].split(",")) > 380) == (scheme == "light")


@pytest.mark.parametrize("width", [1280, 390])
def test_long_names_do_not_widen_the_page(digits_report: ReportData, show: Show, width: int) -> None:
    assert overflow(show(wordy(digits_report), width)) <= 0


@pytest.mark.parametrize("width", [1280, 390])
def test_three_hundred_clusters(bare_report: ReportData, show: Show, width: int) -> None:
    sizes = {cluster: 10**7 // (cluster + 1) for cluster in range(300)}
    sheets = tuple(Sheet(cluster, size, (Picture("key", "shard", None),)) for cluster, size in sizes.items())
    summary = replace(bare_report.summary, images=sum(sizes.values()), clusters=300)
    page = show(replace(bare_report, sizes=sizes, sheets=sheets, summary=summary), width)
    assert overflow(page) <= 0
    assert page.locator("article").count() == page.locator(".chips a").count() == ReportConfig().max_clusters


@pytest.mark.slow
def test_what_changed_fits_the_screen(bare_report: ReportData, show: Show) -> None:
    long, counts = "unbroken" * 40, EventCounts(10**9, 10**9, 10**9, 10**9)
    fates = (Fate(0, "merged", tuple(range(10**12, 10**12 + 50)), 10**9, 10**10, -1e9), Fate(1, long, (), 0, 1))
    overall = ClusterDrift(rows=10**9, low_fraction=1.0, log_density_shift=-1e6, is_novel=True, has_drifted=True)
    what = Change(2, 1, long, long, fates=fates, flows=(Flow(10**12, 0, 10**9),), drift=Drift(overall=overall))
    generations = tuple(
        GenerationLine(g, datetime(2026, 9, g, tzinfo=UTC), long, 10**12, 10**9, counts, 9, 0.5) for g in (1, 2)
    )
    for width in (1280, 800, 390):
        page = show(replace(bare_report, change=what, generations=generations), width)
        assert overflow(page) <= 0
        assert page.locator("#change tr").count() == 3 + 2 + 2
        for bar in page.locator("#change .track").all():  # no bar is longer than its track
            assert bar.evaluate("track => track.scrollWidth - track.clientWidth") <= 0


@pytest.mark.parametrize("width", [1280, 390])
def test_one_cluster_without_pictures(bare_report: ReportData, show: Show, width: int) -> None:
    page = show(bare_report, width)
    assert overflow(page) <= 0
    assert "No pictures could be read" in page.inner_text("#clusters")


def test_tiny_images_are_large_enough_to_see_and_sharp(digits_report: ReportData, show: Show) -> None:
    image = show(digits_report, 390).locator("article img").first
    box = image.bounding_box()
    assert box["width"] >= 48 and abs(box["width"] - box["height"]) < 1
    assert image.evaluate("image => getComputedStyle(image).imageRendering") == "pixelated"


def test_chart_colours_follow_the_page(digits_report: ReportData, show: Show) -> None:
    colour = "getComputedStyle(document.querySelector('.charts svg text')).fill"
    assert show(digits_report, scheme="light").evaluate(colour) != show(digits_report, scheme="dark").evaluate(colour)


def test_a_number_on_the_map_leads_to_its_sheet(digits_report: ReportData, show: Show) -> None:
    page = show(digits_report)
    link = page.locator(".map a").first
    name = link.text_content().strip()
    link.click()
    assert page.url.endswith(f"#cluster-{name}")
    assert page.locator(f"#cluster-{name}").is_visible()


def test_script_in_the_data_is_shown_as_text(digits_report: ReportData, show: Show) -> None:
    script = "<script>document.title = 'run'</script><img src=x onerror=\"document.title = 'run'\">"
    picture = replace(digits_report.sheets[0].typical[0], key=script, shard=script, label=script)
    data = replace(
        digits_report,
        title=script,
        sheets=(replace(digits_report.sheets[0], typical=(picture,), majority_label=script),),
        rejects=(RejectRow(script, script, script, 0, 1, script),),
        config_yaml=script,
    )
    page = show(data)
    assert page.title() == f"{script} · shoal"
    assert page.inner_text("h1") == script
    assert page.inner_text(f"#cluster-{data.sheets[0].cluster} .about b") == f"“{script}”"
    assert page.locator("article img").first.get_attribute("alt").startswith(script)
    assert page.locator("script").count() == 0


def test_the_policy_stops_what_slips_through(digits_report: ReportData, browser: Any, tmp_path: Path) -> None:
    """Even markup that was not escaped could neither run nor reach the network."""
    path = tmp_path / "report.html"
    build(digits_report, path)
    hole = "<script>document.title = 'run'</script><img src='http://example.invalid/x.png'><main"
    path.write_text(path.read_text().replace("<main", hole, 1))
    page = browser.new_page()
    asked: list[str] = []
    page.on("requestfinished", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    assert page.title() == "Handwritten digits · shoal"
    assert not [url for url in asked if url.startswith("http")]
    page.close()
