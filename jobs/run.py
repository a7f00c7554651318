"""`shoal run INPUT --output DIR`: the single commands one after the other, each of which skips what is done."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from jobs.assign import Assign
from jobs.backbone import trained
from jobs.baseline import NAME as BASELINE
from jobs.baseline import Baseline
from jobs.config import RunConfig, as_yaml
from jobs.estimate.facts import Facts
from jobs.estimate.plan import estimated
from jobs.evaluate import Evaluate
from jobs.extract import Extract, require_embeddings
from jobs.figures import Figures, Row, Value, write_json
from jobs.folder import RunFolder, on_disk
from jobs.part import Part, PartOfFolder, shards_of_part
from jobs.recluster import Follow
from jobs.reporting import Report
from jobs.shards import Shards, count_shards
from jobs.steps import Job, Step
from jobs.train import Train
from models.backbones import require_backbone
from models.errors import ShoalError
from pipeline.ingest.shards import list_shards
from pipeline.progress import Progress
from pipeline.tables.collection import Collection
from pipeline.tables.place import Place, place, write_whole
from pipeline.tables.schema import TableError
from pipeline.tables.storage import is_object_store, is_url
from pipeline.train.learn import outcome
from pipeline.train.learn_folder import LearnFolder

_COUNTS = ("images", "rejects", "reject_fraction", "shards", "dimension", "backbone")
_LEARNED = ("epochs", "steps", "loss", "loss_of_guessing", "prototypes_used", "skipped", "backbone")
_WHY = 100  # characters of why something was not looked at
_SCORES = ("clusters", "nmi", "ari", "acc", "silhouette")


class Packing(Job, Protocol):
    """The job that makes the shards of a run."""

    def fingerprint(self) -> str:
        """Names what is packed and how: other shards, other fingerprint."""
        ...

    def facts(self) -> Facts:
        """How many images are packed, and how large they are."""
        ...


@dataclass(frozen=True)
class Run:
    """The whole job. `pack` makes the shards of `inputs`; None where they are there before."""

    output: str
    config: RunConfig
    pack: Packing | None
    inputs: tuple[str, ...]

    def plan(self) -> list[Step]:
        """The plans of all steps; of those whose input is not there yet, only that they come.

        Where the settings say how many images there are, neither they nor the output need be in reach.
        """
        why = self._out_of_reach()
        return self.unseen(why) if why is not None else estimated(self._plan(), self.config, self._facts())

    def unseen(self, why: str) -> list[Step]:
        """All steps, as far as settings alone tell, where inputs or output cannot be looked at."""
        why = why.rstrip(".") if len(why) <= _WHY else f"{why[: _WHY - 3]}..."
        first = ["shards"] * (self.pack is not None) + ["train"] * self.config.learn
        names = [*first, "extract", *self._later("")]
        steps = [
            Step(names[0], f"not looked at: {why}"),
            *(Step(name, "not looked at, likewise") for name in names[1:]),
        ]
        return estimated(steps, self.config, self._facts())

    def run(self, on_progress: Progress) -> Figures:
        """Raises ShoalError, and touches nothing, if the output belongs to something else, or to other images."""
        require_backbone(self.config.backbone.name)  # before hours of packing, not after
        folder = self._folder()
        folder.make()
        if self.pack is not None:
            folder.record_images(self.pack.fingerprint())
        done: dict[str, Figures] = {}
        seconds: dict[str, float] = {}
        for name, job in self._jobs(folder):
            began = time.perf_counter()
            done[name] = job.run(on_progress)
            seconds[name] = time.perf_counter() - began
            if name == "extract":  # settings of another backbone are refused by now, and nothing says they were used
                write_whole(folder.config, as_yaml(self.config).encode())
                require_embeddings(done[name])
        figures = _summary(done, seconds, folder)
        write_json(figures, folder.metrics)
        return figures

    def _plan(self) -> list[Step]:
        folder = self._folder()
        steps = self.pack.plan() if self.pack else []
        packed = self.pack is None or count_shards(folder.shards) > 0
        with_what = self.config.backbone.name
        if self.config.learn:
            train = Step("train", f"these shards: {with_what} by {self.config.train.objective.kind}")
            steps += self._train(folder).plan() if packed else [train]
        extract = Step("extract", f"these shards with {with_what} into {folder.table}")
        steps += Extract(self.inputs, str(folder.table), self.config).plan() if packed else [extract]
        later = self._later(str(folder.table))
        if not folder.has_embeddings():
            return steps + [Step(name, f"of {folder.table}") for name in later]
        return steps + [step for name, job in later.items() for step in _plan(name, job, folder)]

    def _facts(self) -> Facts | None:
        """What there is to do; None where that is not known before it is done."""
        known = self.config.collection
        if self.pack is not None:
            return self.pack.facts()
        return None if known.images is None else Facts(known.images, known.image_bytes)

    def _out_of_reach(self) -> str | None:
        """Why inputs or output cannot be looked at from here, where that need not be; else None."""
        if self.config.collection.images is None:
            return None
        try:
            if self.pack is None:
                list_shards(self.inputs)
            else:
                on_disk(self.output)
            if is_object_store(self.output):
                place(self.output).exists()
        except (ShoalError, TableError, OSError) as error:
            return str(error)
        return None

    def _require_unembedded(self, folder: RunFolder) -> None:
        """Raise ShoalError if the table has embeddings of another backbone than the one that is to be learned."""
        if self.config.learn and folder.has_embeddings() and LearnFolder(_learned(folder)).summary() is None:
            raise ShoalError(
                f"{folder.table} has embeddings already, and not of a backbone that was learned in {_learned(folder)}; "
                "give a new --output, or --set learn=false."
            )

    def _require_not_packed(self, folder: RunFolder) -> None:
        """Raise ShoalError if the table is of copies of images: shards from elsewhere would give them once more."""
        if not (folder.packed.exists() and folder.has_embeddings()):
            return
        other = [shard for shard in list_shards(self.inputs) if not _is_in(shard, folder.path / "shards")]
        if other:
            raise ShoalError(
                f"{folder.path} was made of packed copies of images, to which {other[0]} would be added; give a new "
                "--output."
            )

    def _require_learned(self, folder: RunFolder) -> None:
        """Raise ShoalError if a backbone was learned here from other shards than these."""
        config = self.config
        if not config.learn:
            return
        learned = LearnFolder(_learned(folder))
        then = learned.settings.get("input")
        if not then or learned.summary() is None:  # of one that is not over, it says so itself
            return
        now = outcome(list_shards(self.inputs), config.train, config.backbone, config.decode)["input"]
        if now != then:
            raise ShoalError(
                f"The backbone in {learned.path} was learned from {then['shards']:,} shards, and these are "
                f"{now['shards']:,}, not the same ones. Embed them by what was learned with --backbone {learned.path}, "
                "or give a new --output."
            )

    def _folder(self) -> RunFolder:
        """Raises ShoalError if what is there is of other images, or of another backbone."""
        if self.pack is not None:
            on_disk(self.output)  # before anything is asked of an object store
        folder = RunFolder(self.output)
        if self.pack is not None:
            folder.require_same_images(self.pack.fingerprint(), LearnFolder(_learned(folder)).is_bound)
        else:
            self._require_not_packed(folder)
            self._require_learned(folder)
        self._require_unembedded(folder)
        return folder

    def _jobs(self, folder: RunFolder) -> Iterator[tuple[str, Job]]:
        """All steps, each made when those before it are done: what is learned is what embeds."""
        if self.pack is not None:
            yield "shards", self.pack
        config = self.config
        if config.learn:
            yield "train", self._train(folder)
            weights = {"weights": trained(str(_learned(folder)))}
            config = config.model_copy(update={"backbone": config.backbone.model_copy(update=weights)})
        table = str(folder.table)
        yield "extract", Extract(self.inputs, table, config)
        yield from self._later(table).items()

    def _train(self, folder: RunFolder) -> Train:
        return Train(self.inputs, str(_learned(folder)), self.config)

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


@dataclass(frozen=True)
class RunOfPart:
    """The run of a part of shards, which are listed when it is planned or run, and always the same ones."""

    source: str
    output: str
    config: RunConfig

    @cached_property
    def run_of_it(self) -> Run:
        """Of whole shards, or of copies. Raises ShoalError where the shards cannot be listed."""
        chosen = shards_of_part(list_shards([self.source]), self.config)
        if chosen is not None:
            return Run(self.output, self.config, None, tuple(chosen))
        shards = str(place(self.output).absolute() / "shards")
        return Run(self.output, self.config, Part((self.source,), shards, self.config), (shards,))

    def plan(self) -> list[Step]:
        """As of `Run`."""
        try:
            whole = self.run_of_it
        except (ShoalError, TableError, OSError) as error:
            if self.config.collection.images is None:
                raise
            return Run(self.output, self.config, None, (self.source,)).unseen(str(error))
        return whole.plan()

    def run(self, on_progress: Progress) -> Figures:
        """As of `Run`."""
        return self.run_of_it.run(on_progress)


def whole_job(source: str, output: str, config: RunConfig) -> Run | RunOfPart:
    """The run of a folder of images, a folder of shards, a shard, or shard URLs with brace expansion.

    Of a part of the images (`collection.part`) always the same ones.
    """
    folder = Path(source).expanduser()
    if not count_shards(folder) and folder.is_dir():
        shards = str(on_disk(place(output).absolute()) / "shards")
        kind = Shards if config.collection.part == 1 else PartOfFolder
        return Run(output, config, kind(source, shards, config), (shards,))
    if config.collection.part == 1:
        return Run(output, config, None, (source,))
    return RunOfPart(source, output, config)


def _is_in(shard: str, folder: Place) -> bool:
    """Whether a shard lies there, in whatever way both are spelled."""
    if is_url(shard):
        return is_object_store(shard) and place(shard).parent == folder
    return isinstance(folder, Path) and Path(shard).resolve().parent == folder.resolve()


def _learned(folder: RunFolder) -> Place:
    """Where the backbone is learned."""
    return folder.path / "train"


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
    learned = [{name: done["train"].values[name] for name in _LEARNED}] if "train" in done else []
    tables = {**extracted.tables, **({"learned": learned} if learned else {}), "scores": scores}
    tables |= {"seconds_by_step": steps}
    return Figures("run", values, tables, extracted.shortfall)
