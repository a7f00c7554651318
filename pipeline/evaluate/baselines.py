"""What clusterings are measured against: scikit-learn's, as it comes.

Shapes: N rows, D dimensions.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import BayesianGaussianMixture
from threadpoolctl import threadpool_limits


@dataclass(frozen=True)
class Baseline:
    """The cluster of each row, and how the fit went."""

    cluster_N: np.ndarray
    passes: int
    settled: bool  # whether it converged within the passes that it was given


def kmeans(x_ND: np.ndarray, clusters: int, seed: int, restarts: int = 10) -> Baseline:
    """Lloyd's k-means given K, the best of `restarts` seedings, on one thread. O(restarts N K D) a pass.

    Raises ValueError (scikit-learn's) where there are fewer rows than clusters.
    """
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct rows than clusters
        model = KMeans(clusters, n_init=restarts, random_state=seed).fit(x_ND)
    return Baseline(model.labels_, model.n_iter_, model.n_iter_ < model.max_iter)


def bayesian_mixture(x_ND: np.ndarray, components: int, seed: int, most_passes: int = 100) -> Baseline:
    """Variational Dirichlet-process mixture, full covariances (Blei and Jordan 2006), on one thread. O(N K D²) a pass.

    `most_passes` is scikit-learn's default. Raises ValueError (scikit-learn's) where rows are fewer than components.
    """
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # `settled` says so
        model = BayesianGaussianMixture(
            n_components=components, covariance_type="full", max_iter=most_passes, random_state=seed
        ).fit(x_ND)
    return Baseline(model.predict(x_ND), model.n_iter_, bool(model.converged_))
