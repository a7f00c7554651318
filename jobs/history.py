"""`shoal history TABLE [CLUSTER]`: a cluster's life as a tree, or the generations of a clustering and its clusters."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from jobs.brief import Brief, legible
from jobs.cluster import choose
from jobs.config import RunConfig
from jobs.diff import node_row, readable
from jobs.figures import Value
from jobs.report.wording import cluster_list, count, counted, signed
from jobs.steps import Step
from models.clusterer import NOISE
from pipeline.history.lineage import BORN, KEPT, MERGED, SPLIT, Lineage, Node
from pipeline.history.tree import Branch, Episode, Life, history
from pipeline.progress import Progress
from pipeline.tables.clusterings import DIED
from pipeline.tables.collection import Collection

_SHOWN = 50  # clusters, and generations, on a screen
_RELATIONS = {"from": "from {}", "absorbed": "took in {}", "split off": "{} split off", "went into": "went into {}"}


@dataclass(frozen=True)
class History:
    """Look at what the tables say of generations and clusters; nothing is changed."""

    table: str
    cluster: int | None
    name: str | None
    config: RunConfig
    on_life: Callable[[Life], None]  # is told of the cluster's life, which figures cannot show

    def plan(self) -> list[Step]:
        """Looking is all there is."""
        table = Collection.open(self.table)
        what = choose(table, self.name, self.config)
        return [Step("history", what if self.cluster is None else f"cluster {self.cluster} of {what}")]

    def run(self, on_progress: Progress) -> Brief:
        """Raises ShoalError if there never was such a cluster."""
        began = time.perf_counter()
        table = Collection.open(self.table)
        name = choose(table, self.name, self.config)
        if self.cluster is None:
            return _overview(Lineage(table.clustering(name)), began)
        life = history(table, name, self.cluster)
        self.on_life(life)
        return _summary(life, began)


def _overview(lineage: Lineage, began: float) -> Brief:
    totals = lineage.totals()
    generations = [_generation(lineage, number, *totals.get(number, (0, 0))) for number in lineage.numbers]
    newest = max(lineage.generations)
    clusters = _clusters(lineage, newest)
    values: dict[str, Value] = {
        "clustering": lineage.name,
        "newest_generation": newest,
        "generations_ended": len(generations) - len(lineage.generations),
        "living_clusters": len(clusters),
        "clusters_ever": len(lineage.clusters),
    }
    if max(len(clusters), len(generations)) > _SHOWN:
        values["listed"] = f"the {_SHOWN} newest generations and the {_SHOWN} largest clusters; --json has more"
    tables = {
        "generations": [readable(row) for row in generations[-_SHOWN:]],
        "clusters": [readable(row) for row in clusters[:_SHOWN]],
    }
    complete = {"generations": generations, "clusters": clusters}
    return Brief("history", values | {"seconds": time.perf_counter() - began}, tables, complete=complete)


def _generation(lineage: Lineage, number: int, clusters: int, images: int) -> dict[str, Any]:
    events = [node.event for node in lineage.changes[number]]
    published = lineage.generations.get(number)
    return {
        "generation": number,
        "parent": lineage.parent(number),
        "decision": published.decision if published else "ended",
        "created_at": f"{published.created_at:%Y-%m-%d %H:%M:%S} UTC" if published else None,
        "images": images,
        "clusters": clusters,
        **{event: events.count(event) for event in (BORN, SPLIT, MERGED, DIED)},
    }


def _clusters(lineage: Lineage, newest: int) -> list[dict[str, Any]]:
    """Those that live, largest first, each with the last that happened to it."""
    first = lineage.first_seen(newest)
    last: dict[int, Node] = {}
    for number in reversed([newest, *lineage.ancestors(newest)]):
        last.update({node.cluster: node for node in lineage.changes[number]})
    sizes = lineage.sizes(newest)
    return [
        {
            "cluster": cluster,
            "images": sizes[cluster],
            "since_generation": first[cluster],
            "last_event": last[cluster].event if cluster in last else None,
            "in_generation": last[cluster].generation if cluster in last else None,
            "parents": list(last[cluster].parents) if cluster in last else [],
        }
        for cluster in sorted(sizes.keys() - {NOISE}, key=lambda each: (-sizes[each], each))
    ]


def _summary(life: Life, began: float) -> Brief:
    lineage, now = life.lineage, life.lives_on
    nodes = lineage.nodes(life.cluster)
    relatives = [
        {
            "cluster": branch.cluster,
            "relation": branch.relation,
            "of": holder.cluster,
            "in_generation": episode.nodes[0].generation,
        }
        for each in life.lives
        for holder, episode, branch in each.walk()
    ]
    values: dict[str, Value] = {
        "clustering": lineage.name,
        "cluster": cluster_list([life.cluster]),
        "lives": now is not None,
        "images": now.size if now else 0,
        "first_generation": nodes[0].generation,
        "last_generation": nodes[-1].generation,
        "relatives": len({row["cluster"] for row in relatives}),
    }
    if len(life.lives) > 1:
        values["note"] = f"{len(life.lives)} clusters had this number: fits of their own gave it again"
    events = [{**node_row(node), **_record(lineage, node.generation)} for node in nodes]
    complete = {"events": events, "related_clusters": relatives}
    return Brief("history", values | {"seconds": time.perf_counter() - began}, complete=complete)


def _record(lineage: Lineage, number: int) -> dict[str, Any]:
    published = lineage.generations.get(number)
    return {
        "parent_generation": lineage.parent(number),
        "decision": published.decision if published else None,
        "created_at": str(published.created_at) if published else None,
        "ended": published is None,
    }


def draw(life: Life) -> None:
    """Print the life: a tree on a terminal, indented lines into a file or a pipe."""
    console = Console(highlight=False)
    for index, branch in enumerate(life.lives):
        title = f"cluster {cluster_list([life.cluster])}"
        title += ", another one of this number" if index else ""
        if console.is_terminal:
            tree = Tree(Text(title, style="bold"))
            _grow(tree, branch, life.lineage)
            console.print(tree)
        else:
            lines = [title, *(f"{'  ' * depth}{line}" for depth, line in _lines(branch, life.lineage, 1))]
            console.print(Text("\n".join(lines)), soft_wrap=True)


def _grow(tree: Tree, branch: Branch, lineage: Lineage) -> None:
    for episode in branch.episodes:
        leaf = tree.add(Text(told(episode, lineage)))
        for each in episode.branches:
            _grow(leaf.add(Text(_named(each))), each, lineage)


def _lines(branch: Branch, lineage: Lineage, depth: int) -> Iterator[tuple[int, str]]:
    for episode in branch.episodes:
        yield depth, told(episode, lineage)
        for each in episode.branches:
            yield depth + 1, _named(each)
            yield from _lines(each, lineage, depth + 2)


def _named(branch: Branch) -> str:
    return _RELATIONS[branch.relation].format(cluster_list([branch.cluster]))


def told(episode: Episode, lineage: Lineage) -> str:
    """One episode in words."""
    first, last = episode.nodes[0], episode.nodes[-1]
    numbers = f"generation {first.generation}"
    if last is not first:
        numbers = f"generations {first.generation}-{last.generation}"
    sizes = [first.size] if first.size == last.size else [first.size, last.size]
    images = " → ".join([*map(count, sizes[:-1]), counted(sizes[-1], "image")])
    parts = [first.event, numbers, *([] if first.event == DIED else [images])]
    if first.log_hastings is not None and first.event != KEPT:  # that of a fit's own move says nothing of identity
        parts.append(f"log Hastings {signed(first.log_hastings)}")
    if episode.after is not None and episode.after != first.generation - 1:
        parts.append(f"continues generation {episode.after}")
    return ", ".join([*parts, *_circumstances([node.generation for node in episode.nodes], lineage)])


def _circumstances(numbers: Sequence[int], lineage: Lineage) -> list[str]:
    """Who decided, and when."""
    there = [lineage.generations[number] for number in numbers if number in lineage.generations]
    decisions = list(dict.fromkeys(each.decision for each in there))
    dates = list(dict.fromkeys(f"{each.created_at:%Y-%m-%d}" for each in there))
    ended = len(numbers) - len(there)
    gone = [] if not ended else ["ended" if ended == len(numbers) else f"{ended} of them ended"]
    return [
        *([" and ".join(map(legible, decisions))] if decisions else []),
        *([" to ".join(dates[:1] + dates[1:][-1:])] if dates else []),
        *gone,
    ]
