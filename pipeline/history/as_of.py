"""Label what came later as an earlier generation would have: a clustering of its own beside the one that went on."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta

from models.errors import ShoalError
from pipeline.cluster.assign import AssignSummary, assign
from pipeline.history.lineage import published
from pipeline.history.rollback import as_kept
from pipeline.progress import Progress, silent
from pipeline.tables.clusterings import Clustering, Generation, Publication
from pipeline.tables.collection import Collection
from pipeline.tables.delta import WrittenFile
from pipeline.tables.schema import MOVES, TableError

_LONGEST = 64  # characters of a number or a time
FORMS = "a generation's number, a date (2026-11-30, its end in UTC) or a time (2026-11-30T18:00+01:00; UTC if not said)"


def assign_as_of(table: Collection, name: str, when: int | datetime, on_progress: Progress = silent) -> AssignSummary:
    """Publish, as a clustering named NAME-as-of-G, the labels of generation G and its model's for all rows since.

    G is the generation of that number, or the newest that is not later than a time. Rows that it held keep their
    labels: they are copied, not read again. Killed at any point, the same call continues; called again, it labels what
    came since. Raises ShoalError if there was no such generation, or that name is taken by something else.
    """
    clustering = table.clustering(name)
    generation = found(clustering, when)
    target = own_clustering(table, name, generation)
    if target.latest() is None:
        _copy(table, clustering, generation, target, on_progress)
    return assign(table, name=target.name, on_progress=on_progress)


def found(clustering: Clustering, when: int | datetime) -> Generation:
    """The generation that is meant. Raises ShoalError if there is none, or it may have been one that has ended."""
    if isinstance(when, int):
        try:
            return published(clustering, when)
        except ShoalError as error:
            raise ShoalError(f"{error} --as-of takes {FORMS}.") from error
    there = clustering.generations()
    until = [each for each in there if each.created_at <= when]
    if not until:
        first = (
            f"the first it has is {there[0].generation}, of {_second(there[0].created_at)}" if there else "it has none"
        )
        raise ShoalError(f"Clustering {clustering.name} has no generation of {_second(when)} or before; {first}.")
    chosen, later = until[-1], there[len(until) :]
    if later and later[0].generation > chosen.generation + 1:
        raise ShoalError(
            f"Generation {later[0].generation - 1} of clustering {clustering.name} has ended, and may have been the "
            f"newest at {_second(when)}; give the number of one that is left, such as {chosen.generation}."
        )
    return chosen


def own_clustering(table: Collection, name: str, generation: Generation) -> Clustering:
    """The clustering that continues a generation; it may have none yet. Raises ShoalError if it is something else."""
    target = table.clustering(f"{name}-as-of-{generation.generation}")
    latest = target.latest()
    if latest is not None and latest.artifact != generation.artifact:
        raise ShoalError(
            f"There is a clustering named {target.name} whose model is not that of generation {generation.generation} "
            f"of {name}; label with --artifact and another --name instead."
        )
    return target


def moment(text: str) -> int | datetime:
    """What `--as-of` says: a number, or a time in UTC. Raises ShoalError for anything else."""
    if len(text) > _LONGEST:
        raise ShoalError(f"--as-of has {len(text):,} characters and is no date; give {FORMS}.")
    if text.isascii() and text.isdigit():
        return int(text)
    try:
        if len(text) <= len("2026-11-30"):
            return datetime.combine(date.fromisoformat(text) + timedelta(days=1), time.min, UTC) - _TICK
        when = datetime.fromisoformat(text)
        return when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ShoalError(f"--as-of {text!r} is no date ({error}); give {FORMS}.") from error


_TICK = timedelta(microseconds=1)  # the resolution of `created_at`


def _copy(
    table: Collection, source: Clustering, generation: Generation, target: Clustering, on_progress: Progress
) -> None:
    """The same generation as the first of another clustering. Memory is one data file.

    Raises ShoalError, and publishes nothing that stays, if the generation ends meanwhile.
    """
    number = target.begin()
    written: list[WrittenFile] = []
    try:
        files = table.samples.files(version=generation.samples_version)
        for done, file in enumerate(files):
            written.append(target.write_assignments(source.read_assignments(generation, file), file))
            on_progress("copy assignments", done + 1, len(files))
        clusters = as_kept(source.clusters(generation), number)
        _require(source, generation)
    except (ShoalError, TableError) as error:
        for each in written:
            with suppress(FileNotFoundError):  # a removal that is under way deletes such files, too
                target.discard_assignments([each])
        _require(source, generation, error)
        raise
    record = Publication(
        samples_version=generation.samples_version,
        artifact=generation.artifact,
        config_digest=generation.config_digest,
        decision=f"as of generation {generation.generation} of {source.name}",
        evidence=json.dumps({"why": f"continues generation {generation.generation} of {source.name}"}),
        statistics=generation.statistics,
    )
    target.publish(number, written, clusters, MOVES.empty_table(), record)
    try:
        _require(source, generation)
    except ShoalError:  # what looked for models that nobody needs may have done so before that was published
        target.end([number])
        raise


def _require(source: Clustering, generation: Generation, cause: Exception | None = None) -> None:
    """Raise ShoalError if the generation is no longer there."""
    if generation.generation not in {each.generation for each in source.generations()}:
        raise ShoalError(
            f"Generation {generation.generation} of clustering {source.name} has ended meanwhile: retention or a "
            "removal took its rows. Nothing was labelled; `shoal history` tells which generations are left."
        ) from cause


def _second(when: datetime) -> str:
    return f"{when.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
