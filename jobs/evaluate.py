"""`shoal evaluate TABLE`: the score of each clustering, against labels where the table has them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from jobs.cluster import choose
from jobs.config import RunConfig
from jobs.figures import Figures, Row
from jobs.report.data import ScoreRow
from jobs.steps import Step
from models.errors import ShoalError
from pipeline.evaluate.evaluate import Evaluation, evaluate
from pipeline.progress import Progress
from pipeline.tables.collection import Collection


@dataclass(frozen=True)
class Evaluate:
    """Score one clustering, or all of them."""

    table: str
    name: str | None
    config: RunConfig

    def plan(self) -> list[Step]:
        """Names the clusterings. Scores are computed each time: they are kept in figures and reports only."""
        table = Collection.open(self.table)
        names = self._names(table)
        return [Step("evaluate", f"the scores of {', '.join(names)}")]

    def run(self, on_progress: Progress) -> Figures:
        """Raises ShoalError if there is no such clustering."""
        began = time.perf_counter()
        table = Collection.open(self.table)
        evaluations = [evaluate(table, name, self.config.evaluate, on_progress) for name in self._names(table)]
        return figures_of(evaluations, time.perf_counter() - began)

    def _names(self, table: Collection) -> list[str]:
        """The one that was named; or all, with that of the configured algorithm in front."""
        if self.name is not None:
            return [choose(table, self.name, self.config)]
        names = table.clusterings()
        if not names:
            raise ShoalError(f"The table at {table.path} has no clustering; run `shoal cluster` to make one.")
        return sorted(names, key=lambda name: (name != self.config.cluster.algorithm.kind, name))


def figures_of(evaluations: Sequence[Evaluation], seconds: float) -> Figures:
    """Scores as figures, a row for each clustering; scores that none of them has are left out."""
    labels, geometry = evaluations[0].labels, evaluations[0].geometry
    rows = [asdict(ScoreRow.of(each.name, each.geometry, each.labels, each.objective)) for each in evaluations]
    known = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    scores: list[Row] = [{name: row[name] for name in known} for row in rows]
    values = {
        "rows": geometry.rows + geometry.noise,
        "labelled_rows": labels.rows if labels else 0,
        "silhouette_rows": geometry.sampled,
        "seconds": seconds,
    }
    return Figures("evaluate", values, {"scores": scores})
