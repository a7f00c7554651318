"""Classifiers that show what frozen features hold: neighbours that vote, and a linear one.

Shapes: N train rows, M test rows, D dimensions, C classes (0 to C - 1), k neighbours. Thread counts are the caller's.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import faiss
import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from models.errors import ShoalError

Features = NDArray[np.float32]
Classes = NDArray[np.int64]

_TOLERANCE = 1e-4  # of the largest partial derivative of the mean loss, scikit-learn's


def weighted_knn(x_ND: Features, class_N: Classes, x_MD: Features, k: int, temperature: float) -> Classes:
    """The class for which the k train rows of largest cosine vote, each with weight exp(cosine / temperature).

    Wu et al. 2018, section 3.4, as DINO (Caron et al. 2021) evaluates it. Of classes with equal votes the first wins;
    where fewer than k rows train, all of them vote. A row of zeros has cosine 0 with every other. O(M N D) time; memory
    is the scaled rows and O(M (k + C)).
    """
    cosine_Mk, index_Mk = faiss.knn(
        unit_rows(x_MD), unit_rows(x_ND), min(k, len(x_ND)), metric=faiss.METRIC_INNER_PRODUCT
    )
    weight_Mk = np.exp((cosine_Mk.astype(np.float64) - 1) / temperature)  # the largest is 1, at any temperature
    vote_MC = np.zeros((len(x_MD), int(class_N.max()) + 1))
    np.add.at(vote_MC, (np.arange(len(x_MD))[:, None], class_N[index_Mk]), weight_Mk)
    return np.asarray(vote_MC.argmax(axis=1), np.int64)


def linear_probe(x_ND: Features, class_N: Classes, x_MD: Features, strength: float, iterations: int) -> Classes:
    """The most probable class of each test row by multinomial logistic regression on standardised features.

    Mean and deviation are the train rows'; a feature that never varies there counts for nothing. L-BFGS minimises the
    mean loss plus strength / 2 |w|^2 (intercepts go free) from weights of 0. O(N D C) time an iteration; a copy of the
    rows as memory. Raises ShoalError where the train rows are all of one class.
    """
    if len(np.unique(class_N)) < 2:
        raise ShoalError("A linear probe needs train rows of two labels at least, but all have the same one.")
    scaler = StandardScaler().fit(x_ND)
    penalty = 1 / (strength * len(x_ND))  # scikit-learn weighs the summed loss
    model = LogisticRegression(C=penalty, max_iter=iterations, tol=_TOLERANCE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # accuracy settles long before the weights do
        model.fit(scaler.transform(x_ND), class_N)
    return np.asarray(model.predict(scaler.transform(x_MD)), np.int64)


def best_strength(
    x_ND: Features, class_N: Classes, held_out_N: NDArray[np.bool_], strengths: Sequence[float], iterations: int
) -> float:
    """The strength whose linear probe, fitted on the others, is right most often on the rows held out.

    Of equals the largest; the middle one where rows are too few to tell (none held out, or the others of one class).
    Costs a linear probe for each strength.
    """
    descending, kept_N = sorted(strengths, reverse=True), ~held_out_N
    if len(descending) == 1 or not held_out_N.any() or len(np.unique(class_N[kept_N])) < 2:
        return descending[len(descending) // 2]
    rows = (x_ND[kept_N], class_N[kept_N], x_ND[held_out_N])
    found = [linear_probe(*rows, strength, iterations) for strength in descending]
    return descending[int(np.argmax([np.mean(each == class_N[held_out_N]) for each in found]))]


def unit_rows(x_ND: Features) -> Features:
    """Rows of length 1; zeros stay zeros."""
    length_N1 = np.linalg.norm(x_ND, axis=1, keepdims=True)
    return np.ascontiguousarray(x_ND / np.where(length_N1 > 0, length_N1, 1), np.float32)
