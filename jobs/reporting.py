"""`shoal report TABLE`: one HTML file that shows a clustering with its images."""

from __future__ import annotations

import time
from dataclasses import dataclass

from jobs.cluster import choose
from jobs.config import RunConfig
from jobs.figures import Figures
from jobs.folder import MARKER, REPORT
from jobs.report.build import build
from jobs.report.collect import collect
from jobs.steps import Step
from pipeline.progress import Progress
from pipeline.tables.collection import RUN_FOLDER, Collection
from pipeline.tables.place import Place, place


@dataclass(frozen=True)
class Report:
    """Write the report of one clustering, with the scores of the others beside it."""

    table: str
    output: str | Place | None  # None: beside the table of a run, else in the table's folder
    name: str | None
    config: RunConfig

    def plan(self) -> list[Step]:
        """Says which clustering goes where."""
        table = Collection.open(self.table)
        return [Step("report", f"clustering {choose(table, self.name, self.config)} to {self._path(table)}")]

    def run(self, on_progress: Progress) -> Figures:
        """Raises ShoalError if there is no such clustering, OSError if the file cannot be written."""
        began = time.perf_counter()
        table = Collection.open(self.table)
        name = choose(table, self.name, self.config)
        data = collect(table, name, self.config.report, self.config.evaluate, on_progress)
        path = self._path(table)
        size = build(data, path, self.config.report)
        return Figures(
            "report",
            {
                "clustering": name,
                "clusters": data.summary.clusters,
                "images": data.summary.images,
                "report": str(path),
                "size_bytes": size,
                "seconds": time.perf_counter() - began,
            },
        )

    def _path(self, table: Collection) -> Place:
        if self.output is None:
            is_run = table.path.name == RUN_FOLDER and (table.path.parent / MARKER).is_file()
            return (table.path.parent if is_run else table.path) / REPORT
        output = place(self.output).absolute()
        return output / REPORT if output.is_dir() else output
