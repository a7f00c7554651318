from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.preprocessing import Preprocessing
from pipeline.extract.ledger import Attempt
from pipeline.extract.prepare import Batch, LocalSource, Preparer, UnreadableError
from pipeline.ingest.decode import Undecodable
from pipeline.ingest.shards import Reject, Sample, ShardSummary
from pipeline.tables.schema import Reason


def sample(number: int, image: bytes = b"x") -> Sample:
    return Sample(f"k{number}", "s.tar", 512 * number, len(image), "label", image, "png")


def reject(number: int) -> Reject:
    return Reject(f"k{number}", "s.tar", None, None, None, Reason.no_image, "")


def decoder(image: bytes) -> Tensor:
    if image == b"undecodable":
        raise Undecodable(Reason.truncated_image, "half of it")
    if image == b"bug":
        raise ZeroDivisionError("by a bug in the decoder")
    return torch.full((3, 4, 4), image[0], dtype=torch.uint8)


FOUR_PIXELS = Preprocessing(size=2, resize=2, fit="squash")


@pytest.fixture
def preparer(torch_threads: None) -> Preparer:
    return Preparer(decoder, FOUR_PIXELS, threads=2, ahead_bytes=2**20)


def keys(batches: Iterator[Batch]) -> list[list[str]]:
    return [[item.key for item in batch.items] for batch in batches]


ITEMS = [sample(0), reject(1), reject(2), sample(3), sample(4), reject(5)]
CAREFUL = Attempt(1, frozenset())


def test_a_batch_has_as_many_images_as_asked_and_any_number_of_rejects(preparer: Preparer) -> None:
    assert keys(preparer.batches(ITEMS, 2)) == [["k0", "k1", "k2", "k3"], ["k4", "k5"]]


def test_careful_batches_are_the_same_batches(preparer: Preparer) -> None:
    careful = preparer.careful_batches(ITEMS, 2, CAREFUL, lambda _: None)
    assert keys(careful) == keys(preparer.batches(ITEMS, 2))


def test_pixels_are_decoded_and_resized_and_the_bytes_are_dropped(preparer: Preparer) -> None:
    [batch] = preparer.batches([sample(7, b"\x05"), reject(8), sample(9, b"\x06")], 4)
    assert batch.pixels_NCHW.tolist() == [[[[level] * 2] * 2] * 3 for level in (5, 6)]
    assert batch.items[0] == Sample("k7", "s.tar", 3584, 1, "label", b"", "png")
    assert batch.items[1] == reject(8)


def test_whatever_a_decoder_raises_is_a_reject(preparer: Preparer) -> None:
    [batch] = preparer.batches([sample(0, b"undecodable"), sample(1, b"bug")], 4)
    assert list(batch.items) == [
        Reject("k0", "s.tar", 0, 11, "label", Reason.truncated_image, "half of it"),
        Reject("k1", "s.tar", 512, 3, "label", Reason.corrupt_image, "ZeroDivisionError: by a bug in the decoder"),
    ]
    assert len(batch.pixels_NCHW) == 0


def test_seconds_are_those_of_their_batch(preparer: Preparer) -> None:
    batches = list(preparer.batches([sample(i) for i in range(5)], 2))
    assert all(batch.seconds["decode"] > 0 for batch in batches)
    assert sum(batch.seconds["read"] for batch in batches) > 0


def test_a_consumer_that_stops_half_way_leaves_no_thread_behind(preparer: Preparer) -> None:
    read: list[int] = []

    def items() -> Iterator[Sample]:
        for number in range(100):
            read.append(number)
            yield sample(number)

    batches = preparer.batches(items(), 4)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    stopped = len(read)
    assert [batch.items[0].key for batch in preparer.batches([sample(0)], 4)] == ["k0"]
    assert len(read) == stopped


def test_a_source_ends_with_the_summary_of_its_shard(
    preparer: Preparer, tar: Callable[..., str], png: Callable[..., bytes], tmp_path: Path
) -> None:
    shard = tar(tmp_path / "s.tar", [(f"{i}.png", png(i)) for i in range(5)])
    *batches, summary = LocalSource(preparer, 2, 2**20).open(shard, Attempt(0, frozenset()), lambda _: None)
    assert [len(batch.pixels_NCHW) for batch in batches if isinstance(batch, Batch)] == [2, 2, 1]
    assert isinstance(summary, ShardSummary)
    assert (summary.samples, summary.size) == (5, Path(shard).stat().st_size)
    fractions = [batch.fraction for batch in batches if isinstance(batch, Batch)]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1


@pytest.mark.parametrize("attempt", [Attempt(0, frozenset()), Attempt(1, frozenset())])
def test_storage_that_fails_is_told_from_damage(preparer: Preparer, attempt: Attempt) -> None:
    def items() -> Iterator[Sample]:
        yield sample(0)
        raise ConnectionError("reset by peer")

    read = (
        preparer.careful_batches(items(), 1, attempt, lambda _: None)
        if attempt.careful
        else preparer.batches(items(), 1)
    )
    with pytest.raises(UnreadableError, match="ConnectionError: reset by peer"):
        list(read)


def test_careful_attempts_announce_each_image_before_it_is_decoded_and_all_clear_after(preparer: Preparer) -> None:
    announced: list[int | None] = []
    list(preparer.careful_batches([sample(1), reject(2), sample(3, b"bug")], 4, CAREFUL, announced.append))
    assert announced == [512, None, 1536, None]


def test_a_convicted_image_is_a_reject_and_is_neither_announced_nor_decoded(preparer: Preparer) -> None:
    announced: list[int | None] = []
    attempt = Attempt(3, frozenset({512}))
    [batch] = preparer.careful_batches([sample(1, b"bug"), sample(2)], 4, attempt, announced.append)
    first, second = batch.items
    assert isinstance(first, Reject)
    assert first.reason == Reason.kills_decoder
    assert isinstance(second, Sample)
    assert announced == [1024, None]
