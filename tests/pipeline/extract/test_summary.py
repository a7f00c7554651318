import itertools
import time
from dataclasses import replace

import pytest

from models.errors import ShoalError
from pipeline.extract.resume import Todo
from pipeline.extract.shard import ShardResult
from pipeline.extract.summary import Tally
from pipeline.ingest.shards import Reject
from pipeline.tables.schema import Reason

TODO = Todo(shards=["a", "b", "c", "d"], skipped=["z"], changed=["z"])


def result(shard: str, images: int, *rejects: Reason) -> ShardResult:
    examples = tuple(Reject(f"{i}", shard, None, None, None, reason, "") for i, reason in enumerate(rejects))
    counts = {str(reason): rejects.count(reason) for reason in rejects}
    return ShardResult(shard, images=images, rejects=counts, examples=examples)


def test_times_are_those_of_the_first_worker_and_the_last_commit() -> None:
    tally = Tally(TODO)
    now = time.time()
    for shard, ready, first in (("a", now + 3, now + 5), ("b", now + 2, now + 6)):
        tally.add([replace(result(shard, 10), ready_at=ready, first_at=first, seconds={"forward": 1.5})])
    with_one = tally.summary()
    assert with_one.startup_seconds == pytest.approx(5, abs=0.1)
    tally.committed()
    assert tally.summary().stage_seconds["forward"] == 3
    assert tally.summary().steady_seconds == pytest.approx(-2, abs=0.5)


def test_nothing_done_is_no_rate() -> None:
    summary = Tally(TODO).summary()
    assert (summary.images_per_second, summary.startup_seconds) == (0, None)


RESULTS = [
    result("a", 5, Reason.no_image, Reason.corrupt_image),
    result("b", 7, Reason.no_image, Reason.no_image, Reason.empty_image),
    result("c", 0, Reason.empty_image),
    ShardResult("d", failure="gone"),
]


def test_the_sum_does_not_depend_on_which_shard_came_first() -> None:
    for order in itertools.permutations(RESULTS):
        tally = Tally(TODO)
        for each in order:
            tally.add([each])
        summary = tally.summary()
        assert (summary.images, summary.rejected, summary.shards_done, summary.shards_skipped) == (12, 6, 3, 1)
        assert summary.rejects == {"corrupt_image": 1, "empty_image": 2, "no_image": 3}
        assert summary.shards_failed == {"d": "gone"}
        assert summary.shards_changed == ["z"]
        assert [(reject.shard, reject.key) for reject in summary.examples] == [
            ("a", "0"), ("a", "1"), ("b", "0"), ("b", "1"), ("b", "2")
        ]  # fmt: skip
        assert tally.in_table == 4


def test_one_reject_too_many_is_an_error_that_says_where() -> None:
    tally = Tally(TODO)
    tally.add(RESULTS[:1])
    tally.check(None)
    tally.check(2)
    with pytest.raises(ShoalError, match=r"^2 samples .* beside 5 .*max_rejects = 1, .*no_image in a;"):
        tally.check(1)
