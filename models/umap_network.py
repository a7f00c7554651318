"""UMAP's coordinates, carried to any row by a network that is fitted to them.

UMAP has no exact map for new rows: its `transform` optimises anew, and depends on which rows come together. So, as
in parametric UMAP, a network learns the coordinates of the fitted rows, and its output is what is clustered.
Sources: McInnes, Healy and Melville (2018) for UMAP; McConville et al. (2021, N2D) for clustering in its coordinates.
Shapes: N rows, D dimensions in, P principal components, C coordinates out, H rows held out, k neighbours.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import faiss
import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from models.config import Config
from models.mlp import MLP, MLPConfig, fit_mlp, load_mlp
from models.pca import PCA, fit_pca, load_pca
from models.rows import check_rows

HELD_OUT = 0.1  # share of the fitted rows that the network does not see
MAX_HELD_OUT = 2000
OVERLAP_NEIGHBORS = 10


class UMAPConfig(Config):
    """PCA when rows are wide, UMAP on at most `max_fit_rows` rows, then the network.

    20 neighbours, min_dist 0 and 10 coordinates are N2D's. More neighbours join small clusters, fewer cut large ones;
    in 5 coordinates the mixture finds twice the clusters in Fashion-MNIST (27 for 15). Measured on pixels, on one core:
    1,797 digits in 7 s, held-out R^2 .99; 70,000 images of Fashion-MNIST in 45 s, R^2 .996, k-means NMI .64.
    """

    kind: Literal["umap"] = "umap"
    n_components: int = Field(10, ge=1, description="coordinates")
    n_neighbors: int = Field(20, ge=2, description="neighbours, itself included, that a row is tied to")
    min_dist: float = Field(0.0, ge=0, le=1, description="how far apart UMAP keeps the closest rows")
    pca_components: int | None = Field(50, ge=1, description="PCA to this many dimensions first; null: never")
    max_fit_rows: int = Field(30_000, ge=1, description="rows that UMAP sees; drawn by seed when there are more")
    network: MLPConfig = MLPConfig()


@dataclass(frozen=True)
class UMAPNetwork:
    """Optional PCA, then the network. A row's coordinates depend on that row alone."""

    pca: PCA | None
    net: MLP
    fidelity: dict[str, float]  # see `_fidelity`
    note: str = ""

    @property
    def dim_in(self) -> int:
        """Columns of the rows it takes."""
        return self.pca.dim_in if self.pca else len(self.net.mean_in_D)

    @property
    def dim(self) -> int:
        """Columns of the rows it gives."""
        return len(self.net.mean_out_C)

    def transform(self, x_ND: Tensor) -> Tensor:
        """Float32 (N, C). Raises ShoalError for rows of another width or that are not finite."""
        check_rows(x_ND, self.dim_in)
        return self.net.transform(self.pca.transform(x_ND) if self.pca else x_ND)

    def tensors(self) -> dict[str, Tensor]:
        """What `load_umap` needs."""
        net = {f"net.{key}": value for key, value in self.net.state_dict().items()}
        kept = {f"fidelity.{key}": torch.tensor(value, dtype=torch.float64) for key, value in self.fidelity.items()}
        return net | kept | (self.pca.tensors() if self.pca else {})


def fit_umap(config: UMAPConfig, x_ND: Tensor, seed: int) -> UMAPNetwork | PCA:
    """Fit UMAP on a seeded subset of rows and the network on nine tenths of those.

    Falls back to PCA, with a `note` and a UserWarning that say why, when there are too few distinct rows for UMAP or
    UMAP finds no finite coordinates. Raises ShoalError for rows that are not finite.
    Costs O(M^2 P) for exact neighbours of the M <= max_fit_rows rows, O(M n_neighbors) for UMAP, then the network.
    """
    check_rows(x_ND, x_ND.shape[-1])
    fit_MD = x_ND[_subset(len(x_ND), config.max_fit_rows, seed)].float()
    distinct, needed = len(torch.unique(fit_MD, dim=0)), max(config.n_neighbors, config.n_components) + 2
    if distinct < needed:
        return _fallback(config, fit_MD, f"UMAP needs {needed} distinct rows and there are {distinct}")
    wide = config.pca_components is not None and x_ND.shape[1] > config.pca_components
    pca = fit_pca(fit_MD, config.pca_components or 0) if wide else None
    input_MP = pca.transform(fit_MD) if pca else fit_MD
    coordinate_MC = umap_coordinates(config, input_MP, seed)
    if not torch.isfinite(coordinate_MC).all():
        return _fallback(config, fit_MD, "UMAP found no finite coordinates for these rows")
    return _with_network(config, pca, input_MP, coordinate_MC, seed)


def load_umap(config: UMAPConfig, tensors: dict[str, Tensor]) -> UMAPNetwork | PCA:
    """The reducer that `tensors` came from, be it the network or the PCA it fell back to."""
    parts = {key.partition(".")[2]: value for key, value in tensors.items() if key.startswith("net.")}
    if not parts:
        return load_pca(tensors)
    fidelity = {key[len("fidelity.") :]: float(value) for key, value in tensors.items() if key.startswith("fidelity.")}
    pca = load_pca(tensors) if "pca.mean" in tensors else None
    return UMAPNetwork(pca, load_mlp(config.network, parts), fidelity)


def umap_coordinates(config: UMAPConfig, x_MP: Tensor, seed: int) -> Tensor:
    """UMAP of all rows, float32 (M, C), on one thread so that the seed decides everything."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one thread and no search index are meant
        import umap  # noqa: PLC0415 - compiles for seconds on import, and most runs do not need it

        index_Mk, distance_Mk = _neighbors(x_MP, config.n_neighbors)
        fitted = umap.UMAP(
            n_components=config.n_components,
            n_neighbors=config.n_neighbors,
            min_dist=config.min_dist,
            random_state=seed,
            n_jobs=1,
            precomputed_knn=(index_Mk, distance_Mk, None),
        )
        return torch.from_numpy(np.asarray(fitted.fit_transform(x_MP.numpy()), dtype=np.float32))


def _neighbors(x_MP: Tensor, k: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Exact nearest neighbours, the row itself first: indices int32 and distances float32, each (M, k)."""
    rows = np.ascontiguousarray((x_MP - x_MP.mean(dim=0)).numpy())
    squared_Mk, index_Mk = faiss.knn(rows, rows, k)
    own_M1 = np.arange(len(rows))[:, None]
    # Rounding and duplicates can put another row before the row itself.
    order_Mk = np.argsort(index_Mk != own_M1, axis=1, kind="stable")
    index_Mk = np.take_along_axis(index_Mk, order_Mk, axis=1)
    distance_Mk = np.sqrt(np.take_along_axis(squared_Mk, order_Mk, axis=1).clip(min=0))
    index_Mk[:, 0], distance_Mk[:, 0] = own_M1[:, 0], 0
    return index_Mk.astype(np.int32), distance_Mk.astype(np.float32)


def _with_network(
    config: UMAPConfig, pca: PCA | None, input_MP: Tensor, coordinate_MC: Tensor, seed: int
) -> UMAPNetwork:
    order_M = torch.randperm(len(input_MP), generator=torch.Generator().manual_seed(seed))
    held_out = min(MAX_HELD_OUT, round(HELD_OUT * len(input_MP)))
    held_H, seen_M = order_M[:held_out], order_M[held_out:]
    net = fit_mlp(config.network, input_MP[seen_M], coordinate_MC[seen_M], seed)
    return UMAPNetwork(pca, net, _fidelity(net.transform(input_MP[held_H]), coordinate_MC[held_H]))


def _fidelity(got_HC: Tensor, want_HC: Tensor) -> dict[str, float]:
    """How well the network repeats UMAP on rows that it has not seen.

    `r2`: share of the coordinates' variance; `neighbor_overlap`: share of a row's 10 nearest held-out rows that stay.
    """
    error = (got_HC - want_HC).double().square().sum()
    spread = (want_HC - want_HC.mean(dim=0)).double().square().sum()
    k = min(OVERLAP_NEIGHBORS, len(got_HC) - 1)
    overlap = neighbor_overlap(got_HC, want_HC, k) if k > 0 else 1.0
    return {"held_out_rows": float(len(got_HC)), "r2": float(1 - error / spread), "neighbor_overlap": overlap}


def neighbor_overlap(got_HC: Tensor, want_HC: Tensor, k: int) -> float:
    """Mean share of a row's k nearest other rows in one set of coordinates that are among them in the other too."""
    got_Hk = torch.cdist(got_HC, got_HC).fill_diagonal_(torch.inf).topk(k, largest=False).indices
    want_Hk = torch.cdist(want_HC, want_HC).fill_diagonal_(torch.inf).topk(k, largest=False).indices
    return float((got_Hk[:, :, None] == want_Hk[:, None, :]).any(dim=2).double().mean())


def _subset(rows: int, limit: int, seed: int) -> Tensor:
    """At most `limit` row numbers in ascending order, by a seeded permutation."""
    chosen_M = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))[:limit]
    return chosen_M.sort().values


def _fallback(config: UMAPConfig, fit_MD: Tensor, reason: str) -> PCA:
    note = f"{reason}, so the reduction is PCA to at most {config.n_components} dimensions instead."
    warnings.warn(note, stacklevel=4)
    return fit_pca(fit_MD, config.n_components, note)
