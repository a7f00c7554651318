"""Reports for the tests: one of real digits with everything in it, one with as little as possible."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from PIL import Image
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits

from jobs.report.data import (
    MapPoints,
    MoveRow,
    Pass,
    Picture,
    RejectRow,
    ReportConfig,
    ReportData,
    ScoreRow,
    Sheet,
    Summary,
    largest_clusters,
)
from pipeline.evaluate.metrics import score_geometry, score_labels


@pytest.fixture(scope="session")
def digits_report() -> ReportData:
    """600 digits in 10 clusters by k-means, with every optional part."""
    x_ND, digit_N = load_digits(return_X_y=True)
    x_ND, digit_N = x_ND[:600].astype(np.float32), digit_N[:600]
    model = KMeans(10, n_init=1, random_state=0).fit(x_ND)
    cluster_N, distance_NK = model.labels_.astype(np.int64), model.transform(x_ND)
    order_NK, nearest_N = distance_NK.argsort(axis=1), distance_NK.min(axis=1)
    labels = [str(digit) for digit in digit_N]
    sizes = {cluster: int((cluster_N == cluster).sum()) for cluster in range(10)}

    def picture(row: int) -> Picture:
        image = io.BytesIO()
        Image.fromarray((255 - 15.9 * x_ND[row].reshape(8, 8)).astype(np.uint8)).save(image, "PNG")
        return Picture(f"digit-{row}", "shard-000000.tar", image.getvalue(), 0.9, labels[row], int(order_NK[row, 1]))

    def sheet(cluster: int) -> Sheet:
        row_M = np.flatnonzero(cluster_N == cluster)
        row_M = row_M[nearest_N[row_M].argsort()].tolist()
        return Sheet(
            cluster,
            sizes[cluster],
            typical=tuple(picture(row) for row in row_M[:12]),
            uncertain=tuple(picture(row) for row in row_M[-6:]),
            mean_probability=0.93,
            event="split",
            parents=(0,),
            majority_label=labels[row_M[0]],
            purity=0.8,
        )

    by_labels = score_labels(labels, cluster_N)
    return ReportData(
        title="Handwritten digits",
        created_at=datetime(2026, 3, 1, 9, 5, tzinfo=UTC),
        summary=Summary(
            images=600,
            clusters=10,
            algorithm="dpm",
            backbone="pixels",
            weights="none",
            dimension=64,
            reduction="PCA to 10 dimensions",
            fidelity={"variance kept": 0.74},
            passes=12,
            rejects={"corrupt_image": 2, "damaged_header": 1},
            seconds={"extract": 12.0, "cluster": 61.0},
        ),
        sizes=sizes,
        sheets=tuple(sheet(cluster) for cluster in largest_clusters(sizes, ReportConfig())),
        scores=(
            ScoreRow.of("dpm", score_geometry(x_ND, cluster_N), by_labels, objective=-123.4),
            ScoreRow("k-means", 8, nmi=0.5, ari=0.4, acc=0.9, silhouette=0.1, davies_bouldin=9.0),
        ),
        history=tuple(Pass(number, -100.0 / number, number) for number in range(1, 11)),
        map=MapPoints(x_ND[:, 20], x_ND[:, 30], cluster_N, "PCA"),
        contingency=by_labels.contingency,
        moves=(
            MoveRow(1, "split", (0, 10), 12.5, accepted=True, why="two modes"),
            MoveRow(2, "split", (1,), -30.0, accepted=False, why="one Gaussian explains it"),
            MoveRow(2, "split", (2,), -4.5, accepted=False, why="one Gaussian explains it"),
            MoveRow(2, "merge", (1, 2), float("nan"), accepted=False, why="too far apart"),
        ),
        rejects=(
            RejectRow("shard-000000.tar", "corrupt_image", "digit-77", 1024, 1536, "cannot identify image file"),
            RejectRow("shard-000000.tar", "damaged_header", None, 5120, 5632),
        ),
        provenance={"shoal": "0.1.0", "config": "ab" * 32},
        config_yaml="seed: 0\n",
    )


@pytest.fixture
def plain_report(digits_report: ReportData) -> ReportData:
    """The digits without a map and a history, which take longest to draw."""
    return replace(digits_report, map=None, history=())


@pytest.fixture
def bare_report() -> ReportData:
    """One cluster of imported embeddings: no image, label, score, map or history."""
    pictures = tuple(Picture(f"row-{row}", "embeddings.parquet", None, 0.75) for row in range(4))
    return ReportData(
        title="Imported",
        created_at=datetime(2026, 3, 1),
        summary=Summary(images=4, clusters=1, algorithm="kmeans", backbone="imported", weights="unknown", dimension=3),
        sizes={0: 4},
        sheets=(Sheet(0, 4, typical=pictures, uncertain=pictures[:1]),),
    )
