"""The life of a cluster: what happened to it, whom it came from, whom it took in, and who came from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from models.errors import ShoalError
from pipeline.history.lineage import BORN, KEPT, MERGED, SPLIT, Lineage, Node
from pipeline.tables.clusterings import DIED
from pipeline.tables.collection import Collection

Relation = Literal["itself", "from", "absorbed", "split off", "went into"]
_DEPTH = 8  # of relatives of relatives; ask for one of them to see more


@dataclass(frozen=True)
class Episode:
    """One event, or the generations through which a cluster was merely kept."""

    nodes: tuple[Node, ...]  # at least one, of generations that follow each other
    after: int | None  # the generation that the first continues
    branches: tuple[Branch, ...]  # the other clusters that the event concerns

    @property
    def event(self) -> str:
        """Of each node."""
        return self.nodes[0].event


@dataclass(frozen=True)
class Branch:
    """A cluster, and as much of its life as bears on the cluster that was asked for."""

    relation: Relation  # to the branch that holds it
    cluster: int
    episodes: tuple[Episode, ...]  # none where they are told elsewhere, or too far away

    def walk(self) -> Iterator[tuple[Branch, Episode, Branch]]:
        """Every branch below: the one that holds it, the episode, and itself."""
        for episode in self.episodes:
            for branch in episode.branches:
                yield self, episode, branch
                yield from branch.walk()


@dataclass(frozen=True)
class Life:
    """All that is known of the clusters of one id: one, unless fits of their own gave the id again."""

    cluster: int
    lives: tuple[Branch, ...]
    lineage: Lineage

    @property
    def lives_on(self) -> Node | None:
        """The cluster in the newest generation; None if it is not there."""
        newest = max(self.lineage.generations)
        nodes = self.lineage.nodes(self.cluster)
        return next((node for node in nodes if node.generation == newest and node.event != DIED), None)


def history(table: Collection, name: str, cluster: int) -> Life:
    """The life of a cluster through all generations, ended ones too. Reads no rows of images.

    Raises ShoalError, with the nearest ids, if there never was such a cluster.
    """
    lineage = Lineage(table.clustering(name))
    nodes = lineage.nodes(cluster)
    if not nodes:
        near = sorted(lineage.clusters, key=lambda each: (abs(each - cluster), each))[:3]
        raise ShoalError(
            f"Clustering {name} never had a cluster {cluster}; the nearest it has or had are "
            f"{', '.join(map(str, near)) or 'none'}. `shoal history TABLE` lists those that live."
        )
    walk = _Walk(lineage)
    lives = [walk.branch("itself", cluster, life, 0) for life in _lives(lineage, nodes)]
    return Life(cluster, tuple(lives), lineage)


def _lives(lineage: Lineage, nodes: Sequence[Node]) -> list[list[Node]]:
    """Nodes that continue each other; what continues nothing is another cluster of the same id."""
    lives: list[list[Node]] = []
    life_of: dict[int | None, list[Node]] = {}
    for node in nodes:
        life = life_of.get(lineage.parent(node.generation))
        if life is None or _begins(node):
            life = []
            lives.append(life)
        life.append(node)
        if node.event != DIED:
            life_of[node.generation] = life
    return lives


def _begins(node: Node) -> bool:
    return node.event == BORN or (node.event in (SPLIT, MERGED) and node.cluster not in node.parents)


@dataclass(frozen=True)
class _Walk:
    lineage: Lineage
    told: set[tuple[bool, int]] = field(default_factory=set)  # whether as a descendant, and the cluster

    def branch(self, relation: Relation, cluster: int, nodes: Sequence[Node], depth: int) -> Branch:
        """A cluster with the relatives of each episode: of ancestors only ancestors, of descendants descendants."""
        episodes = []
        side = relation == "split off", cluster
        is_told = depth > _DEPTH or (depth > 0 and side in self.told)  # else one of many merges comes up many times
        self.told.add(side)
        for run in self._runs(nodes) if not is_told else ():
            first = run[0]
            before = () if relation == "split off" and first is nodes[0] else self._origins(first, relation, depth)
            later = self._heirs(first, depth) if relation in ("itself", "split off") else ()
            episodes.append(Episode(tuple(run), self.lineage.parent(first.generation), (*before, *later)))
        return Branch(relation, cluster, tuple(episodes))

    def _runs(self, nodes: Sequence[Node]) -> list[list[Node]]:
        """Generations one after the other in which nothing happened are one run; every other node is its own."""
        runs: list[list[Node]] = []
        for node in nodes:
            follows = bool(runs) and self.lineage.parent(node.generation) == runs[-1][-1].generation
            if follows and self._merely_kept(runs[-1][-1]) and self._merely_kept(node):
                runs[-1].append(node)
            else:
                runs.append([node])
        return runs

    def _merely_kept(self, node: Node) -> bool:
        return node.event == KEPT and not self._offspring(node)

    def _origins(self, node: Node, relation: Relation, depth: int) -> Iterator[Branch]:
        """The other clusters that this one came from or took in, as they were until then."""
        line = set(self.lineage.ancestors(node.generation))
        how: Relation = "absorbed" if node.event == MERGED else "from"
        for parent in node.parents:
            if parent != node.cluster:
                nodes = [each for each in self.lineage.nodes(parent) if each.generation in line]
                yield self.branch(how, parent, nodes, depth + 1)

    def _heirs(self, node: Node, depth: int) -> Iterator[Branch]:
        """What came from this cluster, as it went on from there; or what took it in."""
        for child in self._offspring(node):
            line = self.lineage.descendants(child.generation)
            nodes = [each for each in self.lineage.nodes(child.cluster) if each.generation in line]
            yield self.branch("split off", child.cluster, nodes, depth + 1)
        if node.event == DIED:
            for other in self.lineage.changes[node.generation]:
                if other.event == MERGED and node.cluster in other.parents:
                    yield Branch("went into", other.cluster, ())

    def _offspring(self, node: Node) -> list[Node]:
        """Clusters that began as part of this one; within a fit from scratch that is no event."""
        if self.lineage.parent(node.generation) is None:
            return []
        began = (each for each in self.lineage.changes[node.generation] if _begins(each) and each.event != MERGED)
        return [each for each in began if node.cluster in each.parents]
