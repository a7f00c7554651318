"""What is in a collection, from its logs: the building blocks of `shoal show`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.tables.artifacts import ArtifactStore
from pipeline.tables.clusterings import Clustering
from pipeline.tables.collection import FORMAT, Collection
from pipeline.tables.place import Place, sizes
from pipeline.tables.samples import SamplesTable


def describe(path: str | Place) -> dict[str, Any]:
    """Everything worth knowing of the collection at `path`, as plain JSON-like values; no data file is opened.

    `samples` is None before anything was extracted or imported. O(data files), not rows.
    """
    collection = Collection.open(path)
    return {
        "path": str(collection.path),
        "format_version": FORMAT["version"],
        "samples": _samples(collection.samples) if collection.has_samples() else None,
        "shards": {"version": collection.shards.version, "rows": collection.shards.count()},
        "clusterings": {name: _clustering(collection.clustering(name)) for name in collection.clusterings()},
        "artifacts": _artifacts(collection.artifacts),
    }


def _samples(table: SamplesTable) -> Mapping[str, Any]:
    version = table.version
    files = table.files_by_status(version)
    every = [file for of_status in files.values() for file in of_status]
    return {
        "version": version,
        **table.properties.model_dump(mode="json"),
        "rows": {status: sum(file.rows for file in of_status) for status, of_status in files.items()},
        "files": len(every),
        "bytes": sum(file.bytes for file in every),
        "shards": len({file.shard for file in every}),
    }


def _clustering(clustering: Clustering) -> list[dict[str, Any]]:
    return [
        {**generation.model_dump(mode="json"), "rows": clustering.counts(generation)}
        for generation in clustering.generations()
    ]


def _artifacts(store: ArtifactStore) -> list[dict[str, Any]]:
    return [{"name": path.name, "bytes": sum(sizes(path).values())} for path in store.list()]
