"""How good frozen features are: what classifiers and a clustering that see nothing else make of them.

Shapes: N rows, M test rows, D dimensions. Classes are the train rows' labels by number; -1 is any other label.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.errors import ShoalError
from models.kmeans import KMeansConfig
from models.probes import Classes, Features, best_strength, linear_probe, unit_rows, weighted_knn
from pipeline.cluster.cluster import fit_array
from pipeline.cluster.config import ClusterConfig
from pipeline.cluster.fit import FitConfig
from pipeline.cluster.rows import load_rows
from pipeline.cluster.threads import threads
from pipeline.evaluate.metrics import score_labels
from pipeline.evaluate.probe_config import ProbeConfig
from pipeline.progress import Progress, silent
from pipeline.tables.collection import Collection

_STEP = "probe"
_TEST, _HELD_OUT = 0, 1  # fifths of the rows: tested where no test rows are given; what the linear probe is tuned on


@dataclass(frozen=True)
class LabelledRows:
    """Features of images, their labels (texts; None where there is none) and stable hashes."""

    x_ND: Features
    label_N: NDArray[np.object_]
    row_N: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.x_ND)

    def __getitem__(self, which: NDArray[np.bool_] | NDArray[np.intp] | slice) -> LabelledRows:
        return LabelledRows(self.x_ND[which], self.label_N[which], self.row_N[which])

    @property
    def by_hash(self) -> LabelledRows:
        """Ordered by hash, so that nothing computed of them depends on the order in which they came."""
        return self[np.argsort(self.row_N, kind="stable")]

    @property
    def labelled(self) -> LabelledRows:
        """Those that have a label."""
        return self[np.array([label is not None for label in self.label_N], dtype=bool)]

    def fifth(self, number: int) -> NDArray[np.bool_]:
        """A fifth of the rows; whether a row is one of them depends on its hash alone; other numbers, other fifths."""
        digit_N = self.row_N.view(np.uint64) // np.uint64(5**number) % np.uint64(5)
        return np.asarray(digit_N == 0)


@dataclass(frozen=True)
class ProbeScores:
    """What is made of one backbone's features: accuracies on the test rows, and k-means of all `rows` given K."""

    knn: float
    linear: float
    kmeans_nmi: float
    kmeans_acc: float
    strength: float  # of the linear probe's penalty, as chosen
    classes: int  # K
    rows: int  # of the train table, with and without a label
    train_rows: int  # that have a label
    test_rows: int  # likewise


def labelled_rows(table: Collection, ceiling_bytes: int, on_progress: Progress = silent) -> LabelledRows:
    """All embeddings of a table with their labels. Memory as `load_rows`, and a pointer per row."""
    samples = table.samples
    version = samples.version
    rows = load_rows(samples, version, ceiling_bytes, on_progress=on_progress)
    parts = [samples.read(file, ["label"])["label"].to_pylist() for file in samples.files(version=version)]
    return LabelledRows(rows.x_ND, np.array([label for part in parts for label in part], dtype=object), rows.row_N)


def probe(
    train: LabelledRows, test: LabelledRows | None, config: ProbeConfig, on_progress: Progress = silent
) -> ProbeScores:
    """Weighted k-NN and a linear probe from the labelled rows of `train` to those of `test`, and k-means of `train`.

    Without `test`, the fifth of the labelled rows that their hashes choose is tested, and the rest trains. k-means,
    which sees no label, has all rows of `train` either way. Nothing depends on the order of rows. Time is that of the
    three; memory is the rows four times. Raises ShoalError where labels are missing or all the same.
    """
    train = train.by_hash
    known, asked = _split(train.labelled, None if test is None else test.by_hash.labelled)
    names, class_N = np.unique(known.label_N.astype(str), return_inverse=True)
    class_M = _coded(asked, names)
    with threads(config.threads):
        on_progress(f"{_STEP}, k-NN", 0, 3)
        voted_M = weighted_knn(known.x_ND, class_N, asked.x_ND, config.k, config.temperature)
        on_progress(f"{_STEP}, linear", 1, 3)
        linear_M, strength = _linear(known, class_N, asked.x_ND, config)
        on_progress(f"{_STEP}, k-means", 2, 3)
        nmi, acc = _kmeans_scores(train, config)
        on_progress(_STEP, 3, 3)
    return ProbeScores(
        knn=float((voted_M == class_M).mean()),
        linear=float((linear_M == class_M).mean()),
        kmeans_nmi=nmi,
        kmeans_acc=acc,
        strength=strength,
        classes=len(set(train.label_N) - {None}),
        rows=len(train),
        train_rows=len(known),
        test_rows=len(asked),
    )


def _split(known: LabelledRows, asked: LabelledRows | None) -> tuple[LabelledRows, LabelledRows]:
    """Rows to learn from and rows to be tested on. Raises ShoalError where there is nothing to learn or to test."""
    labels = set(known.label_N)
    if len(labels) < 2:
        found = f"only the label {next(iter(labels))!r}" if labels else "no labels"
        raise ShoalError(
            f"The images of INPUT have {found}, and a probe needs two at least; give shards whose samples have a .cls "
            "member, as `shoal shards` writes for sub-folders."
        )
    if asked is None:
        known, asked = known[~known.fifth(_TEST)], known[known.fifth(_TEST)]
    if not set(known.label_N) & set(asked.label_N):
        raise ShoalError(
            f"Of {len(asked):,} labelled test images none has a label of the {len(known):,} train images (such as "
            f"{next(iter(labels))!r}); give --test shards of the same classes, or more images."
        )
    return known, asked


def _coded(rows: LabelledRows, names: NDArray[np.str_]) -> Classes:
    code = {name: number for number, name in enumerate(names.tolist())}
    return np.array([code.get(label, -1) for label in rows.label_N], np.int64)


def _linear(known: LabelledRows, class_N: Classes, x_MD: Features, config: ProbeConfig) -> tuple[Classes, float]:
    """Classes of the test rows, and the strength that the train rows chose."""
    some, class_n = known[: config.linear_rows], class_N[: config.linear_rows]
    strength = best_strength(some.x_ND, class_n, some.fifth(_HELD_OUT), config.strengths, config.iterations)
    return linear_probe(some.x_ND, class_n, x_MD, strength, config.iterations), strength


def _kmeans_scores(rows: LabelledRows, config: ProbeConfig) -> tuple[float, float]:
    """NMI and ACC of k-means on rows of length 1, K the number of labels; unlabelled rows are clustered, not scored."""
    algorithm = KMeansConfig(clusters=len(set(rows.label_N) - {None}), restarts=config.restarts)
    settings = ClusterConfig(algorithm=algorithm, fit=FitConfig(seed=config.seed))
    scores = score_labels(rows.label_N, fit_array(unit_rows(rows.x_ND), settings)[0])
    return float(scores.nmi or 0.0), float(scores.acc or 0.0)
