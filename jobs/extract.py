"""`shoal extract INPUT... --output TABLE`: shards into a table of embeddings."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from jobs.config import RunConfig
from jobs.context import local_ray
from jobs.figures import Figures, Row
from jobs.rejects import reject_tables, reject_values, shortfall
from jobs.room import bundles
from jobs.steps import State, Step
from models.errors import ShoalError
from pipeline.extract.extract import Extraction
from pipeline.extract.summary import ExtractSummary
from pipeline.ingest.shards import list_shards
from pipeline.progress import Progress
from pipeline.tables.collection import Collection
from pipeline.tables.schema import OK, REJECTED

_STAGES = {
    "read": "stored bytes to members of the tar, checksum included",
    "decode": "images to pixels of the backbone's size, summed over threads",
    "queue": "the backbone waiting for pixels",
    "forward": "pixels to embeddings",
    "write": "rows to Parquet files",
}


@dataclass(frozen=True)
class Extract:
    """Embed the images of shards that are not in the table yet."""

    inputs: tuple[str, ...]
    table: str
    config: RunConfig
    profile: bool = False  # also show where the time went

    def plan(self) -> list[Step]:
        """Counts the shards, and those of them that are in the table."""
        shards = list_shards(self.inputs)
        done = len(_done(self.table) & set(shards))
        state = State.TO_DO if not done else State.DONE if done == len(shards) else State.PARTLY
        what = f"{len(shards):,} shards with {self.config.backbone.name} into {self.table} ({done:,} are in it)"
        return [Step("extract", what, state)]

    def run(self, on_progress: Progress) -> Figures:
        """Starts a Ray only if a shard is left. Raises ShoalError if there is no embedding afterwards."""
        shards = list_shards(self.inputs)
        collection = Collection.create(self.table)
        settings = self.config
        extraction = Extraction(shards, collection, settings.backbone, settings.extract, settings.decode, on_progress)
        _say_compressed(extraction.todo.shards)
        needed, room = bool(extraction.todo.shards), room_of(settings, len(extraction.todo.shards))
        workers = "pipeline.extract.workers"
        with local_ray(settings.ray, needed=needed, preload=workers, room=room, on_progress=on_progress):
            summary = extraction.run()
        return self._figures(collection, summary)

    def _figures(self, table: Collection, summary: ExtractSummary) -> Figures:
        samples = table.samples
        images, rejects = samples.count(OK), samples.count(REJECTED)
        values = {
            **reject_values(images, rejects),
            "new_images": summary.images,
            "shards": summary.shards_done + summary.shards_skipped,
            "new_shards": summary.shards_done,
            "changed_shards": len(summary.shards_changed),
            "failed_shards": len(summary.shards_failed),
            "dimension": samples.properties.dimension,
            "backbone": samples.properties.backbone,
            "table": str(table.path),
            "images_per_second": summary.images_per_second,
            "startup_seconds": summary.startup_seconds,
            "seconds": summary.seconds,
        }
        changed: list[Row] = [{"shard": shard} for shard in summary.shards_changed]
        failed: list[Row] = [{"shard": shard, "why": why} for shard, why in summary.shards_failed.items()]
        tables = {**reject_tables(table), "changed_since_they_were_read": changed, "could_not_be_read_now": failed}
        if self.profile:
            tables["seconds_by_stage"] = _profile(summary)
        return Figures("extract", values, tables, self._shortfall(images, rejects, summary))

    def _shortfall(self, images: int, rejects: int, summary: ExtractSummary) -> str:
        if summary.shards_failed:
            shard, why = next(iter(summary.shards_failed.items()))
            return (
                f"{len(summary.shards_failed)} shards could not be read now, first {shard} ({why}); "
                "the same command tries them again."
            )
        if summary.shards_changed:
            return (
                f"{len(summary.shards_changed)} shards changed since they were read, first "
                f"{summary.shards_changed[0]}; the table has what they held then: extract them into a new table."
            )
        return shortfall(images, rejects, self.config.max_reject_fraction)


def room_of(config: RunConfig, shards: int) -> list[dict[str, float]]:
    """What extraction wants of a cluster at once: its workers, where the settings say how many; else what is there."""
    extract, machines = config.extract, config.deploy.gpu
    gpus = extract.gpus_per_actor
    if gpus is None:
        gpus = float(machines.limit * machines.gpus > 0)
    return bundles(min(extract.actors or 0, shards), 1, gpus)


def require_embeddings(figures: Figures) -> None:
    """Raise ShoalError if nothing came out, for there is nothing to cluster then."""
    if figures.values["images"]:
        return
    reasons = ", ".join(f"{row['samples']} {row['reason']}" for row in figures.tables.get("rejects_by_reason", ()))
    raise ShoalError(
        f"No image could be embedded: all {figures.values['rejects']} samples were rejected ({reasons}); "
        f"`shoal extract` names the first of them."
    )


def _done(table: str) -> set[str]:
    """Shards in the table; none where there is no table yet. Raises TableError where something else is."""
    collection = Collection.find(table)
    return collection.samples.done_shards() if collection is not None and collection.has_samples() else set()


def _profile(summary: ExtractSummary) -> list[Row]:
    """Where the workers' time went. Reading and decoding happen beside the forward pass, which waits in the queue."""
    return [
        {
            "stage": stage,
            "what": _STAGES[stage],
            "seconds": seconds,
            "images_per_second_of_it": summary.images / seconds if seconds else None,
        }
        for stage, seconds in summary.stage_seconds.items()
    ]


def _say_compressed(shards: Sequence[str]) -> None:
    compressed = [shard for shard in shards if shard.lower().endswith((".gz", ".tgz"))]
    if compressed:
        warnings.warn(
            f"{len(compressed)} of {len(shards)} shards are compressed: to show one of their images, a report reads "
            "the shard up to it. Uncompressed tars spare that.",
            stacklevel=2,
        )
