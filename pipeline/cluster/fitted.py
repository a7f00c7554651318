"""Fitted models as artifacts: written from a fit, read back as something that labels embeddings.

Shapes: N rows, D dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor

from models.clusterer import Assignment, Clusterer
from models.errors import ShoalError
from models.reduce import NoReduction, ReduceConfig, Reducer, fit_reducer, load_reducer
from models.registry import load
from pipeline.cluster.config import ClusterConfig
from pipeline.cluster.fit import Fit
from pipeline.cluster.rows import as_tensor, load_rows
from pipeline.cluster.tensors import to_numpy, to_torch
from pipeline.progress import Progress
from pipeline.tables.artifacts import Artifact, ArtifactStore, read_artifact
from pipeline.tables.collection import Collection
from pipeline.tables.place import Place
from pipeline.tables.samples import SamplesTable, TableProperties

_REDUCTION: TypeAdapter[ReduceConfig] = TypeAdapter(ReduceConfig)
_BLOCK_ROWS = 65_536


@dataclass(frozen=True)
class Reduction:
    """The map that embeddings go through before they are clustered, and where it is kept (None: nowhere)."""

    reducer: Reducer
    artifact: Artifact | None

    @property
    def digest(self) -> str | None:
        """Of the artifact."""
        return None if self.artifact is None else self.artifact.digest

    @property
    def transform(self) -> tuple[int, Any] | None:
        """As `load_rows` takes it."""
        return None if self.artifact is None else (self.reducer.dim, self.reducer.transform)


def assigned(model: Clusterer, x_ND: Tensor) -> Assignment:
    """Assignments of rows as the model sees them, block by block."""
    parts = [model.assign(x_nD) for x_nD in x_ND.split(_BLOCK_ROWS)]
    return Assignment(*(torch.cat(values) for values in zip(*(vars(part).values() for part in parts), strict=True)))


@dataclass(frozen=True)
class Fitted:
    """Reduction and model together: what labels any embedding of the right backbone."""

    reduction: Reduction
    model: Clusterer

    def label(self, x_ND: Tensor) -> Assignment:
        """Assignments of raw embeddings, block by block so that memory does not grow with N."""
        return self.assign(torch.cat([self.reduction.reducer.transform(x_nD) for x_nD in x_ND.split(_BLOCK_ROWS)]))

    def assign(self, x_ND: Tensor) -> Assignment:
        """Assignments of embeddings that went through the reduction, likewise."""
        return assigned(self.model, x_ND)


@dataclass(frozen=True)
class Labeller(Fitted):
    """As it is kept, with its settings and where it comes from."""

    artifact: Artifact

    @property
    def config(self) -> ClusterConfig:
        """What the model was fitted with."""
        return ClusterConfig.model_validate(self.artifact.manifest["config"])

    def require(self, properties: TableProperties) -> None:
        """Raise ShoalError unless the table's embeddings are of the kind the model was fitted on."""
        fitted = TableProperties.model_validate(self.artifact.manifest["table"])
        short = self.artifact.digest[:12]
        if properties.dimension != fitted.dimension:
            raise ShoalError(
                f"Embeddings are {properties.dimension}-d but the clusterer was fitted on {fitted.dimension}-d "
                f"(artifact {short}); re-extract with backbone {fitted.backbone}, or fit again."
            )
        if properties.backbone_digest != fitted.backbone_digest:
            raise ShoalError(
                f"Embeddings come from backbone {properties.backbone} ({properties.backbone_digest[:12]}) but the "
                f"clusterer was fitted on {fitted.backbone} ({fitted.backbone_digest[:12]}, artifact {short}); "
                "re-extract with that backbone, or fit again."
            )


def reduction_of(table: Collection, config: ClusterConfig, version: int, on_progress: Progress) -> Reduction:
    """The reduction for this table version and these settings: the one that is there already, or a new fit.

    Reading all embeddings at once is needed for a new fit only; see `load_rows` for its memory.
    """
    samples = table.samples
    dim = samples.properties.dimension
    settings = config.reduction(dim)
    if isinstance(settings, NoReduction):
        return _no_reduction(dim)
    wanted = _reduction_inputs(samples, settings, config, version)
    for path in table.artifacts.list():
        if path.name.startswith("reduction-") and (found := read_artifact(path)).manifest["inputs"] == wanted:
            return _reduction(found)
    rows = load_rows(samples, version, config.memory_ceiling_bytes, on_progress=on_progress)
    on_progress(f"fit {settings.kind}", 0, None)
    reducer = fit_reducer(settings, as_tensor(rows.x_ND), config.fit.seed)
    manifest = {
        "inputs": wanted,
        "dim_in": dim,
        "dim": reducer.dim,
        "fidelity": reducer.fidelity,
        "note": reducer.note,  # why it is PCA where UMAP was asked for
    }
    return Reduction(reducer, table.artifacts.write("reduction", manifest, to_numpy(reducer.tensors())))


def write_fit(table: Collection, config: ClusterConfig, version: int, reduction: Reduction, fit: Fit) -> Artifact:
    """Store parameters, settings and provenance of a fit; no clock, so equal fits are one artifact."""
    manifest: dict[str, Any] = {
        "config": config.model_dump(mode="json"),
        "table": table.samples.properties.model_dump(mode="json"),
        "samples_version": version,
        "rows": table.samples.count(version=version),
        "reduction": reduction.digest,
        "clusters": len(fit.model.id_K.unique()),
        "settled": fit.settled,
        "history": [[each.objective, each.clusters] for each in fit.history],
    }
    if fit.scalars:
        manifest["scalars"] = [dict(each) for each in fit.scalars]
    return table.artifacts.write(config.algorithm.kind, manifest, model_tensors(fit.model))


def write_model(table: Collection, before: Artifact, model: Clusterer, changed: Mapping[str, Any]) -> Artifact:
    """Store a model that came from another one, with the manifest of that one but for what `changed` says."""
    manifest = {**before.manifest, "clusters": len(model.id_K.unique()), "from": before.digest[:12], **changed}
    return table.artifacts.write(before.kind, manifest, model_tensors(model))


def model_tensors(model: Clusterer) -> dict[str, np.ndarray]:
    """The model for an artifact, without the sample of rows, which is remembered elsewhere (`memory`)."""
    return to_numpy({f"model.{name}": value for name, value in model.tensors().items() if name not in model.retained})


def read_labeller(store: ArtifactStore, which: str | Place) -> Labeller:
    """A labeller from a digest or path, with the reduction beside it. Raises TableError if either is missing."""
    artifact = store.read(which)
    needed = artifact.manifest.get("reduction")
    config = ClusterConfig.model_validate(_manifest_field(artifact, "config"))
    dim = TableProperties.model_validate(artifact.manifest["table"]).dimension
    reduction = _no_reduction(dim) if needed is None else _reduction(store.read(needed))
    tensors = {
        name.removeprefix("model."): value for name, value in artifact.tensors.items() if name.startswith("model.")
    }
    return Labeller(reduction, load(config.algorithm, to_torch(tensors)), artifact)


def read_reduction(table: Collection, digest: str | None) -> Reduction:
    """The reduction that the table keeps under `digest`; None for none. Raises TableError if it is missing."""
    return (
        _no_reduction(table.samples.properties.dimension)
        if digest is None
        else _reduction(table.artifacts.read(digest))
    )


def _no_reduction(dim: int) -> Reduction:
    return Reduction(fit_reducer(NoReduction(), torch.zeros(1, dim), 0), None)


def _reduction(artifact: Artifact) -> Reduction:
    settings = _REDUCTION.validate_python(artifact.manifest["inputs"]["config"])
    return Reduction(load_reducer(settings, to_torch(artifact.tensors)), artifact)


def _reduction_inputs(
    samples: SamplesTable, settings: ReduceConfig, config: ClusterConfig, version: int
) -> dict[str, Any]:
    return {
        "config": settings.model_dump(mode="json"),
        "seed": config.fit.seed,
        "backbone_digest": samples.properties.backbone_digest,
        "samples_version": version,
    }


def _manifest_field(artifact: Artifact, name: str) -> Any:
    if name not in artifact.manifest:
        raise ShoalError(
            f"Artifact {artifact.kind}-{artifact.digest[:12]} is no fitted clusterer (it has no {name}); "
            "give the artifact that `shoal cluster` wrote."
        )
    return artifact.manifest[name]
