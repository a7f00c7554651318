"""The data of benchmarks: files of embeddings with labels, or rows that are generated."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jobs.bench.sides import Data
from models.errors import ShoalError
from pipeline.evaluate.generated import Components

USUAL = Path("../shared/data")
MNIST, FASHION = "mnist_n2d.npz", "fashion_mnist_n2d.npz"


def read(path: Path) -> Data:
    """Arrays `embedding` and `label` of an .npz file, without unpickling. Raises ShoalError where they are missing."""
    if not path.is_file():
        raise ShoalError(f"There is no data at {path}; give the .npz file with `embedding` and `label` as --data PATH.")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            data = Data(arrays["embedding"].astype(np.float32), arrays["label"])
    except (KeyError, ValueError, OSError) as error:
        raise ShoalError(
            f"{path} is no .npz file with arrays `embedding` and `label` ({error}); give one as --data PATH."
        ) from error
    if data.x_ND.ndim != 2 or len(data.x_ND) != len(data.label_N) or not len(data.x_ND):
        raise ShoalError(
            f"{path} has `embedding` {data.x_ND.shape} and `label` {data.label_N.shape}; "
            "give rows x dimensions and one label per row."
        )
    return data


def repeated(data: Data, seeds: int) -> Iterator[tuple[int, Data]]:
    """The same rows for every seed."""
    return ((seed, data) for seed in range(seeds))


def generated(law: Components, seeds: int) -> Iterator[tuple[int, Data]]:
    """Rows of the law, other ones for every seed."""
    for seed in range(seeds):
        yield seed, Data(*Components(law.rows, law.dim, law.clusters, law.spread, seed).draw())


def shape(data: Data) -> dict[str, int]:
    """Figures that every benchmark of a file shows."""
    return {"rows": len(data.x_ND), "dimension": data.x_ND.shape[1], "true_clusters": data.classes}


def refuse(data: Path | None) -> None:
    """Raise ShoalError where data are given to a benchmark that generates its own."""
    if data is not None:
        raise ShoalError(f"--data {data} has no use here: this benchmark's rows are generated.")
