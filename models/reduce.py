"""Fewer dimensions before clustering: nothing, PCA, or UMAP carried by a network.

Shapes: N rows, D dimensions in, C out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, Protocol

import numpy as np
import torch
from pydantic import Field
from threadpoolctl import threadpool_limits
from torch import Tensor

from models.config import Config
from models.errors import ShoalError
from models.pca import PCAConfig, fit_pca, load_pca
from models.rows import check_rows
from models.umap_network import UMAPConfig, fit_umap, load_umap

MAP_ROWS = 3000
MAP_ITERATIONS = 500  # half of the usual: a start from PCA leaves little to move afterwards


class NoReduction(Config):
    """Cluster the embeddings as they are."""

    kind: Literal["none"] = "none"


ReduceConfig = Annotated[NoReduction | PCAConfig | UMAPConfig, Field(discriminator="kind")]


class Reducer(Protocol):
    """A fitted map from rows to fewer dimensions. A row's result depends on that row alone, not on its block."""

    @property
    def dim_in(self) -> int:
        """Columns of the rows it takes."""
        ...

    @property
    def dim(self) -> int:
        """Columns of the rows it gives."""
        ...

    @property
    def fidelity(self) -> dict[str, float]:
        """What the reduction keeps, in terms of its kind; empty when nothing can be lost."""
        ...

    @property
    def note(self) -> str:
        """A sentence for the user when something else than asked for was done, else empty."""
        ...

    def transform(self, x_ND: Tensor) -> Tensor:
        """Float32 (N, C) on the CPU. Raises ShoalError for rows of another width or that are not finite."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Everything that `load_reducer` needs beside the config, for safetensors."""
        ...


@dataclass(frozen=True)
class Unreduced:
    """The rows themselves."""

    dim: int
    fidelity: dict[str, float] = field(default_factory=dict)
    note: str = ""

    @property
    def dim_in(self) -> int:
        """Columns of the rows it takes."""
        return self.dim

    def transform(self, x_ND: Tensor) -> Tensor:
        """The rows as float32."""
        check_rows(x_ND, self.dim)
        return x_ND.float().cpu()

    def tensors(self) -> dict[str, Tensor]:
        """The width alone."""
        return {"none.dim": torch.tensor(self.dim)}


def fit_reducer(config: ReduceConfig, x_ND: Tensor, seed: int) -> Reducer:
    """Fit to rows. The same rows in the same order and the same seed give the same reducer.

    Raises ShoalError when there are no rows, or rows that are not finite. Cost: see fit_pca and fit_umap.
    """
    if not len(x_ND):
        raise ShoalError("There are no embeddings to reduce; run extract on shards that hold readable images.")
    check_rows(x_ND, x_ND.shape[-1])
    if isinstance(config, UMAPConfig):
        return fit_umap(config, x_ND, seed)
    if isinstance(config, PCAConfig):
        return fit_pca(x_ND, config.n_components)
    return Unreduced(x_ND.shape[1])


def load_reducer(config: ReduceConfig, tensors: dict[str, Tensor]) -> Reducer:
    """The reducer whose `tensors()` these are, fitted with `config`; it transforms bit by bit alike."""
    if isinstance(config, UMAPConfig):
        return load_umap(config, tensors)
    if isinstance(config, PCAConfig):
        return load_pca(tensors)
    return Unreduced(int(tensors["none.dim"]))


def project_2d(x_ND: Tensor, seed: int) -> Tensor:
    """A flat map of at most 3000 rows for the eye, float32 (N, 2): t-SNE on 50 principal components.

    Distances on it mean little; neighbourhoods do. Fewer than 5 rows, or rows all alike, are placed by PCA.
    Raises ShoalError for more rows, or rows that are not finite. O(N log N), seconds for 3000 rows.
    """
    if len(x_ND) > MAP_ROWS:
        raise ShoalError(f"The map takes at most {MAP_ROWS} rows, not {len(x_ND)}; give it a sample.")
    pca = fit_pca(x_ND, 50)
    flat_NC = pca.transform(x_ND)
    if len(x_ND) < 5 or not bool(flat_NC.std(dim=0).any()):
        return torch.nn.functional.pad(flat_NC[:, :2], (0, 2 - min(2, flat_NC.shape[1])))
    from sklearn.manifold import TSNE  # noqa: PLC0415  takes seconds to import, and only the report needs it

    perplexity = min(30.0, (len(x_ND) - 1) / 3)
    init = "pca" if flat_NC.shape[1] >= 2 else "random"
    with threadpool_limits(1):  # its threads wait for each other so often that one is faster on busy cores
        tsne = TSNE(perplexity=perplexity, init=init, max_iter=MAP_ITERATIONS, random_state=seed)
        map_N2 = tsne.fit_transform(flat_NC.numpy())
    return torch.from_numpy(np.asarray(map_N2, dtype=np.float32))
