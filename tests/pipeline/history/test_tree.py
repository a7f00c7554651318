"""The lives of clusters whose every event was put there by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from histories import Told

from models.errors import ShoalError
from pipeline.history import tree
from pipeline.history.lineage import Lineage
from pipeline.history.tree import Branch, history

Shape = list[tuple[str, list[int], list[tuple[str, int, "Shape"]]]]


def _shape(branch: Branch) -> Shape:
    """Per episode: event, generations, and per relative its relation, id and episodes."""
    return [
        (
            episode.event,
            [node.generation for node in episode.nodes],
            [(each.relation, each.cluster, _shape(each)) for each in episode.branches],
        )
        for episode in branch.episodes
    ]


def _lives(told: Told, cluster: int) -> list[Shape]:
    return [_shape(life) for life in history(told.collection, "dpm", cluster).lives]


def test_what_split_off_is_told_to_its_end(told: Told) -> None:
    four: Shape = [("split", [3], []), ("died", [4], [("went into", 1, [])])]
    assert _lives(told, 0) == [
        [("born", [1], []), ("kept", [2], []), ("split", [3], [("split off", 4, four)]), ("kept", [4, 5], [])]
    ]


def test_whom_it_came_from_is_told_until_then(told: Told) -> None:
    nought: Shape = [("born", [1], []), ("kept", [2], [])]
    assert _lives(told, 4) == [[("split", [3], [("from", 0, nought)]), ("died", [4], [("went into", 1, [])])]]


def test_what_was_absorbed_is_told_with_its_own_origin(told: Told) -> None:
    nought: Shape = [("born", [1], []), ("kept", [2], [])]
    four: Shape = [("split", [3], [("from", 0, nought)])]
    two: Shape = [("born", [1], []), ("kept", [2, 3, 4], [])]
    assert _lives(told, 1) == [
        [
            ("born", [1], []),
            ("kept", [2, 3], []),
            ("merged", [4], [("absorbed", 4, four)]),
            ("merged", [5], [("absorbed", 2, two)]),
        ]
    ]


def test_who_lives_on(told: Told) -> None:
    node = history(told.collection, "dpm", 1).lives_on
    assert node is not None
    assert (node.generation, node.size) == (5, 8)
    assert history(told.collection, "dpm", 4).lives_on is None


def test_sizes_and_ratios_are_those_of_the_tables(told: Told) -> None:
    (life,) = history(told.collection, "dpm", 0).lives
    nodes = [node for episode in life.episodes for node in episode.nodes]
    assert [(node.size, node.log_hastings) for node in nodes] == [(4, None), (6, None), (4, 2.5), (4, None), (4, None)]


def test_an_unknown_cluster_is_a_sentence_with_the_nearest(told: Told) -> None:
    with pytest.raises(ShoalError, match=r"never had a cluster 9; the nearest it has or had are 4, 3, 2\."):
        history(told.collection, "dpm", 9)


@pytest.mark.slow
def test_a_relative_is_told_once(copy: Told) -> None:
    labels = {key: 3 if cluster == 0 else cluster for key, cluster in copy.labels[5].items()}
    copy.publish(labels, {3: ("merged", (3, 0), None)})
    labels = dict.fromkeys(labels, 3)
    copy.publish(labels, {3: ("merged", (3, 1), None)})
    (life,) = history(copy.collection, "dpm", 3).lives
    found = [(branch.relation, branch.cluster, bool(branch.episodes)) for _, _, branch in life.walk()]
    assert found == [
        ("absorbed", 0, True),
        ("absorbed", 1, True),
        ("absorbed", 4, True),
        ("from", 0, False),  # above
        ("absorbed", 2, True),
    ]


@pytest.fixture(scope="module")
def rolled(told: Told, tmp_path_factory: pytest.TempPathFactory) -> Told:
    """3 again as 6, and as 7."""
    rolled = told.copied(tmp_path_factory.mktemp("rolled") / "table")
    rolled.publish(rolled.labels[3], parent=3, decision="rollback to 3")
    rolled.publish(rolled.labels[3])
    return rolled


def test_a_rollback_brings_a_cluster_back_to_life(rolled: Told) -> None:
    (life,) = history(rolled.collection, "dpm", 4).lives
    assert [(each.event, each.nodes[0].generation, each.after) for each in life.episodes] == [
        ("split", 3, 2),
        ("died", 4, 3),
        ("kept", 6, 3),
    ]
    assert [node.generation for node in life.episodes[-1].nodes] == [6, 7]
    assert history(rolled.collection, "dpm", 4).lives_on is not None


def test_a_fit_of_its_own_gives_numbers_anew(copy: Told) -> None:
    copy.publish(dict.fromkeys(copy.labels[5], 4), {4: ("born", (0,), 1.0)}, parent=None, decision="fit")
    first, second = _lives(copy, 4)
    assert [each[1] for each in first] == [[3], [4]]
    assert second == [("born", [6], [("from", 0, [])])]  # 0 is of that fit alone
    assert [each[0] for each in _lives(copy, 0)[0]] == ["born", "kept", "split", "kept"]  # and not the parent of this 4


def test_relatives_of_relatives_end_somewhere(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "_DEPTH", 1)
    (life,) = history(told.collection, "dpm", 1).lives
    found = [(branch.relation, branch.cluster, bool(branch.episodes)) for _, _, branch in life.walk()]
    assert found == [("absorbed", 4, True), ("from", 0, False), ("absorbed", 2, True)]


def test_lines_of_generations(rolled: Told) -> None:
    lineage = Lineage(rolled.clustering)
    assert lineage.ancestors(6) == [3, 2, 1]
    assert lineage.descendants(3) == {3, 4, 5, 6, 7}
    assert lineage.descendants(4) == {4, 5}
    assert lineage.related(5, 6)
    assert lineage.first_seen(6) == {0: 1, 1: 1, 2: 1, 3: 2, 4: 3}
    assert lineage.sizes(4) == {0: 4, 1: 6, 2: 2, 3: 2}
    assert lineage.totals()[5] == (3, 14)
    assert lineage.clusters == [0, 1, 2, 3, 4]


def test_what_has_ended_is_still_told_and_its_parents_are_found(rolled: Told, tmp_path: Path) -> None:
    copy = rolled.copied(tmp_path / "copy")
    before = _lives(copy, 1), _lives(copy, 4)
    copy.clustering.end([2, 4])
    lineage = Lineage(copy.clustering)
    assert sorted(lineage.generations) == [1, 3, 5, 6, 7]
    assert lineage.numbers == [1, 2, 3, 4, 5, 6, 7]
    assert [lineage.parent(number) for number in lineage.numbers] == [None, 1, 2, 3, 4, 3, 6]
    assert (_lives(copy, 1), _lives(copy, 4)) == before
