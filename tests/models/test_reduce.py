"""Reducers: what each keeps, that a row's result is its own, and what happens where UMAP cannot work."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

from models.errors import ShoalError
from models.mlp import MLPConfig
from models.pca import fit_pca
from models.reduce import NoReduction, PCAConfig, ReduceConfig, Reducer, fit_reducer, load_reducer, project_2d
from models.umap_network import UMAPConfig, UMAPNetwork, neighbor_overlap, umap_coordinates

QUICK = UMAPConfig(
    n_components=3, n_neighbors=8, pca_components=6, network=MLPConfig(width=64, hidden_layers=2, epochs=80)
)
BLOBS, ROWS = 4, 60


def blobs(seed: int = 0) -> Tensor:
    """Four well separated clusters in 12 dimensions, one after the other."""
    rng = torch.Generator().manual_seed(seed)
    centre_KD = torch.randn(BLOBS, 12, generator=torch.Generator().manual_seed(99)) * 6
    return centre_KD.repeat_interleave(ROWS, dim=0) + torch.randn(BLOBS * ROWS, 12, generator=rng)


@pytest.fixture(scope="module")
def reducer() -> Reducer:
    return fit_reducer(QUICK, blobs(), seed=0)


def test_clusters_stay_apart_in_the_networks_coordinates_of_new_rows(reducer: Reducer) -> None:
    z_NC = reducer.transform(blobs(seed=1))
    centre_KC = z_NC.reshape(BLOBS, ROWS, -1).mean(dim=1)
    nearest_N = torch.cdist(z_NC, centre_KC).argmin(dim=1)
    assert torch.equal(nearest_N, torch.arange(BLOBS).repeat_interleave(ROWS))
    within = (z_NC - centre_KC.repeat_interleave(ROWS, dim=0)).norm(dim=1).max()
    assert float(within) < float(torch.nn.functional.pdist(centre_KC).min()) / 2


def test_fidelity_is_of_rows_that_the_network_has_not_seen(reducer: Reducer) -> None:
    assert reducer.fidelity["held_out_rows"] == 24
    assert 0.95 < reducer.fidelity["r2"] <= 1 and 0.2 < reducer.fidelity["neighbor_overlap"] <= 1
    assert reducer.note == ""


def test_widths(reducer: Reducer) -> None:
    assert (reducer.dim_in, reducer.dim) == (12, 3)
    z_NC = reducer.transform(blobs())
    assert z_NC.shape == (BLOBS * ROWS, 3) and z_NC.dtype == torch.float32


def test_the_same_seed_gives_the_same_tensors(reducer: Reducer) -> None:
    again = fit_reducer(QUICK, blobs(), seed=0).tensors()
    assert again.keys() == reducer.tensors().keys()
    assert all(torch.equal(again[key], value) for key, value in reducer.tensors().items())


@pytest.mark.parametrize("config", [NoReduction(), PCAConfig(n_components=2), QUICK])
def test_what_was_saved_transforms_alike_and_each_row_alone(config: ReduceConfig) -> None:
    x_ND = blobs()
    fitted = fit_reducer(config, x_ND, seed=0)
    loaded = load_reducer(config, fitted.tensors())
    whole_NC = fitted.transform(x_ND)
    assert torch.equal(loaded.transform(x_ND), whole_NC)
    assert torch.equal(torch.cat([loaded.transform(part) for part in x_ND.split(7)]), whole_NC)
    assert (loaded.fidelity, loaded.note) == (fitted.fidelity, fitted.note)
    assert (loaded.dim_in, loaded.dim) == (fitted.dim_in, fitted.dim)


def test_no_reduction_is_the_rows() -> None:
    assert torch.equal(fit_reducer(NoReduction(), blobs(), seed=0).transform(blobs()), blobs())


def test_umap_sees_no_more_rows_than_allowed_and_all_are_transformed() -> None:
    limited = fit_reducer(QUICK.model_copy(update={"max_fit_rows": 100}), blobs(), seed=0)
    assert limited.fidelity["held_out_rows"] == 10
    assert limited.transform(blobs()).shape == (BLOBS * ROWS, 3)


def test_narrow_rows_need_no_pca() -> None:
    narrow = fit_reducer(QUICK, blobs()[:, :6], seed=0)
    assert isinstance(narrow, UMAPNetwork) and narrow.pca is None and narrow.dim_in == 6


def test_identical_copies_of_few_rows_do_not_break_umap() -> None:
    x_ND = blobs()[::6].repeat(5, 1)
    assert bool(torch.isfinite(fit_reducer(QUICK, x_ND, seed=0).transform(x_ND)).all())


@pytest.mark.parametrize(
    "x_ND",
    [torch.ones(200, 5), torch.arange(9.0)[:, None].expand(9, 5), torch.eye(5).repeat(50, 1), torch.ones(1, 5)],
    ids=["all alike", "nine rows", "five distinct rows", "one row"],
)
def test_where_umap_cannot_work_pca_stands_in_and_says_so(x_ND: Tensor) -> None:
    with pytest.warns(UserWarning, match=r"UMAP needs 10 distinct rows and there are \d, so the reduction is PCA"):
        fitted = fit_reducer(QUICK, x_ND, seed=0)
    loaded = load_reducer(QUICK, fitted.tensors())
    assert fitted.dim <= 3 and "explained_variance" in fitted.fidelity
    assert loaded.note == fitted.note and "PCA" in loaded.note
    assert bool(torch.isfinite(loaded.transform(x_ND)).all())


@pytest.mark.parametrize("config", [NoReduction(), PCAConfig(), QUICK])
def test_rows_that_cannot_be_reduced_are_one_sentence(config: ReduceConfig) -> None:
    x_ND = blobs()
    with pytest.raises(ShoalError, match="7-d but the reducer was fitted on 12-d"):
        fit_reducer(config, x_ND, seed=0).transform(x_ND[:, :7])
    with pytest.raises(ShoalError, match="no embeddings"):
        fit_reducer(config, x_ND[:0], seed=0)
    x_ND[3, 3] = math.nan
    with pytest.raises(ShoalError, match="1 of 240 embeddings hold NaN"):
        fit_reducer(config, x_ND, seed=0)


def test_neighbor_overlap_by_hand() -> None:
    """On a line, moving one end to the other changes the nearest row of 2 rows of 4."""
    line_HC = torch.tensor([[0.0], [1.0], [2.1], [3.0]])
    moved_HC = torch.tensor([[5.0], [1.0], [2.1], [3.0]])
    assert neighbor_overlap(line_HC, line_HC, 1) == 1.0
    # Nearest before: 1, 0, 3, 2. After: 3, 2, 3, 2.
    assert neighbor_overlap(moved_HC, line_HC, 1) == 0.5


def test_kind_chooses_the_config_and_unknown_settings_are_errors() -> None:
    adapter: TypeAdapter[ReduceConfig] = TypeAdapter(ReduceConfig)
    assert adapter.validate_python({"kind": "pca", "n_components": 3}) == PCAConfig(n_components=3)
    assert adapter.validate_python({"kind": "umap", "network": {"width": 8}}).network.width == 8
    for wrong in ({"kind": "tsne"}, {"kind": "umap", "neighbours": 3}, {"kind": "pca", "n_components": 0}):
        with pytest.raises(ValidationError):
            adapter.validate_python(wrong)


@pytest.mark.parametrize("shape", [(0, 3), (1, 3), (2, 1), (4, 5), (30, 1), (60, 8)])
def test_a_map_is_flat_finite_and_repeatable(shape: tuple[int, int]) -> None:
    x_ND = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    map_N2 = project_2d(x_ND, seed=0)
    assert map_N2.shape == (shape[0], 2) and map_N2.dtype == torch.float32
    assert bool(torch.isfinite(map_N2).all())
    assert torch.equal(project_2d(x_ND, seed=0), map_N2)


def test_a_map_keeps_clusters_together() -> None:
    map_N2 = project_2d(blobs(), seed=0)
    nearest_N = torch.cdist(map_N2, map_N2).fill_diagonal_(torch.inf).argmin(dim=1)
    assert torch.equal(nearest_N // ROWS, torch.arange(BLOBS * ROWS) // ROWS)


def test_a_map_of_rows_all_alike_is_a_point() -> None:
    assert torch.equal(project_2d(torch.ones(40, 3), seed=0), torch.zeros(40, 2))


def test_a_map_takes_3000_rows_at_most() -> None:
    with pytest.raises(ShoalError, match="at most 3000 rows, not 3001"):
        project_2d(torch.zeros(3001, 2), seed=0)


@pytest.mark.slow
def test_digits_are_as_separable_in_the_networks_coordinates_as_in_umaps() -> None:
    """K-means with the true K on 1,797 handwritten digits of 8 × 8 pixels; 20 s of one core."""
    x_ND = torch.from_numpy(load_digits().data / 16).float()
    config = UMAPConfig()
    reducer = fit_reducer(config, x_ND, seed=0)
    input_NP = fit_pca(x_ND, 50).transform(x_ND)
    scores = {}
    for name, z_NC in {"network": reducer.transform(x_ND), "umap": umap_coordinates(config, input_NP, seed=0)}.items():
        cluster_N = KMeans(10, n_init=10, random_state=0).fit_predict(z_NC)
        scores[name] = normalized_mutual_info_score(load_digits().target, cluster_N)
    assert scores["network"] > 0.88 and scores["network"] > scores["umap"] - 0.01
    assert reducer.fidelity["r2"] > 0.98 and reducer.fidelity["neighbor_overlap"] > 0.7
