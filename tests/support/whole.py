"""What a reader can see of a run, a table or a training folder: opened, read to the last byte, and comparable."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

from pipeline.cluster.fitted import read_labeller
from pipeline.cluster.published import Published
from pipeline.tables.artifacts import ArtifactStore, read_artifact
from pipeline.tables.clusterings import Clustering
from pipeline.tables.collection import MARKER, Collection
from pipeline.tables.schema import OK, REJECTED
from pipeline.train.metrics import LINES, read_lines

_LOGS = ("_delta_log", "events.out")  # whose files are appended to, or seen by their own readers only


def visible(folder: Path) -> dict[str, Any]:
    """Everything under `folder` that anybody would take for finished. Raises where any of it is not whole."""
    found: dict[str, Any] = {"shards": _shards(folder), "files": _documents(folder)}
    found["tables"] = {
        str(marker.parent.relative_to(folder)): _table(Collection.open(marker.parent))
        for marker in sorted(folder.rglob(MARKER))
    }
    for store in sorted(folder.rglob("artifacts")):
        for artifact in ArtifactStore(store).list():
            read_artifact(artifact)
    return found


def _shards(folder: Path) -> dict[str, str]:
    """Digests of the shards, each of which has all of its members and the end marker."""
    found = {}
    for path in sorted(folder.rglob("[!.]*.tar")):
        content = path.read_bytes()
        assert content.endswith(bytes(1024)), f"{path} has no end marker"
        with tarfile.open(path) as tar:
            assert tar.getmembers(), f"{path} is empty"
        found[str(path.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return found


def _documents(folder: Path) -> list[str]:
    """Names of reports, and of JSON that is no log; each of them whole."""
    found = []
    for path in sorted(folder.rglob("*.json")):
        if not any(part.startswith(_LOGS) for part in path.parts):
            json.loads(path.read_text())
    for path in sorted(folder.rglob("*.html")):
        assert path.read_text().rstrip().endswith("</html>"), f"{path} is half a report"
        found.append(str(path.relative_to(folder)))
    for path in sorted(folder.rglob(LINES)):
        read_lines(path.parent)
    return found


def _table(table: Collection) -> dict[str, Any]:
    if not table.has_samples():
        return {}
    samples = table.samples
    rows = {
        status: sorted(
            (Path(row["shard"]).name, row["key"], row["label"])
            for file in samples.files(status)
            for row in samples.read(file).to_pylist()
        )
        for status in (OK, REJECTED)
    }
    assert len(rows[OK]) == len(set(rows[OK])) == samples.count(OK)
    return rows | {name: _clustering(table, table.clustering(name)) for name in table.clusterings()}


def _clustering(table: Collection, clustering: Clustering) -> dict[str, Any]:
    """Whether each generation resolves; of the newest the cluster of every row."""
    labels: dict[str, int] = {}
    for generation in clustering.generations():
        labeller = read_labeller(table.artifacts, generation.artifact)
        rows = Published(table, clustering, generation, labeller).assigned()
        clusters = clustering.clusters(generation)
        clustering.moves(generation)
        assert rows.num_rows == table.samples.count(OK, generation.samples_version)
        assert set(rows["cluster"].to_pylist()) <= {-1, *clusters["cluster"].to_pylist()}
        labels = dict(zip(rows["key"].to_pylist(), rows["cluster"].to_pylist(), strict=True))
    return {"labels": labels, "generations": len(clustering.generations())}
