"""The report's tables: order, cuts, and the sentence on why clusters were not split."""

from __future__ import annotations

import numpy as np

from jobs.report.data import MoveRow, ScoreRow
from jobs.report.tables import MAX_TABLE_CLUSTERS, MAX_TABLE_LABELS, columns, count_table, moves_view
from pipeline.evaluate.metrics import Contingency


def split(sweep: int, cluster: int, log_ratio: float | None, accepted: bool = False, why: str = "") -> MoveRow:
    return MoveRow(sweep, "split", (cluster,), log_ratio, accepted, why)


def test_columns_without_a_value_are_left_out() -> None:
    made = columns([ScoreRow("a", 3, silhouette=0.5), ScoreRow("b", 4, davies_bouldin=1.0)])
    assert [column.name for column in made] == ["Silhouette", "Davies–Bouldin"]
    assert [column.scores for column in made] == [[0.5, None], [None, 1.0]]
    assert columns([]) == []


def test_the_best_score_is_marked_only_where_models_compare() -> None:
    rows = [
        ScoreRow("a", 3, nmi=0.5, purity=0.5, davies_bouldin=1.0),
        ScoreRow("b", 9, nmi=0.4, purity=0.9, davies_bouldin=2.0),
    ]
    assert [(column.name, column.best) for column in columns(rows)] == [
        ("NMI", 0.5),
        ("Purity", None),
        ("Davies–Bouldin", 1.0),
    ]
    assert [column.best for column in columns(rows[:1])] == [None, None, None]
    assert columns([ScoreRow("a", 1, nmi=0.1), ScoreRow("b", 1, nmi=float("nan"))])[0].best is None


def test_agreement_lies_on_the_diagonal_and_noise_last() -> None:
    table = Contingency(("cat", "dog"), (-1, 4, 7, 9), np.array([[3, 0, 5, 1], [9, 8, 0, 2]]))
    made = count_table(table)
    assert made.clusters == [7, 4, 9, -1]
    assert made.rows == [("cat", [5, 0, 1, 3], 9), ("dog", [0, 8, 2, 9], 19)]
    assert (made.largest, made.hidden) == (9, "")


def test_large_tables_are_cut_to_the_largest_and_say_so() -> None:
    labels, clusters = MAX_TABLE_LABELS + 1, MAX_TABLE_CLUSTERS + 2
    count_LK = np.ones((labels, clusters), np.int64)
    count_LK[0] = 0
    made = count_table(Contingency(tuple(str(i) for i in range(labels)), tuple(range(clusters)), count_LK))
    assert (len(made.rows), len(made.clusters)) == (MAX_TABLE_LABELS, MAX_TABLE_CLUSTERS)
    assert "0" not in [label for label, _, _ in made.rows]
    assert made.hidden == "Not shown: 1 smaller label and 2 smaller clusters."
    assert made.rows[0][2] == clusters  # the total is of all clusters, shown or not


def test_moves_are_counted_by_kind_and_shown_newest_first() -> None:
    moves = [
        split(1, 0, 9.0, accepted=True),
        split(2, 0, -1.0, why="a"),
        split(2, 1, -2.0, why="b"),
        split(3, 0, -3.0, why="a"),
    ]
    moves.append(MoveRow(3, "merge", (0, 1), None, False, "a"))
    made = moves_view(moves, limit=2)
    assert made.kinds == [("split", 4, 1), ("merge", 1, 0)]
    assert made.reasons == [("a", 3), ("b", 1)]
    assert (made.rows, made.more) == ([moves[4], moves[3]], 3)


def test_the_verdict_names_the_split_that_came_closest() -> None:
    moves = [split(1, 5, 50.0), split(2, 0, -30.0), split(2, 3, -4.5), split(2, 4, 2.0, accepted=True)]
    assert moves_view(moves, 10).verdict == (
        "When splits were last proposed (sweep 2), 1 of 3 were accepted. "
        "The closest to being split was cluster 3, with a log ratio of −4.5."
    )


def test_the_verdict_without_ratios_or_splits() -> None:
    nan = float("nan")
    assert moves_view([split(4, 0, nan), split(4, 1, None)], 10).verdict.endswith("(sweep 4), 0 of 2 were accepted.")
    assert moves_view([MoveRow(1, "merge", (0, 1), -1.0, False, "")], 10).verdict == "No split was proposed."
