"""`shoal import FILE... --output TABLE`: embeddings made elsewhere into a table."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from jobs.config import RunConfig
from jobs.figures import Figures
from jobs.rejects import reject_tables, reject_values, shortfall
from jobs.steps import Step
from pipeline.progress import Progress
from pipeline.tables.collection import Collection
from pipeline.tables.imports import import_files, local_source
from pipeline.tables.schema import OK, REJECTED


@dataclass(frozen=True)
class Import:
    """Bring files of embeddings into a table; files that are in it are skipped."""

    files: tuple[str | Path, ...]
    table: str
    config: RunConfig

    def plan(self) -> list[Step]:
        """Raises TableError for a URL, and for a file that is not there."""
        for file in self.files:
            local_source(file)
        return [Step("import", f"{file} into {self.table}") for file in self.files]

    def run(self, on_progress: Progress) -> Figures:
        """Raises TableError for a file that holds no embeddings, or others than the table's."""
        began = time.perf_counter()
        settings = self.config.imports
        summary = import_files(self.files, self.table, settings.backbone, settings.l2_normalise, on_progress)
        table = Collection.open(self.table)
        images, rejects = table.samples.count(OK), table.samples.count(REJECTED)
        values = {
            **reject_values(images, rejects),
            "new_files": summary.files,
            "skipped_files": summary.skipped,
            "new_rows": summary.rows,
            "dimension": summary.dimension,
            "samples_version": summary.version,
            "table": str(table.path),
            "seconds": time.perf_counter() - began,
        }
        allowed = self.config.max_reject_fraction
        return Figures("import", values, reject_tables(table), shortfall(images, rejects, allowed))
