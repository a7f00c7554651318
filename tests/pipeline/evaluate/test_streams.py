"""Generated streams: their laws, and the truth that they come with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.evaluate.following import Seen, Story, arrive, begun, born, joined, kept_share, owned
from pipeline.evaluate.streams import Batch, Drift, Mixture, Unseen
from pipeline.tables.samples import embedding_matrix

SHORT = Drift(clusters=4, dim=4, increments=20, rows=120, window=4, meet=8, stop=6, apart=10.0, seed=2)


def seen(label_N: list[int], cluster_N: list[int], first: int = 0) -> Seen:
    keys = pa.chunked_array([[f"k{number}" for number in range(first, first + len(label_N))]])
    return Seen(keys, np.array(label_N), np.array(cluster_N))


def test_rows_of_a_mixture_have_its_means_shapes_and_weights() -> None:
    mixture = Mixture.drawn(3, 2, 5.0, np.random.default_rng(0))
    batch = mixture.draw(60_000, np.random.default_rng(1))
    assert batch.x_ND.dtype == np.float32
    for k in range(3):
        rows = batch.x_ND[batch.label_N == k]
        assert len(rows) / 60_000 == pytest.approx(mixture.weight_K[k], abs=0.01)
        np.testing.assert_allclose(rows.mean(axis=0), mixture.mean_KD[k], atol=0.05)
        np.testing.assert_allclose(np.cov(rows.T), mixture.shape_KDD[k] @ mixture.shape_KDD[k].T, atol=0.05)


def test_equal_seeds_give_equal_rows_and_other_seeds_others() -> None:
    def draw(seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return Mixture.drawn(5, 3, 1.0, rng).with_births(2, 0.5, 4.0, rng).draw(50, rng).x_ND

    np.testing.assert_array_equal(draw(3), draw(3))
    assert not np.array_equal(draw(3), draw(4))


def test_the_born_are_so_many_deviations_from_parents_of_their_own() -> None:
    old = Mixture.drawn(6, 5, 100.0, np.random.default_rng(0))
    new = old.with_births(4, share=0.2, distance=8.0, rng=np.random.default_rng(1))
    assert len(new) == 10
    np.testing.assert_array_equal(new.mean_KD[:6], old.mean_KD)
    assert new.weight_K[6:].sum() == pytest.approx(0.2)
    assert new.weight_K.sum() == pytest.approx(1.0)
    away_BKD = new.mean_KD[6:, None] - old.mean_KD
    away_BKD = np.stack([np.linalg.solve(old.shape_KDD[k], away_BKD[:, k].T).T for k in range(6)], axis=1)
    away_BK = np.linalg.norm(away_BKD, axis=2)
    np.testing.assert_allclose(away_BK.min(axis=1), 8.0)
    assert len(set(away_BK.argmin(axis=1))) == 4


def test_drifting_means_move_by_steps_and_keep_apart_but_for_the_two_that_meet() -> None:
    mean_TKD = np.stack([SHORT.mean(time) for time in range(1 - SHORT.window, SHORT.increments + 1)])
    step_TK = np.linalg.norm(np.diff(mean_TKD, axis=0), axis=2)
    np.testing.assert_allclose(step_TK[:, [0, 2]], SHORT.step)  # straight
    np.testing.assert_allclose(step_TK[:, 3], SHORT.step, rtol=0.05)  # along an arc
    bend = mean_TKD[-1, 3] - 2 * mean_TKD[len(mean_TKD) // 2, 3] + mean_TKD[0, 3]
    assert np.linalg.norm(bend) > SHORT.step
    gap_T = np.linalg.norm(mean_TKD[:, 0] - mean_TKD[:, 1], axis=1)
    zero = SHORT.window - 1  # where time is 0
    np.testing.assert_allclose(gap_T[zero : zero + 3], [10.0, 8.75, 7.5])
    assert (gap_T[zero + SHORT.meet :] == 0).all()
    apart = [np.linalg.norm(mean_TKD[:, a] - mean_TKD[:, b], axis=1).min() for a, b in ((0, 2), (0, 3), (1, 2), (2, 3))]
    assert min(apart) >= SHORT.apart


def test_rows_of_a_drifting_stream_are_where_the_means_are_and_one_gaussian_ends() -> None:
    batches = list(SHORT.later())
    assert len(SHORT.base()) == SHORT.window
    for time, batch in enumerate(batches, start=1):
        assert set(batch.label_N) == set(range(4 if time < SHORT.stop else 3))
        away_ND = batch.x_ND - SHORT.mean(time)[batch.label_N]
        assert abs(away_ND).max() < 6
        assert away_ND.std() == pytest.approx(1.0, abs=0.15)


def test_the_truth_of_a_drifting_stream_is_what_is_in_the_window() -> None:
    """Rows of the last Gaussian come until increment 5; of a window of 4 they are gone at 9."""
    assert SHORT.dying == (8, 10)
    assert SHORT.living(8) == [0, 1, 2, 3]
    assert SHORT.living(9) == [0, 1, 2]
    assert SHORT.merging == (5, 14)  # the gap is 3.75 at increment 5


def test_paths_that_cannot_keep_apart_are_refused() -> None:
    with pytest.raises(ValueError, match=r"cannot keep 12\.0 deviations apart"):
        Drift(clusters=25, dim=2, increments=1, window=1, meet=1).mean(0)


def test_unseen_classes_come_in_the_second_half_and_no_row_is_left_out() -> None:
    rng = np.random.default_rng(0)
    label_N = rng.integers(0, 5, 1_000)
    x_ND = np.arange(1_000, dtype=np.float32)[:, None]
    stream = Unseen(x_ND, label_N, unseen=(1, 4), increments=3, rows=50)
    base, later = stream.base(files=4), stream.later()
    assert (len(base), len(later)) == (4, 6)
    assert not any(np.isin(batch.label_N, (1, 4)).any() for batch in base + later[:3])
    assert all(np.isin(batch.label_N, (1, 4)).all() for batch in later[3:])
    assert [len(batch) for batch in later[:3]] == [50, 50, 50]
    rows = np.concatenate([batch.x_ND for batch in base + later])[:, 0].astype(int)
    assert sorted(rows) == list(range(1_000))
    np.testing.assert_array_equal(np.concatenate([batch.label_N for batch in base + later]), label_N[rows])


def test_batches_become_shards_in_the_order_of_arrival(tmp_path: Path) -> None:
    table = begun(tmp_path / "table", 2)
    first, second = (Batch(np.full((3, 2), value, np.float32), np.array([value] * 3)) for value in (7, 8))
    arrive(table, [first, second])
    version = arrive(table, [second])
    files = table.samples.files()
    assert version == table.samples.version
    assert [file.shard for file in files] == ["000000", "000001", "000002"]
    rows = table.samples.read(files[1], columns=["key", "label", "embedding"])
    assert rows["key"].to_pylist() == ["000001-000000", "000001-000001", "000001-000002"]
    assert rows["label"].to_pylist() == ["8"] * 3
    np.testing.assert_array_equal(embedding_matrix(rows), second.x_ND)


def test_a_window_loses_its_oldest_shard_in_the_commit_that_adds_one(tmp_path: Path) -> None:
    table = begun(tmp_path / "table", 1)
    batch = Batch(np.zeros((2, 1), np.float32), np.zeros(2, np.int64))
    before = arrive(table, [batch, batch])
    after = arrive(table, [batch], leaving=1)
    assert after == before + 1
    assert [file.shard for file in table.samples.files()] == ["000001", "000002"]
    assert [file.shard for file in table.samples.files(version=before)] == ["000000", "000001"]


def test_rows_keep_their_id_by_key_and_only_those_that_are_in_both_count() -> None:
    before = seen([0, 0, 1, 1], [5, 5, 6, 6])
    after = seen([0, 1, 1, 2], [5, 6, 9, 9], first=1)
    assert kept_share(before, after) == pytest.approx(2 / 3)  # k1 and k2 keep theirs, k3 does not
    assert kept_share(before, after, labels=[0]) == 1.0
    assert kept_share(before, after, labels=[1]) == 0.5
    assert kept_share(before, seen([0], [5], first=9)) == 1.0


def test_a_class_is_born_with_a_new_id_and_nearly_alone() -> None:
    before = seen([0] * 10, [1] * 10)
    own = seen([0] * 10 + [3] * 10, [1] * 10 + [2] * 10)
    assert born(before, own, [3]) == {3: 2}
    assert born(own, own, [3]) == {}  # its id is not new
    assert owned(own, [0, 3, 5]) == {0: 1, 3: 2}
    assert born(before, seen([0] * 10 + [3] * 10, [1] * 20), [3]) == {}  # in an old cluster
    assert born(before, seen([0] * 10 + [3] * 10, [1] * 8 + [2] * 12), [3]) == {}  # with too many others
    assert born(before, seen([0] * 10 + [3] * 10, [1] * 12 + [2] * 8), [3]) == {}  # in two clusters
    assert born(before, before, [3]) == {}


def test_what_rows_were_first_given_is_kept_as_others_come() -> None:
    given = joined(seen([0, 1], [5, 6]), seen([0, 1, 1], [7, 7, 7]))
    assert given.cluster_N.tolist() == [5, 6, 7]
    assert len(given.key_N) == 3


def row(event: str, cluster: int, *parents: int) -> dict[str, object]:
    return {"event": event, "cluster": cluster, "parents": list(parents)}


def test_a_story_counts_the_merge_and_the_death_that_are_true() -> None:
    story = Story(SHORT, {0: 10, 1: 11, 2: 12, 3: 13})
    four = seen([0, 1, 2, 3], [10, 11, 12, 13])
    assert story.take(1, four, []) == 1.0
    merged = seen([0, 1, 2, 3], [11, 11, 12, 13])
    assert story.take(6, merged, [row("merged", 11, 10, 11), row("died", 10, 10)]) == 1.0
    assert story.take(9, seen([0, 1, 2], [11, 11, 12]), [row("died", 13, 13)]) == 1.0
    assert (story.merges, story.deaths, story.others, story.share) == (1, 1, [], 1.0)


def test_a_story_counts_what_did_not_happen() -> None:
    story = Story(SHORT, {0: 10, 1: 11, 2: 12, 3: 13})
    lost = seen([0, 1, 2, 3], [10, 11, 12, 14])
    assert story.take(2, lost, [row("born", 14), row("died", 13, 13)]) == 0.75  # too early, and not dead
    assert story.take(7, lost, [row("merged", 10, 10, 12), row("died", 12, 12)]) == 0.75  # not the two that met
    assert story.take(20, lost, [row("merged", 10, 10, 11), row("died", 11, 11)]) == pytest.approx(1.0)  # too late
    assert (story.merges, story.deaths) == (0, 0)
    assert [text.split(":")[0] for text in story.others] == ["2", "2", "7", "20"]
