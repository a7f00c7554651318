"""Estimates of the steps that see embeddings: reduction and fit, k-means beside it, scores."""

from __future__ import annotations

from jobs.estimate.facts import Estimate, Setting, rates, table_bytes
from jobs.rates import LIBRARY_BYTES, RATES, Rate
from models.deepdpm.config import DeepDPMConfig
from models.pca import PCAConfig
from models.reduce import ReduceConfig
from models.umap_network import UMAPConfig

_PASSES = 3  # over the table: to fit the reduction, to reduce all rows, to label them
_LIBRARIES = 2.2  # FAISS, scikit-learn and UMAP's compiler beside torch; measured, 1.9 GB with few rows
_STEPS = 6_000  # of DeepDPM, that its schedule takes at least where epochs are short


def cluster(setting: Setting) -> Estimate:
    """All in the process that runs the command, but for the passes of more workers."""
    network = setting.network
    if network is None:
        return Estimate(None, how="nothing is known of the dimension of its embeddings")
    rows, wide, config = setting.images, network.dim, setting.config.cluster
    reduction = config.reduction(wide)
    dim = min(wide, reduction.n_components) if isinstance(reduction, PCAConfig | UMAPConfig) else wide
    first = _reduce_s(reduction, rows, wide)
    tables = _PASSES * table_bytes(rows, wide)
    fit, told = _fit(setting, rows, dim)
    reading, label = tables / RATES["table"].value, rows / RATES["label"].value
    whole = 4 * rows * wide
    mapped = f", {whole / 2**30:,.0f} GiB of temporary files" if whole > config.memory_ceiling_bytes else ""
    return Estimate(
        seconds=first + reading + fit + label,
        driver_bytes=_memory(setting, reduction, rows, wide, dim),
        bytes_read=tables,
        bytes_written=60.0 * rows,
        how=f"{reduction.kind} {first:,.0f} s, tables {reading:,.0f} s, {config.algorithm.kind} {fit:,.0f} s{mapped}",
        rates=_reduce_rates(reduction) | rates("table", "label") | told,
    )


def _reduce_s(reduction: ReduceConfig, rows: int, wide: int) -> float:
    """PCA by the covariance, in float64; UMAP and its network on some rows, then all rows through both."""
    matrix = RATES["matrix"].value
    if isinstance(reduction, PCAConfig):
        return rows * wide * (2 * wide + reduction.n_components) / matrix
    if not isinstance(reduction, UMAPConfig):
        return 0.0
    fitted, narrow = min(rows, reduction.max_fit_rows), min(wide, reduction.pca_components or wide)
    pca = 2 * fitted * wide**2 / matrix if narrow < wide else 0.0
    near = fitted**2 * narrow / RATES["neighbours"].value
    umap = RATES["umap_start"].value + fitted / RATES["umap"].value + RATES["network"].value
    return pca + near + umap + rows * (wide * narrow + 4 * reduction.network.width**2) / matrix


def _reduce_rates(reduction: ReduceConfig) -> dict[str, Rate]:
    if isinstance(reduction, UMAPConfig):
        return rates("umap_start", "umap", "neighbours", "network", "matrix")
    return rates("matrix") if isinstance(reduction, PCAConfig) else {}


def _memory(setting: Setting, reduction: ReduceConfig, rows: int, wide: int, dim: int) -> float:
    """Embeddings up to the ceiling (beyond, they are in a file), whether they are finite, UMAP's rows four times."""
    config = setting.config.cluster
    held = 0.0
    if isinstance(reduction, PCAConfig | UMAPConfig):
        held = min(4 * rows * wide, config.memory_ceiling_bytes) + rows * wide
    if isinstance(reduction, UMAPConfig):
        held += 16 * min(rows, reduction.max_fit_rows) * wide
    return _LIBRARIES * LIBRARY_BYTES + max(held, 12 * rows * dim)


def _fit(setting: Setting, rows: int, dim: int) -> tuple[float, dict[str, Rate]]:
    algorithm, train, fit = (getattr(setting.config.cluster, name) for name in ("algorithm", "train", "fit"))
    if isinstance(algorithm, DeepDPMConfig):
        steps = -(-rows // train.batch_size)
        epochs = min(train.epochs, max(RATES["deepdpm_epochs"].value, _STEPS / steps))
        cells = algorithm.starts(rows)
        each = 1 / RATES["deepdpm_rows"].value + cells / RATES["deepdpm_cells"].value
        seconds = epochs * (steps / RATES["deepdpm_steps"].value + rows * each) / train.workers
        return seconds, rates("deepdpm_epochs", "deepdpm_steps", "deepdpm_rows", "deepdpm_cells")
    if algorithm.kind == "dpm":
        return rows * dim / (RATES["dpm"].value * fit.threads * fit.workers), rates("dpm")
    return rows / (RATES["kmeans"].value * fit.workers), rates("kmeans")


def baseline(setting: Setting) -> Estimate:
    """On what is reduced already."""
    seconds = setting.images / RATES["kmeans"].value
    return Estimate(seconds, driver_bytes=LIBRARY_BYTES, how="k-means beside it", rates=rates("kmeans"))


def evaluate(setting: Setting) -> Estimate:
    """Of every clustering."""
    seconds = setting.images / RATES["label"].value
    return Estimate(seconds, driver_bytes=LIBRARY_BYTES, how="scores of all rows", rates=rates("label"))
