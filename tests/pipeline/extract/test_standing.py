import time

import pytest

from pipeline.extract.ledger import Standing
from pipeline.extract.resume import Todo
from pipeline.extract.standing import Pace, Watch

TODO = Todo(shards=["a", "b", "c", "d"], skipped=["z"], changed=[])


def test_a_steady_run_has_its_rate_and_the_time_that_is_left() -> None:
    pace = Pace(shards=4)
    for second in range(5):
        pace.see(Standing(second * 0.5, second * 100, second, waiting=64), now_s=1000.0 + second)
    assert pace.left_s == pytest.approx(4.0)  # 2 of 4 shards at half a shard a second
    assert pace.words() == "400 images, 100/s, 0:04 left, 4 rejects, 64 waiting"


def test_the_start_of_the_workers_is_no_part_of_the_rate() -> None:
    pace = Pace(shards=2)
    for second in range(60):
        pace.see(Standing(), float(second))
    pace.see(Standing(0.5, 50), 60.0)
    assert pace.words() == ""
    pace.see(Standing(1.0, 100), 61.0)
    assert pace.words() == "100 images, 50/s, 0:02 left, 0 rejects, 0 waiting"


def test_long_times_have_hours() -> None:
    pace = Pace(shards=10_000)
    pace.see(Standing(1.0, 10), 0.0)
    pace.see(Standing(2.0, 20), 10.0)
    assert "27:46:20 left" in pace.words()


def test_a_rate_follows_what_happens_now() -> None:
    pace = Pace(shards=100)
    images = 0
    for second in range(120):
        images += 100 if second < 60 else 10
        pace.see(Standing(second / 100, images), float(second))
    assert "10/s" in pace.words()


def test_what_a_dead_worker_did_is_no_negative_rate() -> None:
    pace = Pace(shards=10)
    for second, images in enumerate([0, 100, 200, 50, 150]):
        pace.see(Standing(0.1 * second, images), float(second))
    assert "100/s" in pace.words()


def test_a_listener_hears_every_second_and_a_ledger_that_fails_stops_nobody() -> None:
    heard: list[tuple[str, int, int | None]] = []
    answers = iter([Standing(1.0, 100), Standing(1.5, 200)])

    def ask() -> Standing:
        return next(answers)  # and then StopIteration, as from a ledger that is gone

    with Watch(ask, lambda *call: heard.append(call), "extract", TODO) as watch:
        deadline = time.monotonic() + 30
        while len(heard) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        watch.committed(3)
    assert [call[1:] for call in heard] == [(1, 5), (1, 5), (3, 5)]
    assert heard[1][0].startswith("extract, 200 images, ")
