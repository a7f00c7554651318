"""A report as one HTML file that needs nothing else: no script, no network, no font."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from jobs.report.data import ReportConfig, ReportData
from jobs.report.view import view
from jobs.report.wording import FILTERS


def build(data: ReportData, path: Path, config: ReportConfig | None = None) -> Path:
    """Write the report to `path` and return it; a reader sees the old file or the whole new one.

    Costs a decode per picture shown and about a second for the charts. Raises OSError when `path` cannot be written.
    """
    html = render(data, config or ReportConfig())
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        # Names in archives may be bytes that are no UTF-8; they show as escapes.
        unfinished.write_bytes(html.encode("utf-8", errors="backslashreplace"))
        os.replace(unfinished, path)  # noqa: PTH105 - says that it overwrites, on every system
    finally:
        unfinished.unlink(missing_ok=True)
    return path


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
