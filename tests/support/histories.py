"""A clustering whose generations are told by hand: which image is in which cluster, and what happened."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa

from pipeline.tables.clusterings import Clustering, Generation, Publication
from pipeline.tables.collection import Collection
from pipeline.tables.samples import SampleFile, SamplesTable, TableProperties, embedding_array
from pipeline.tables.schema import ASSIGNMENTS, CLUSTERS, MOVES

Labels = Mapping[str, int]  # cluster by key
Event = tuple[str, tuple[int, ...], float | None]  # event, parents, log Hastings ratio


@dataclass
class Told:
    """A table in a folder. Shards are named by the first letter of their keys."""

    folder: Path
    name: str = "dpm"
    collection: Collection = field(init=False)
    samples: SamplesTable = field(init=False)
    labels: dict[int, Labels] = field(default_factory=dict)  # by generation
    kept: TemporaryDirectory[str] | None = None  # a folder that is to live as long

    def __post_init__(self) -> None:
        properties = TableProperties(
            dimension=1, backbone="none", backbone_digest="0" * 64, l2_normalised=False, preprocessing={}
        )
        self.collection = Collection.create(self.folder)
        self.samples = self.collection.create_samples(properties)

    def copied(self, folder: Path) -> Told:
        """The same table at another place."""
        shutil.copytree(str(self.folder), folder)
        return Told(folder, self.name, labels=dict(self.labels))

    @property
    def clustering(self) -> Clustering:
        return self.collection.clustering(self.name)

    def shard(self, keys: Iterable[str]) -> None:
        """Images arrive: one file of one shard."""
        self.samples.commit([self.samples.write(self._rows(list(keys)))])

    def shard_anew(self, keys: Iterable[str]) -> None:
        """The shard's file is written again with these keys only, as a removal does."""
        keys = list(keys)
        old = [file for file in self.samples.files() if file.shard == keys[0][0]]
        self.samples.replace(old, [self.samples.write(self._rows(keys))], {})

    def publish(
        self,
        labels: Labels,
        events: Mapping[int, Event] | None = None,
        *,
        parent: int | None = -1,
        decision: str = "refine",
        artifact: str = "d" * 64,
    ) -> Generation:
        """The next generation, by default a child of the newest; files whose labels are the parent's are shared.

        Clusters without an event were kept, or born. The labels must be of exactly the images there are.
        """
        clustering = self.clustering
        number = clustering.begin()
        parent = (number - 1 or None) if parent == -1 else parent
        old = {} if parent is None else self.labels[parent]
        files = self.samples.files()
        assert sorted(labels) == sorted(key for file in files for key in self._keys(file))
        changed = [f for f in files if any(labels[key] != old.get(key) for key in self._keys(f))]
        changed += [] if parent is None else self._unknown(clustering.generation(parent), files, changed)
        written = [clustering.write_assignments(self._assignments(file, labels), file) for file in changed]
        record = Publication(
            samples_version=self.samples.version,
            artifact=artifact,
            config_digest="c" * 64,
            parent=parent,
            decision=decision,
        )
        rows = self._clusters(number, labels, old, events or {})
        self.labels[number] = dict(labels)
        return clustering.publish(number, written, rows, MOVES.empty_table(), record, covering=files)

    def _unknown(
        self, parent: Generation, files: Iterable[SampleFile], changed: Iterable[SampleFile]
    ) -> list[SampleFile]:
        there = {file.extent for file in self.samples.files(version=parent.samples_version)}
        known = {file.extent for file in changed} | there
        return [file for file in files if file.extent not in known]

    def _keys(self, file: SampleFile) -> list[str]:
        keys: list[str] = self.samples.read(file, ["key"])["key"].to_pylist()
        return keys

    @staticmethod
    def _rows(keys: list[str]) -> pa.Table:
        x_ND = np.zeros((len(keys), 1), np.float32)
        return pa.table({"key": keys, "shard": [key[0] for key in keys], "embedding": embedding_array(x_ND)})

    def _assignments(self, file: SampleFile, labels: Labels) -> pa.Table:
        rows = [
            {"key": key, "shard": file.shard, "cluster": labels[key], "component": 0, "probability": 1.0, "score": 0.0}
            for key in self._keys(file)
        ]
        return pa.Table.from_pylist(rows, schema=ASSIGNMENTS)

    @staticmethod
    def _clusters(number: int, labels: Labels, old: Labels, events: Mapping[int, Event]) -> pa.Table:
        sizes = {cluster: list(labels.values()).count(cluster) for cluster in labels.values()}
        before = set(old.values())
        rows = []
        for cluster in sorted(sizes.keys() | before):
            quiet = ("kept", (cluster,), None) if cluster in before else ("born", (), None)
            event, parents, ratio = events.get(cluster, quiet if cluster in sizes else ("died", (cluster,), None))
            size = sizes.get(cluster, 0)
            row = {"generation": number, "cluster": cluster, "size": size, "parents": parents, "event": event}
            rows.append({**row, "log_hastings": ratio})
        return pa.Table.from_pylist(rows, schema=CLUSTERS)


@cache
def five_generations() -> Told:
    """To be read or copied. Ten images, then fourteen: 3 arrives, 4 splits from 0 and dies in 1, 2 dies in 1.

    1: a 000011  b 1122        sizes 0:4 1:4 2:2
    2: the same, c 0033        0:6 1:4 2:2 3:2
    3: a 004411                0:4 1:4 2:2 3:2 4:2
    4: a 001111                0:4 1:6 2:2 3:2
    5: b 1111                  0:4 1:8 3:2
    """
    folder = TemporaryDirectory()
    told = Told(Path(folder.name, "table"))
    told.kept = folder
    told.shard(f"a{i}" for i in range(6))
    told.shard(f"b{i}" for i in range(4))
    told.publish(_labels(a="000011", b="1122"), parent=None, decision="fit")
    told.shard(f"c{i}" for i in range(4))
    told.publish(_labels(a="000011", b="1122", c="0033"), decision="assign")
    events: dict[int, Event] = {0: ("split", (0,), 2.5), 4: ("split", (0,), 2.5)}
    told.publish(_labels(a="004411", b="1122", c="0033"), events)
    told.publish(_labels(a="001111", b="1122", c="0033"), {1: ("merged", (1, 4), -1.5)})
    told.publish(_labels(a="001111", b="1111", c="0033"), {1: ("merged", (1, 2), None)})
    return told


def _labels(**shards: str) -> dict[str, int]:
    return {f"{shard}{i}": int(digit) for shard, digits in shards.items() for i, digit in enumerate(digits)}
