"""A report as one HTML file that needs nothing else: no script, no network, no font."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from jobs.report.data import ReportConfig, ReportData
from jobs.report.view import view
from jobs.report.wording import FILTERS
from pipeline.tables.place import Place, write_whole


def build(data: ReportData, path: Place, config: ReportConfig | None = None) -> int:
    """Write the report to `path` and return its size in bytes; a reader sees the old file or the whole new one.

    Costs a decode per picture shown and about a second for the charts. Raises OSError when `path` cannot be written.
    """
    html = render(data, config or ReportConfig())
    page = html.encode("utf-8", errors="backslashreplace")  # names in archives may be no UTF-8
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page)
    return len(page)


def render(data: ReportData, config: ReportConfig) -> str:
    """The report as HTML. Every text of `data` is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    return environment.get_template("report.html.j2").render(view(data, config))
