"""Fewer dimensions before clustering: nothing, PCA, or UMAP carried by a network (stub)."""

from __future__ import annotations

from typing import Annotated, Literal, Protocol

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from models.config import Config


class NoReduction(Config):
    """Cluster the embeddings as they are."""

    kind: Literal["none"] = "none"


class PCAConfig(Config):
    """Principal components."""

    kind: Literal["pca"] = "pca"
    n_components: PositiveInt = 50


class UMAPConfig(Config):
    """UMAP, and the network that carries it."""

    kind: Literal["umap"] = "umap"
    n_components: PositiveInt = 10
    n_neighbors: PositiveInt = 20


ReduceConfig = Annotated[NoReduction | PCAConfig | UMAPConfig, Field(discriminator="kind")]


class Reducer(Protocol):
    """A fitted map from rows to fewer dimensions."""

    @property
    def dim_in(self) -> int: ...

    @property
    def dim(self) -> int: ...

    @property
    def fidelity(self) -> dict[str, float]: ...

    def transform(self, x_ND: Tensor) -> Tensor: ...

    def tensors(self) -> dict[str, Tensor]: ...


class _Identity:
    def __init__(self, dim: int) -> None:
        self.dim_in = self.dim = dim
        self.fidelity: dict[str, float] = {}

    def transform(self, x_ND: Tensor) -> Tensor:
        return x_ND.float()

    def tensors(self) -> dict[str, Tensor]:
        return {"dim": torch.tensor(self.dim)}


def fit_reducer(config: ReduceConfig, x_ND: Tensor, seed: int) -> Reducer:
    """Fit a reducer (stub: identity)."""
    return _Identity(x_ND.shape[1])


def load_reducer(config: ReduceConfig, tensors: dict[str, Tensor]) -> Reducer:
    """Load a reducer (stub: identity)."""
    return _Identity(int(tensors["dim"]))


def project_2d(x_ND: Tensor, seed: int) -> Tensor:
    """Stub."""
    return x_ND[:, :2].float()
