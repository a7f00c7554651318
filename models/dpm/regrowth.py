"""A partition of some rows found among them alone: searches from many cells and from few, and again in what they found.

One search depends on where it starts: with many cells a few outliers take most of them, and what is left becomes one;
with few, they cut through clusters. So there are several, and the log joint says which was best.

Shapes: n rows, D dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.dpm.counting import counted_sets, scaled_sets, worth
from models.dpm.mixture import DPM
from models.dpm.opening import searched
from models.neighbors import cells

_FEW = 16  # rows of a cell below which it says nothing
_CELLS = (2, 8, 32)  # that searches start from, beside those that a fit would
_ROUNDS = 4
LEAST_ROWS = 3  # per dimension, of a set whose rows stand for others: fewer say too little of a covariance


def grown(model: DPM, x_nD: Tensor, rng: torch.Generator, factor: float = 1.0) -> Tensor:
    """Set of each row, (n,) int64 from 0, under the prior of `model`, each row counted `factor` times."""
    set_n = torch.zeros(len(x_nD), dtype=torch.int64)
    value = joint(model, x_nD, set_n, factor)
    for _ in range(_ROUNDS):
        finer_n, whole = set_n.clone(), True
        for k in range(int(set_n.max()) + 1):
            inside_n = torch.nonzero(set_n == k).flatten()
            part_n = _cut(model, x_nD[inside_n], rng, factor)
            whole &= bool((part_n == 0).all())
            finer_n[inside_n[part_n > 0]] = int(finer_n.max()) + part_n[part_n > 0]
        if whole:
            break
        options = [finer_n, searched(model, x_nD, finer_n, rng, factor).unique(return_inverse=True)[1]]
        values = [joint(model, x_nD, each, factor) for each in options]
        best = max((0, 1), key=values.__getitem__)
        if values[best] <= value:
            break
        set_n, value = options[best], values[best]
    return set_n


def joint(model: DPM, x_nD: Tensor, set_n: Tensor, factor: float) -> float:
    """What a partition of these rows is worth, up to what all partitions have in common."""
    prior = model.population.prior
    sets = scaled_sets(counted_sets(prior, x_nD, set_n, None, int(set_n.max()) + 1), factor)
    return float(worth(prior, model.population.concentration, sets).sum())


def _cut(model: DPM, x_nD: Tensor, rng: torch.Generator, factor: float) -> Tensor:
    """The best of several searches, (n,); 0 throughout where none is likelier than one set."""
    best_n = torch.zeros(len(x_nD), dtype=torch.int64)
    value = joint(model, x_nD, best_n, factor)
    # Small cells of rows that stand for many would look like as many rows that are very much alike.
    most = len(x_nD) // (_FEW if factor <= 1 else max(_FEW, LEAST_ROWS * model.dim))
    for count in sorted({min(each, most) for each in (*_CELLS, model.config.starts(*x_nD.shape))} - {0, 1}):
        cell_n = cells(x_nD, count, int(torch.randint(2**31, (1,), generator=rng)))
        set_n = searched(model, x_nD, cell_n, rng, factor).unique(return_inverse=True)[1]
        found = joint(model, x_nD, set_n, factor)
        if found > value:
            best_n, value = set_n, found
    return best_n
