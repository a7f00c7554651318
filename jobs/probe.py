"""`shoal probe INPUT... --backbone PATH_OR_NAME --output DIR`: what a backbone's features hold, beside what is free.

Free are the same network with random weights, and the pixels.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from jobs.cluster import Cluster, plan_of
from jobs.config import RunConfig
from jobs.context import local_ray
from jobs.extract import Extract, require_embeddings
from jobs.figures import Figures, Row, Value
from jobs.steps import State, Step
from models.backbones import Backbone, BackboneConfig
from models.clusterer import NOISE
from models.errors import ShoalError
from pipeline.cluster.published import published
from pipeline.evaluate.metrics import score_labels
from pipeline.evaluate.probe import ProbeScores, labelled_rows, probe
from pipeline.extract.backbone import open_backbone
from pipeline.ingest.shards import list_shards
from pipeline.progress import Progress
from pipeline.tables.collection import Collection
from pipeline.tables.place import Place, place

GIVEN, RANDOM, PIXELS = "backbone", "random weights", "pixels"
_COMPARED = {"knn": "weighted k-NN", "linear": "linear", "kmeans_nmi": "k-means NMI", "kmeans_acc": "k-means ACC"}


@dataclass(frozen=True)
class Probe:
    """Extract labelled train and test shards with three backbones, and probe what came out.

    The backbone is the configured one. Tables are kept in the output, in a folder for each backbone's digest: the same
    command, or that of another backbone, extracts and clusters what is missing. Without `test`, a fifth of the images
    is tested on the others.
    """

    inputs: tuple[str, ...]
    test: tuple[str, ...]
    output: str
    config: RunConfig

    def plan(self) -> list[Step]:
        """The plans of extraction and clustering for each backbone; scores are computed each time."""
        self._check_shards()
        steps = [step for job in self._extracts for step in job.plan()]
        steps += [side.clustering_plan() for side in self._sides]
        tested = f"{len(self.test)} test inputs" if self.test else "a fifth of them"
        return [*steps, Step("probe", f"weighted k-NN, linear probe and k-means of {self.output}, tested on {tested}")]

    def run(self, on_progress: Progress) -> Figures:
        """Raises ShoalError for images without labels, shards that are both train and test, and tables of others."""
        began = time.perf_counter()
        self._check_shards()
        extracted = self._extract(on_progress)
        scored = [side.scores(on_progress) for side in self._sides]
        rows, counts = [row for row, _ in scored], scored[0][1]
        values: dict[str, Value] = {
            "backbone": self._sides[0].loaded.name,
            "weights": self._sides[0].loaded.weights,
            "classes": counts.classes,
            "train_images": counts.train_rows,
            "test_images": counts.test_rows,
            "output": self.output,
            "seconds": time.perf_counter() - began,
        }
        shortfall = next((each.shortfall for each in extracted if each.shortfall), "")
        tables: dict[str, Sequence[Row]] = {"probes": rows, "conclusion": [{"in_a_sentence": conclusion(rows)}]}
        return Figures("probe", values, tables, shortfall)

    def _extract(self, on_progress: Progress) -> list[Figures]:
        needed = any(step.state != State.DONE for job in self._extracts for step in job.plan())
        done = []
        with local_ray(self.config.ray, needed=needed, preload="pipeline.extract.workers"):  # one for all of them
            for job in self._extracts:
                done.append(job.run(on_progress))
                require_embeddings(done[-1])
        return done

    def _check_shards(self) -> None:
        both = set(list_shards(self.inputs)) & set(list_shards(self.test)) if self.test else set[str]()
        if both:
            raise ShoalError(
                f"{len(both)} shards are both in INPUT and in --test, first {min(both)}; give test shards of their "
                "own, or leave --test out: a fifth of the images is then tested on the others."
            )
        for side in self._sides:
            side.check_tables()

    @property
    def _extracts(self) -> list[Extract]:
        return [job for side in self._sides for job in side.extracts.values()]

    @cached_property
    def _sides(self) -> list[_Side]:
        """The backbone first; what is the same as one before is left out."""
        given = open_backbone(self.config.backbone)
        pixels = BackboneConfig(name="pixels", size=given.pixels.size, grey=given.pixels.grey)
        settings = {GIVEN: given.config, RANDOM: given.config.model_copy(update={"weights": "random"}), PIXELS: pixels}
        sides: dict[str, _Side] = {}
        for name, config in settings.items():
            loaded = given if name == GIVEN else open_backbone(config)
            sides.setdefault(loaded.digest, _Side(name, loaded, self))
        return list(sides.values())


@dataclass(frozen=True)
class _Side:
    """One backbone of a probe, and where its tables are."""

    name: str
    loaded: Backbone
    job: Probe

    @property
    def extracts(self) -> dict[str, Extract]:
        """The extraction of train and, where they are given, of test shards."""
        config = self.job.config.model_copy(update={"backbone": self.loaded.config})
        inputs = {"train": self.job.inputs, "test": self.job.test}
        return {part: Extract(given, str(self._path(part)), config) for part, given in inputs.items() if given}

    def check_tables(self) -> None:
        """Raise ShoalError if a table has shards that are not to be probed now."""
        for part, job in self.extracts.items():
            table = self._table(part)
            others = table.samples.done_shards() - set(list_shards(job.inputs)) if table else set[str]()
            if others:
                raise ShoalError(
                    f"The table at {job.table} has {len(others)} shards that were not given now, first {min(others)}; "
                    "give the inputs that --output was begun with, or another --output."
                )

    def clustering_plan(self) -> Step:
        """Of the train table."""
        table = self._table("train")
        if table is None:
            return Step("cluster", f"of {self._path('train')}")
        return plan_of("cluster", table, None, self.job.config.cluster)

    def scores(self, on_progress: Progress) -> tuple[Row, ProbeScores]:
        """The line of this backbone, and what is probed."""
        settings, ceiling = self.job.config, self.job.config.cluster.memory_ceiling_bytes
        tables = {part: Collection.open(self._path(part)) for part in self.extracts}
        parts = {part: labelled_rows(table, ceiling, on_progress) for part, table in tables.items()}
        scores = probe(parts["train"], parts.get("test"), settings.evaluate.probe, on_progress)
        del parts  # clustering reads them again
        row: Row = {
            "features": self.name,
            "dimension": self.loaded.dim,
            **{name: getattr(scores, name) for name in _COMPARED},
            **self._found(tables["train"], on_progress),
            "linear_penalty": scores.strength,
        }
        return row, scores

    def _found(self, table: Collection, on_progress: Progress) -> Row:
        """Scores of what `shoal cluster`, as it is configured, finds."""
        kind = self.job.config.cluster.algorithm.kind
        Cluster(str(table.path), kind, self.job.config).run(on_progress)
        assigned = published(table, kind).assigned()
        cluster_N = assigned["cluster"].to_numpy()
        scores = score_labels(assigned["label"].to_pylist(), cluster_N)
        clusters = len(set(cluster_N.tolist()) - {NOISE})
        return {f"{kind}_clusters": clusters, f"{kind}_nmi": scores.nmi, f"{kind}_acc": scores.acc}

    def _table(self, part: str) -> Collection | None:
        """None while nothing is extracted."""
        found = Collection.find(self._path(part))
        return found if found is not None and found.has_samples() else None

    def _path(self, part: str) -> Place:
        folder = f"{self.loaded.name.replace('/', '-')}-{self.loaded.digest[:12]}"
        return place(self.job.output) / folder / part


def conclusion(rows: Sequence[Row]) -> str:
    """How far the first line is above the best of the others, in a sentence."""
    first, *others = rows
    if not others:
        return "These are pixels, which are all there is to compare with."
    gains = {
        words: _number(first, name) - max(_number(row, name) for row in others) for name, words in _COMPARED.items()
    }
    better = sum(gain > 0 for gain in gains.values())
    against = " and ".join(str(row["features"]) for row in others)
    figures = ", ".join(f"{words} {gain:+.3f}" for words, gain in gains.items())
    return f"Against {against}, the backbone is better in {better} of {len(gains)} probes: {figures}."


def _number(row: Row, name: str) -> float:
    return float(row[name] or 0)
