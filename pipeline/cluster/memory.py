"""What a clustering remembers of its rows: statistics, a uniform sample, and how the arrivals fit.

An artifact of kind `statistics` beside the model's. One that only adds rows names the one before as its base and holds
nothing but the difference, so that folding in a few rows neither reads nor writes what all the others left behind.

Shapes: N rows, D dimensions, M sampled rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from models.clusterer import Clusterer, Stats
from models.deepdpm.model import DeepDPM
from models.dpm.mixture import DPM, DPMStats
from models.drift import Arrivals, Reference, optimism
from models.gmm import GMM
from models.increment import folded
from models.moments import packed, unpacked
from pipeline.cluster.tensors import to_numpy, to_torch
from pipeline.tables.artifacts import Artifact, ArtifactStore

KIND = "statistics"
SAMPLE_ROWS = 16_384
FOLD_AFTER = 8  # statistics that are kept as differences before they are added up
NO_ROWS = torch.empty(0, dtype=torch.int64)
_STATS, _SAMPLE, _REFERENCE, _ARRIVALS = "stats.", "sample.", "reference.", "arrivals."


@dataclass(frozen=True)
class Sample:
    """The rows of smallest hash, ascending: uniform, whatever the order of rows."""

    x_MD: Tensor  # float32, as the model sees them
    row_M: Tensor  # int64

    @staticmethod
    def none(dim: int) -> Sample:
        """No rows yet."""
        return Sample(torch.empty(0, dim), torch.empty(0, dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.row_M)

    def __add__(self, other: Sample) -> Sample:
        row_M = torch.cat([self.row_M, other.row_M])
        index = torch.argsort(row_M, stable=True)[:SAMPLE_ROWS]
        return Sample(torch.cat([self.x_MD, other.x_MD])[index], row_M[index])

    def without(self, row_N: Tensor) -> Sample:
        """Those that are not among `row_N`."""
        kept = ~torch.isin(self.row_M, row_N)
        return Sample(self.x_MD[kept], self.row_M[kept])

    @property
    def below(self) -> int | None:
        """A row of a larger hash does not belong here; None while there is room for any."""
        return None if len(self) < SAMPLE_ROWS else int(self.row_M[-1])


@dataclass(frozen=True)
class Part:
    """What some rows leave behind."""

    stats: Stats
    sample: Sample
    arrivals: Arrivals
    rows: int
    gone_N: Tensor = NO_ROWS  # int64, hashes of rows that are no longer there


@dataclass(frozen=True)
class Memory:
    """What is remembered of all rows of a generation. `reference` and `arrivals` are at hand, the rest is read late."""

    store: ArtifactStore
    artifact: Artifact
    model: Clusterer
    reference: Reference
    arrivals: Arrivals  # since the model was made

    @property
    def digest(self) -> str:
        """Of the artifact."""
        return self.artifact.digest

    @property
    def rows(self) -> int:
        """That are counted, whatever they weigh."""
        return int(self.artifact.manifest["rows"])

    @property
    def rows_at_fit(self) -> int:
        """That the last full fit saw."""
        return int(self.artifact.manifest["rows_at_fit"])

    @property
    def depth(self) -> int:
        """Artifacts that `stats` reads before this one."""
        return int(self.artifact.manifest["depth"])

    @property
    def below(self) -> int | None:
        """As of Sample."""
        found = self.artifact.manifest["below"]
        return None if found is None else int(found)

    @property
    def made(self) -> int:
        """Version of the samples that the model was made on."""
        return int(self.artifact.manifest["made"])

    @property
    def folds(self) -> Sequence[tuple[int, float]]:
        """Version of the samples before each fold that let older rows fade, and the factor; oldest first."""
        return [(int(version), float(decay)) for version, decay in self.artifact.manifest["folds"]]

    def stats(self) -> Stats:
        """The statistics of all rows. O(depth) artifacts are read, once."""
        return self._whole_stats

    def sample(self) -> Sample:
        """A uniform sample of all rows, likewise."""
        return self._whole_sample

    @property
    def bound(self) -> int | None:
        """As `below`, of the sample as a whole: it may have been filled by what came later."""
        bounds = [each for each in (self.below, self.sample().below) if each is not None]
        return min(bounds, default=None)

    def with_more(self, part: Part, decay: float = 1.0) -> Part:
        """What is remembered and what came later, together."""
        stats = folded(self.stats(), decay, part.stats)
        return Part(stats, self.sample_with(part), part.arrivals, self.rows + part.rows)

    def sample_with(self, part: Part) -> Sample:
        """A uniform sample of all rows and of what came later, without those that went."""
        return self.sample().without(part.gone_N) + part.sample

    @cached_property
    def _whole_stats(self) -> Stats:
        links = self._links(_STATS)
        stats = self._stats(links[0].tensors)
        for link in links[1:]:
            stats = folded(stats, float(link.manifest["decay"]), self._stats(link.tensors))
        return stats

    @cached_property
    def _whole_sample(self) -> Sample:
        sample = Sample.none(self.model.dim)
        for link in self._links(_SAMPLE):
            own = to_torch(link.tensors)
            sample = sample.without(own[f"{_SAMPLE}gone_N"]) + Sample(own[f"{_SAMPLE}x_MD"], own[f"{_SAMPLE}row_M"])
        return sample

    def _links(self, prefix: str) -> list[Artifact]:
        """This artifact and those that it builds on, oldest first, with the tensors of one prefix."""
        links: list[Artifact] = []
        wanted: str | None = self.digest
        while wanted is not None:
            links.append(self.store.read(wanted, only=lambda name: name.startswith(prefix)))
            wanted = links[-1].manifest["base"]
        return links[::-1]

    def _stats(self, tensors: Mapping[str, np.ndarray]) -> Stats:
        return nothing(self.model).with_tensors(unpacked(_of(_STATS, to_torch(dict(tensors)))))


@dataclass(frozen=True)
class Facts:
    """What a memory says of itself beside its tensors."""

    model: str  # digest
    rows: int
    rows_at_fit: int
    made: int  # version of the samples that the model was made on
    folds: Sequence[tuple[int, float]] = ()


def nothing(model: Clusterer) -> Stats:
    """The statistics of no rows."""
    return model.expect(torch.empty(0, model.dim), torch.empty(0, dtype=torch.int64))


def reference_of(model: Clusterer, sample: Sample, sizes: Mapping[int, int]) -> Reference:
    """How well sampled rows fit that the model was made from, rows by cluster: what arrivals are compared with."""
    found, id_C = model.assign(sample.x_MD), model.id_K.unique()
    rows_C = torch.tensor([sizes.get(cluster, 0) for cluster in id_C.tolist()])
    gain_C = optimism(model.dim, rows_C) if isinstance(model, (DPM, GMM, DeepDPM)) else None
    return Reference.of(found.cluster_N, found.score_N, id_C, optimism_C=gain_C)


def remember(store: ArtifactStore, part: Part, reference: Reference, facts: Facts, below: int | None = None) -> str:
    """Store what all rows left behind; the digest. `below` bounds the hashes of the sample, where rows left it."""
    bounds = [each for each in (below, part.sample.below) if each is not None]
    link = {"base": None, "decay": 1.0, "depth": 0, "below": min(bounds, default=None)}
    return _write(store, part, reference, facts, link)


def without_trials(model: Clusterer) -> Clusterer:
    """The model as it labels rows: a fit that was stopped may have had splits on trial."""
    return model.plain(cast(DPMStats, nothing(model)))[0] if isinstance(model, DPM) else model


def remember_more(memory: Memory, part: Part, facts: Facts, decay: float = 1.0, fold_after: int = FOLD_AFTER) -> str:
    """Store what rows that came later left behind, and that all the others are faded by `decay`; the digest.

    Every so often, and where rows went, all of it is added up and stored as a whole.
    """
    if memory.depth + 1 >= fold_after or len(part.gone_N):
        whole = memory.with_more(part, decay)
        return remember(memory.store, whole, memory.reference, facts, memory.bound)
    link = {"base": memory.digest, "decay": decay, "depth": memory.depth + 1, "below": memory.below}
    return _write(memory.store, part, memory.reference, facts, link)


def read_memory(store: ArtifactStore, digest: str, model: Clusterer) -> Memory:
    """Raises TableError if the artifact is missing or damaged."""
    artifact = store.read(digest, only=lambda name: name.startswith((_REFERENCE, _ARRIVALS)))
    tensors = to_torch(artifact.tensors)
    reference = Reference.from_tensors(_of(_REFERENCE, tensors))
    return Memory(store, artifact, model, reference, Arrivals.from_tensors(_of(_ARRIVALS, tensors)))


def _write(store: ArtifactStore, part: Part, reference: Reference, facts: Facts, link: Mapping[str, Any]) -> str:
    tensors = {
        **_named(_STATS, packed(part.stats.tensors())),
        **_named(_SAMPLE, {"x_MD": part.sample.x_MD, "row_M": part.sample.row_M, "gone_N": part.gone_N}),
        **_named(_REFERENCE, reference.tensors()),
        **_named(_ARRIVALS, part.arrivals.tensors()),
    }
    manifest = {
        **link,
        "model": facts.model,
        "rows": facts.rows,
        "rows_at_fit": facts.rows_at_fit,
        "made": facts.made,
        "folds": [list(fold) for fold in facts.folds],
    }
    return store.write(KIND, manifest, to_numpy(tensors)).digest


def _named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in tensors.items()}


def _of(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
