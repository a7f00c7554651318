"""What the templates show: a report's data ordered, cut to size, coloured and drawn.

Text from the data stays plain text here; the templates escape it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup

from jobs.report import charts, wording
from jobs.report.change import EXPECTED_LOW, Happened
from jobs.report.change_view import AT_ONCE, change_view, timeline, told
from jobs.report.colours import NOISE_COLOUR, colours
from jobs.report.data import Picture, ReportConfig, ReportData, ScoreRow, Sheet, Summary, shown_clusters
from jobs.report.sheets import Thumbnail, thumbnail
from jobs.report.tables import columns, count_table, moves_view


@dataclass(frozen=True)
class Figure:
    """One of the large numbers at the top."""

    name: str
    value: str
    note: str


@dataclass(frozen=True)
class Charts:
    """Drawn charts; None for what the data does not have."""

    map: Markup | None = None
    sizes: Markup | None = None
    history: Markup | None = None
    generations: Markup | None = None

    @property
    def drawn(self) -> bool:
        """Whether there is any for the overview."""
        return any((self.map, self.sizes, self.history))


@dataclass(frozen=True)
class PictureView:
    """A picture of a sheet with its thumbnail, or without one where it could not be decoded."""

    picture: Picture
    thumbnail: Thumbnail | None
    stray: bool  # labelled, and not as most of its cluster

    @property
    def described(self) -> str:
        """Everything known of it, for the tooltip and for readers who do not see it."""
        parts = [self.picture.key, f"in {self.picture.shard}"]
        if self.picture.label is not None:
            parts.append(f"label {self.picture.label}")
        if self.picture.probability is not None:
            parts.append(f"probability {wording.percent(self.picture.probability)}")
        return ", ".join(parts)


@dataclass(frozen=True)
class SheetView:
    """A sheet in its colour."""

    sheet: Sheet
    colour: str
    share: float  # of all images
    typical: list[PictureView]
    uncertain: list[PictureView]
    fate: str  # what became of the cluster in this generation, when that is news


def view(data: ReportData, config: ReportConfig) -> dict[str, Any]:
    """The variables of report.html.j2. Cost: one decode and one resize per picture shown."""
    colour_of = colours(data.sizes) | {-1: NOISE_COLOUR}
    sheets = _sheets(data, config, colour_of)
    pictures = [item for sheet in sheets for item in (*sheet.typical, *sheet.uncertain)]
    return {
        "data": data,
        "figures": figures(data),
        "charts": _charts(data, colour_of, [sheet.sheet.cluster for sheet in sheets]),
        "columns": columns(data.scores),
        "table": count_table(data.contingency) if data.contingency and data.contingency.labels else None,
        "colour_of": colour_of,
        "sheets": sheets,
        "shown": {sheet.sheet.cluster: sheet for sheet in sheets},
        "largest": shown_clusters(data.sizes, config) == shown_clusters(data.sizes, config, data.change),
        "pictures": any(item.thumbnail for item in pictures),
        "strays": any(item.stray for item in pictures),
        "moves": moves_view(data.moves, config.max_moves) if data.moves else None,
        "change": change_view(data.change, config.max_changes) if data.change else None,
        "expected_low": EXPECTED_LOW,
        "at_once": AT_ONCE,
        "timeline": timeline(data.generations, config.max_generations) if len(data.generations) > 1 else None,
        "rejected": sum(data.summary.rejects.values()),
        "rejects": data.rejects[: config.max_rejects],
        "reasons": sorted(data.summary.rejects.items(), key=lambda item: (-item[1], item[0])),
        "reason_text": wording.REASONS,
        "byte_range": wording.byte_range,
    }


def figures(data: ReportData) -> list[Figure]:
    """The large numbers at the top."""
    summary = data.summary
    found = f"found in {wording.counted(summary.passes, 'pass', 'passes')}" if summary.passes else summary.algorithm
    return [
        Figure("Clusters", wording.count(summary.clusters), found),
        Figure("Images", wording.count(summary.images), f"{wording.count(summary.dimension)} dimensions each"),
        _rejected(summary),
        *_agreement(data.scores[:1]),
        *_time(summary.seconds),
    ]


def _rejected(summary: Summary) -> Figure:
    rejected = sum(summary.rejects.values())
    if not rejected:
        return Figure("Rejected", "0", "every image was used")
    share = rejected / (summary.images + rejected)
    return Figure("Rejected", wording.count(rejected), f"{wording.percent(share)} of what was read")


def _time(seconds: Mapping[str, float]) -> list[Figure]:
    if not seconds:
        return []
    slowest = max(seconds, key=lambda step: seconds[step])
    return [Figure("Time", wording.duration(sum(seconds.values())), f"most of it: {slowest}")]


def _agreement(scores: Sequence[ScoreRow]) -> list[Figure]:
    """The one score that says most: agreement with labels, or separation without them."""
    for row in scores:
        if row.nmi is not None:
            return [
                Figure("NMI", wording.number(row.nmi), f"ACC {wording.number(row.acc)}, ARI {wording.number(row.ari)}")
            ]
        if row.silhouette is not None:
            return [Figure("Silhouette", wording.number(row.silhouette), "no labels to compare with")]
    return []


def _charts(data: ReportData, colour_of: dict[int, str], linked: list[int]) -> Charts:
    drawn = Charts()
    if data.map is not None and len(data.map.x_N):
        label = f"Map of {wording.counted(len(data.map.x_N), 'image')}, coloured by cluster"
        drawn = replace(drawn, map=charts.map_chart(data.map, colour_of, linked, label))
    if len(data.history) > 1:
        first, last = data.history[0], data.history[-1]
        label = f"From pass {first.number} to {last.number} clusters go from {first.clusters} to {last.clusters}"
        drawn = replace(drawn, history=charts.history_chart(data.history, label))
    if len(data.sizes) > 1:
        low, high = min(data.sizes.values()), max(data.sizes.values())
        label = f"Sizes of {wording.counted(len(data.sizes), 'cluster')}, from {low:,} to {high:,} images"
        drawn = replace(drawn, sizes=charts.size_chart(data.sizes, colour_of, label))
    if len(data.generations) > 1:
        label = f"Clusters and what arrived, over {wording.counted(len(data.generations), 'generation')}"
        drawn = replace(drawn, generations=charts.generations_chart(data.generations, label))
    return drawn


def _sheets(data: ReportData, config: ReportConfig, colour_of: dict[int, str]) -> list[SheetView]:
    fates = _fates(data)
    by_cluster = {sheet.cluster: sheet for sheet in data.sheets}
    sizes = {cluster: sheet.size for cluster, sheet in by_cluster.items()}
    ordered = [by_cluster[cluster] for cluster in shown_clusters(sizes, config, data.change)]
    return [
        SheetView(
            sheet=sheet,
            colour=colour_of.get(sheet.cluster, NOISE_COLOUR),
            share=sheet.size / max(data.summary.images, 1),
            typical=[_picture(item, sheet, config) for item in sheet.typical[: config.typical]],
            uncertain=[_picture(item, sheet, config) for item in sheet.uncertain[: config.uncertain]],
            fate=fates.get(sheet.cluster, ""),
        )
        for sheet in ordered
    ]


def _fates(data: ReportData) -> dict[int, str]:
    """What became of each cluster; in a fresh fit it is no news that one was born."""
    if data.change is not None:
        events: Sequence[Happened] = data.change.fates
    else:
        events = [sheet for sheet in data.sheets if sheet.event != "born"]
    return {cluster: str(story) for cluster, story in told(events).items()}


def _picture(picture: Picture, sheet: Sheet, config: ReportConfig) -> PictureView:
    stray = picture.label is not None and sheet.majority_label is not None and picture.label != sheet.majority_label
    return PictureView(picture, thumbnail(picture.image, config.thumbnail_px), stray)
