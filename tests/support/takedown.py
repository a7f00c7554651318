"""A small table with two clusterings of several generations, and a search of every byte of it."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from deltalake import DeltaTable

from models.dpm.config import DPMConfig
from models.kmeans import KMeansConfig
from pipeline.cluster.assign import assign
from pipeline.cluster.cluster import cluster
from pipeline.cluster.config import ClusterConfig
from pipeline.cluster.fitted import read_labeller
from pipeline.cluster.published import Published
from pipeline.cluster.rows import row_hashes
from pipeline.tables.collection import Collection
from pipeline.tables.imports import import_files
from pipeline.tables.samples import embedding_matrix

CORNERS = 20 * np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [9, 9, 9]], np.float32)
LONE = 4  # a corner with one row, which is therefore a cluster's only one
CONFIGS = {"kmeans": KMeansConfig(clusters=5), "dpm": DPMConfig(initial_clusters=1)}


def write_file(folder: Path, name: str, rows: int, seed: int) -> Path:
    """Rows around four corners, one alone, one that is not finite, and one key twice."""
    rng = np.random.default_rng(seed)
    corner_N = rng.integers(0, 4, rows)
    corner_N[0] = LONE if name == "a" else 0
    x_ND = CORNERS[corner_N] + rng.standard_normal((rows, 3)).astype(np.float32)
    x_ND[1] = np.nan
    keys = [f"secret-{name}-{number:03d}-{rng.integers(2**40):010x}" for number in range(rows)]
    keys[3] = keys[2]
    path = folder / f"{name}.npz"
    np.savez(path, embedding=x_ND, label=np.array([f"label-of-{key}" for key in keys]), key=np.array(keys))
    return path


def build(folder: Path) -> Path:
    """In the folder of a run: files a and b clustered twice each, then file c labelled."""
    table = folder / "run" / "table"
    import_files([write_file(folder, name, 60, seed) for seed, name in enumerate("ab")], table)
    collection = Collection.open(table)
    for config in CONFIGS.values():
        cluster(collection, ClusterConfig(algorithm=config))
    import_files([write_file(folder, "c", 40, 2)], table)
    for name in CONFIGS:
        assign(collection, name=name)
    return table


@dataclass(frozen=True)
class Rows:
    """All rows of a table, by key; keys are unique in it, but for rejects."""

    x: dict[str, bytes]
    row_hash: dict[str, int]
    shard: dict[str, str]

    @classmethod
    def of(cls, table: Collection) -> Rows:
        found = cls({}, {}, {})
        for file in table.samples.files():
            rows = table.samples.read(file)
            keys = rows["key"].to_pylist()
            found.x.update(zip(keys, (x_D.tobytes() for x_D in embedding_matrix(rows)), strict=True))
            found.row_hash.update(zip(keys, row_hashes(rows).tolist(), strict=True))
            found.shard.update(zip(keys, rows["shard"].to_pylist(), strict=True))
        return found


def traces(folder: Path, rows: Rows, keys: list[str]) -> list[str]:
    """Every place below a folder that tells of a key: its text, its embedding, its hash."""
    needles = {key: [key.encode(), *_numbers(rows, key)] for key in keys}
    found = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        content = path.read_bytes()
        if ".parquet" in path.name:
            content += _decoded(path)
        found += [f"{path}: {key}" for key, each in needles.items() if any(needle in content for needle in each)]
    return found


def _numbers(rows: Rows, key: str) -> Iterator[bytes]:
    if key in rows.x:
        yield rows.x[key]
        yield np.frombuffer(rows.x[key], np.float32).astype(np.float64).tobytes()
        yield struct.pack("<q", rows.row_hash[key])


def _decoded(path: Path) -> bytes:
    """All text, all floats, and the statistics of every row group."""
    file = pq.ParquetFile(path)
    text = [json.dumps(_plain(file.read().to_pylist()), default=str)]
    for group in range(file.metadata.num_row_groups):
        for column in range(file.metadata.num_columns):
            text.append(str(file.metadata.row_group(group).column(column).statistics))
    floats = b""
    if "embedding" in file.schema_arrow.names:
        column = file.read(["embedding"])["embedding"].drop_null()
        floats = b"".join(np.array(each, np.float32).tobytes() for each in column.to_pylist())
    return "\n".join(text).encode() + floats


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def assigned(table: Collection) -> dict[str, dict[int, dict[str, int]]]:
    """The cluster of every row of every generation of every clustering, each of which must be whole."""
    found: dict[str, dict[int, dict[str, int]]] = {}
    for name in table.clusterings():
        clustering = table.clustering(name)
        for generation in clustering.generations():
            labeller = read_labeller(table.artifacts, generation.artifact)
            rows = Published(table, clustering, generation, labeller).assigned()
            sizes = {row["cluster"]: row["size"] for row in clustering.clusters(generation).to_pylist()}
            labels = dict(zip(rows["key"].to_pylist(), rows["cluster"].to_pylist(), strict=True))
            assert sizes == {each: list(labels.values()).count(each) for each in set(labels.values())}
            found.setdefault(name, {})[generation.generation] = labels
    return found


def checkpoint_logs(table: Collection) -> None:
    """Checkpoints of every Delta table, which repeat the statistics of the log."""
    for log in Path(str(table.path)).rglob("_delta_log"):
        DeltaTable(str(log.parent)).create_checkpoint()


def medoids(table: Collection, name: str) -> list[str]:
    clustering = table.clustering(name)
    latest = clustering.latest()
    assert latest is not None
    return clustering.clusters(latest)["medoid_key"].to_pylist()
