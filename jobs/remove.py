"""`shoal remove TABLE KEY...`: take images down, with every row, sum and byte that the table has of them."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jobs.figures import Figures, Row, Value
from jobs.folder import MARKER, REPORT, RunFolder
from jobs.journal import STATUS
from jobs.steps import State, Step
from models.errors import ShoalError
from pipeline.progress import Progress, silent
from pipeline.removal.remove import Preview, RemovalSummary, preview, remove
from pipeline.removal.targets import Wanted, read_targets
from pipeline.tables.collection import RUN_FOLDER, Collection
from pipeline.tables.place import Place, opened, scratches

EXAMPLES = 3
GENERATOR = b'<meta name="generator" content="shoal">'  # as in the template of reports
_HEAD_BYTES = 1024  # it stands before anything of the table
_STAYS: tuple[Row, ...] = (
    {"what_stays": "the images in their shards", "because": "they are yours; a new table would have them again"},
    {"what_stays": "backbone and reduction", "because": "networks, fitted with these images among all others"},
    {"what_stays": "a mark for each", "because": "a digest of the key, so that its shard is not extracted again"},
    {"what_stays": "reports elsewhere, backups", "because": "shoal does not know where they are"},
)


@dataclass(frozen=True)
class Remove:
    """Remove samples by key: of every shard, or of `shard` alone; more keys are in `file`."""

    table: str
    keys: tuple[str, ...]
    file: str | None
    shard: str | None

    def plan(self) -> list[Step]:
        """Looks the keys up. Raises ShoalError if there is nothing to do."""
        found = preview(Collection.open(self.table), self._wanted(), silent)
        _warn_of_unknown(found.unknown)
        return _steps(found)

    def run(self, on_progress: Progress) -> Figures:
        """Raises ShoalError if the table has none of the keys, or if others keep adding them."""
        began = time.perf_counter()
        table = Collection.open(self.table)
        summary = remove(table, self._wanted(), on_progress, _beside(table))
        _warn_of_unknown(summary.unknown)
        _warn_of_the_rest(summary)
        return _figures(table, summary, time.perf_counter() - began)

    def _wanted(self) -> list[Wanted]:
        given = [(self.shard, key) for key in self.keys]
        return given if self.file is None else given + read_targets(self.file, self.shard)


def _beside(table: Collection) -> list[Place]:
    """Files that show rows of the table: its report, and what a run says of its rejects; nobody else's files."""
    inside, folder = table.path / REPORT, table.path.parent
    if table.path.name != RUN_FOLDER:
        return [inside]
    run = _run_in(folder)
    if run is not None:
        return [inside, run.report, run.metrics, run.path / STATUS]  # a refusal in it may name a sample
    report = folder / REPORT
    return [inside, *(each for each in [report, *scratches(report)] if _is_report(each))]


def _run_in(folder: Place) -> RunFolder | None:
    try:
        return RunFolder(str(folder)) if (folder / MARKER).is_file() else None
    except ShoalError:  # the marker is somebody else's
        return None


def _is_report(file: Place) -> bool:
    """Whether shoal wrote it: its head says so."""
    if not file.is_file():
        return False
    with opened(file) as source:
        return GENERATOR in source.read(_HEAD_BYTES)


def _steps(found: Preview) -> list[Step]:
    steps = [
        Step(
            "take rows out",
            f"{found.images:,} images and {found.rejects:,} rejects of {found.shards:,} shards, in {found.files:,} "
            f"data files that are written again",
            State.TO_DO if found.files else State.DONE,
        )
    ]
    steps += [
        Step("cluster", f"{name}: generation {_numbers(ended)} ends, and a new one has the other rows")
        for name, ended in found.ending.items()
    ]
    if found.unfinished:
        steps.append(Step("continue", f"a removal of {found.unfinished:,} keys that was stopped", State.PARTLY))
    return [*steps, Step("delete", "data files, statistics in logs, checkpoints and reports that knew these rows")]


def _figures(table: Collection, summary: RemovalSummary, seconds: float) -> Figures:
    values: dict[str, Value] = {
        "images": summary.images,
        "rejects": summary.rejects,
        "unknown_keys": len(summary.unknown),
        "removed_before": summary.removed_before,
        "continued": summary.continued,
        "samples_version": table.samples.version,
        "deleted_files": summary.files,
        "table": str(table.path),
        "seconds": seconds,
    }
    names = sorted({*summary.ended, *summary.published})
    clusterings: list[Row] = [
        {
            "clustering": name,
            "ended_generations": _numbers(summary.ended.get(name, [])),
            "generation": summary.published.get(name),
        }
        for name in names
    ]
    return Figures("remove", values, {"clusterings": clusterings, **_tables(summary)})


def _tables(summary: RemovalSummary) -> Mapping[str, Sequence[Row]]:
    if not summary.shards and not summary.beside:
        return {}
    return {
        "files_deleted_beside_the_table": [{"file": file} for file in summary.beside],
        "shards_that_hold_them_still": [{"shard": shard, "images": rows} for shard, rows in summary.shards.items()],
        "what_stays": _STAYS,
    }


def _warn_of_unknown(unknown: Sequence[Wanted]) -> None:
    if unknown:
        some = ", ".join(repr(key) for _, key in unknown[:EXAMPLES])
        warnings.warn(f"{len(unknown):,} keys are not in the table, such as {some}.", stacklevel=2)


def _warn_of_the_rest(summary: RemovalSummary) -> None:
    for name, why in summary.lost.items():
        warnings.warn(
            f"Clustering {name} has no generation without these rows ({why}); `shoal cluster` makes one.", stacklevel=2
        )
    if summary.pending:
        warnings.warn(
            f"An extraction is at work, or was stopped, on {len(summary.pending)} shards that have such keys, first "
            f"{summary.pending[0]}; extract them to the end, then remove the keys again.",
            stacklevel=2,
        )
    if any(file.endswith(REPORT) for file in summary.beside):
        warnings.warn("The report showed these images and was deleted; `shoal report` makes a new one.", stacklevel=2)


def _numbers(generations: Sequence[int]) -> str:
    return ", ".join(map(str, generations)) or "none"
