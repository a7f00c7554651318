"""`shoal run INPUT --output DIR`: the single commands one after the other, each of which skips what is done."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from jobs.assign import Assign
from jobs.baseline import NAME as BASELINE
from jobs.baseline import Baseline
from jobs.config import RunConfig, as_yaml
from jobs.evaluate import Evaluate
from jobs.extract import Extract, require_embeddings
from jobs.figures import Figures, Row, Value, write_json
from jobs.folder import RunFolder
from jobs.recluster import Follow
from jobs.reporting import Report
from jobs.shards import Shards, count_shards
from jobs.steps import Job, Step
from models.backbones import require_backbone
from pipeline.progress import Progress
from pipeline.tables.collection import Collection
from pipeline.tables.place import write_whole

_COUNTS = ("images", "rejects", "reject_fraction", "shards", "dimension", "backbone")
_SCORES = ("clusters", "nmi", "ari", "acc", "silhouette")


class Packing(Job, Protocol):
    """The job that makes the shards of a run."""

    def fingerprint(self) -> str:
        """Names what is packed and how: other shards, other fingerprint."""
        ...


@dataclass(frozen=True)
class Run:
    """The whole job. `pack` makes the shards of `inputs`; None where they are there before."""

    output: str
    config: RunConfig
    pack: Packing | None
    inputs: tuple[str, ...]

    def plan(self) -> list[Step]:
        """The plans of all steps; of those whose input is not there yet, only that they come."""
        folder = self._folder()
        steps = self.pack.plan() if self.pack else []
        if self.pack is None or count_shards(folder.shards):
            steps += Extract(self.inputs, str(folder.table), self.config).plan()
        else:
            steps += [Step("extract", f"these shards with {self.config.backbone.name} into {folder.table}")]
        later = self._later(str(folder.table))
        if not folder.has_embeddings():
            return steps + [Step(name, f"of {folder.table}") for name in later]
        return steps + [step for name, job in later.items() for step in _plan(name, job, folder)]

    def run(self, on_progress: Progress) -> Figures:
        """Raises ShoalError, and touches nothing, if the output belongs to something else, or to other images."""
        require_backbone(self.config.backbone.name)  # before hours of packing, not after
        folder = self._folder()
        folder.make()
        if self.pack is not None:
            folder.record_images(self.pack.fingerprint())
        done: dict[str, Figures] = {}
        seconds: dict[str, float] = {}
        for name, job in self._jobs(folder).items():
            began = time.perf_counter()
            done[name] = job.run(on_progress)
            seconds[name] = time.perf_counter() - began
            if name == "extract":  # settings of another backbone are refused by now, and nothing says they were used
                write_whole(folder.config, as_yaml(self.config).encode())
                require_embeddings(done[name])
        figures = _summary(done, seconds, folder)
        write_json(figures, folder.metrics)
        return figures

    def _folder(self) -> RunFolder:
        folder = RunFolder(self.output)
        if self.pack is not None:
            folder.require_same_images(self.pack.fingerprint())
        return folder

    def _jobs(self, folder: RunFolder) -> dict[str, Job]:
        first: dict[str, Job] = {} if self.pack is None else {"shards": self.pack}
        table = str(folder.table)
        return {**first, "extract": Extract(self.inputs, table, self.config), **self._later(table)}

    def _later(self, table: str) -> dict[str, Job]:
        """The steps that work on the table."""
        jobs: dict[str, Job] = {"cluster": Follow(table, self.config)}
        if self.config.baseline and self.config.cluster.algorithm.kind != BASELINE:
            jobs["baseline"] = Baseline(table, self.config)
        name = self.config.cluster.algorithm.kind
        return jobs | {
            "assign": Assign(table, None, name, self.config),
            "evaluate": Evaluate(table, None, self.config),
            "report": Report(table, None, name, self.config),
        }


def whole_job(source: str, output: str, config: RunConfig) -> Run:
    """The run of a folder of images, a folder of shards, a shard, or shard URLs with brace expansion."""
    folder = Path(source).expanduser()
    if count_shards(folder) or not folder.is_dir():
        return Run(output, config, None, (source,))
    shards = str(RunFolder(output).shards)
    return Run(output, config, Shards(source, shards, config), (shards,))


def _plan(name: str, job: Job, folder: RunFolder) -> list[Step]:
    """Plans that read clusterings wait until there is one."""
    if name in ("assign", "evaluate", "report") and not Collection.open(folder.table).clusterings():
        return [Step(name, f"of {folder.table}")]
    return job.plan()


def _summary(done: Mapping[str, Figures], seconds: Mapping[str, float], folder: RunFolder) -> Figures:
    """What a run came to: counts, the scores of each clustering, and where the time went."""
    extracted = done["extract"]
    scores: list[Row] = [
        {"clustering": row["name"], **{name: row[name] for name in _SCORES if name in row}}
        for row in done["evaluate"].tables["scores"]
    ]
    steps: list[Row] = [{"step": step, "seconds": taken} for step, taken in seconds.items()]
    values: dict[str, Value] = {**{name: extracted.values[name] for name in _COUNTS}, **scores[0]}
    values |= {"seconds": sum(seconds.values()), "table": str(folder.table), "report": str(folder.report)}
    tables = {**extracted.tables, "scores": scores, "seconds_by_step": steps}
    return Figures("run", values, tables, extracted.shortfall)
