"""What a report shows, as one frozen value: no table, no path and no model behind it.

Shapes: N points of the map.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from jobs.report.change import Change, GenerationLine, is_new
from models.config import Config

if TYPE_CHECKING:  # scikit-learn is slow to import, and a report computes no score
    from pipeline.evaluate.metrics import Contingency, GeometryScores, LabelScores


class ReportConfig(Config):
    """How much a report shows. A thumbnail costs 1 to 6 kB: 48 clusters of 18 photographs make about 4 MB."""

    max_clusters: int = Field(default=48, ge=1)  # contact sheets, of the largest clusters
    typical: int = Field(default=12, ge=0)  # images per sheet
    uncertain: int = Field(default=6, ge=0)
    thumbnail_px: int = Field(default=96, ge=16, le=512)
    map_rows: int = Field(default=3_000, ge=0)
    max_rejects: int = Field(default=100, ge=0)  # rows of the table; the counts are of all
    max_moves: int = Field(default=100, ge=0)
    max_changes: int = Field(default=40, ge=0)  # rows of each table of what changed
    max_generations: int = Field(default=100, ge=0)


@dataclass(frozen=True)
class Summary:
    """The run in figures."""

    images: int  # accepted, so that images plus rejects is what was read
    clusters: int  # noise not counted
    algorithm: str
    backbone: str
    weights: str
    dimension: int  # of the embeddings, before reduction
    reduction: str | None = None  # such as "UMAP to 10 dimensions"
    fidelity: Mapping[str, float] = field(default_factory=dict)  # of the reduction, by name of the measure
    passes: int | None = None
    noise: int = 0
    rejects: Mapping[str, int] = field(default_factory=dict)  # by reason
    seconds: Mapping[str, float] = field(default_factory=dict)  # wall time by step, in order


@dataclass(frozen=True)
class ScoreRow:
    """One model's line in the table of scores; None shows as a dash, and a column of dashes is left out."""

    name: str
    clusters: int
    nmi: float | None = None
    ari: float | None = None
    acc: float | None = None
    purity: float | None = None
    homogeneity: float | None = None
    completeness: float | None = None
    silhouette: float | None = None
    davies_bouldin: float | None = None
    calinski_harabasz: float | None = None
    objective: float | None = None

    @classmethod
    def of(
        cls,
        name: str,
        geometry: GeometryScores,
        labels: LabelScores | None = None,
        objective: float | None = None,
    ) -> ScoreRow:
        """The line of a clustering that pipeline.evaluate has scored."""
        row: dict[str, Any] = {
            key: getattr(labels, key, None) for key in ("nmi", "ari", "acc", "purity", "homogeneity", "completeness")
        }
        row |= {key: getattr(geometry, key) for key in ("silhouette", "davies_bouldin", "calinski_harabasz")}
        return cls(name=name, clusters=geometry.clusters, objective=objective, **row)


@dataclass(frozen=True)
class Pass:
    """One pass over all rows."""

    number: int
    objective: float
    clusters: int


@dataclass(frozen=True)
class MapPoints:
    """A sample of rows in two dimensions."""

    x_N: NDArray[np.floating[Any]]
    y_N: NDArray[np.floating[Any]]
    cluster_N: NDArray[np.int64]  # -1 is noise
    method: str  # such as "t-SNE"


@dataclass(frozen=True)
class Picture:
    """One image of a contact sheet, in any format that Pillow reads; None where there is none to read."""

    key: str
    shard: str
    image: bytes | None
    probability: float | None = None
    label: str | None = None
    runner_up: int | None = None


@dataclass(frozen=True)
class Sheet:
    """One cluster: its most typical and its least certain images."""

    cluster: int
    size: int
    typical: tuple[Picture, ...] = ()
    uncertain: tuple[Picture, ...] = ()
    mean_probability: float | None = None
    event: str | None = None  # born, kept, split, merged
    parents: tuple[int, ...] = ()
    since: int | None = None  # the generation that first had it
    majority_label: str | None = None
    purity: float | None = None  # share of labelled rows with the majority label


@dataclass(frozen=True)
class MoveRow:
    """One proposal to change the number of clusters."""

    sweep: int
    kind: str
    clusters: tuple[int, ...]
    log_ratio: float | None  # None or NaN where the move has none
    accepted: bool
    why: str


@dataclass(frozen=True)
class RejectRow:
    """One sample, or a damaged range of a shard, that did not become an embedding."""

    shard: str
    reason: str
    key: str | None = None
    start: int | None = None  # first byte in the shard
    end: int | None = None  # one past the last byte
    detail: str | None = None


@dataclass(frozen=True)
class ReportData:
    """Everything in a report. `sheets` may be of fewer clusters than `sizes`, and `rejects` fewer than were counted."""

    title: str
    created_at: datetime
    summary: Summary
    sizes: Mapping[int, int]  # every cluster but noise
    sheets: tuple[Sheet, ...] = ()
    scores: tuple[ScoreRow, ...] = ()  # this clustering first, then what it is compared with
    history: tuple[Pass, ...] = ()
    map: MapPoints | None = None
    contingency: Contingency | None = None
    moves: tuple[MoveRow, ...] = ()  # oldest first
    change: Change | None = None  # None for a fresh fit
    generations: tuple[GenerationLine, ...] = ()  # oldest first
    rejects: tuple[RejectRow, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)  # versions, digests, by name
    config_yaml: str = ""


def largest_clusters(sizes: Mapping[int, int], config: ReportConfig) -> list[int]:
    """The `config.max_clusters` largest clusters, in that order; ties by id."""
    return sorted(sizes, key=lambda cluster: (-sizes[cluster], cluster))[: config.max_clusters]


def shown_clusters(sizes: Mapping[int, int], config: ReportConfig, change: Change | None = None) -> list[int]:
    """The clusters that get a contact sheet, largest first: the largest, but new ones have a quarter of the places."""
    new = {each.cluster for each in change.fates if is_new(each)} if change else set()
    first = largest_clusters({cluster: sizes[cluster] for cluster in new & set(sizes)}, config)
    first = first[: config.max_clusters // 4]
    others = largest_clusters({cluster: size for cluster, size in sizes.items() if cluster not in first}, config)
    chosen = first + others[: config.max_clusters - len(first)]
    return largest_clusters({cluster: sizes[cluster] for cluster in chosen}, config)
