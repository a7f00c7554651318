from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from pipeline.extract.ledger import Attempt
from pipeline.extract.prepare import Batch, Prepared, Preparer
from pipeline.ingest.decode import Undecodable
from pipeline.ingest.shards import Reject, Sample
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
    return torch.full((3, 1, 1), image[0], dtype=torch.uint8)


@pytest.fixture
def preparer(torch_threads: None) -> Preparer:
    return Preparer(decoder, lambda image: image + 1, threads=2)


def keys(batches: Iterator[Batch]) -> list[list[str]]:
    return [[item.sample.key if isinstance(item, Prepared) else item.key for item in batch] for batch in batches]


ITEMS = [sample(0), reject(1), reject(2), sample(3), sample(4), reject(5)]
CAREFUL = Attempt(1, frozenset())


def test_a_batch_has_as_many_images_as_asked_and_any_number_of_rejects(preparer: Preparer) -> None:
    assert keys(preparer.batches(ITEMS, 2)) == [["k0", "k1", "k2", "k3"], ["k4", "k5"]]


def test_careful_batches_are_the_same_batches(preparer: Preparer) -> None:
    careful = preparer.careful_batches(ITEMS, 2, CAREFUL, lambda _: None)
    assert keys(careful) == keys(preparer.batches(ITEMS, 2))


def test_pixels_are_decoded_and_resized_and_the_bytes_are_dropped(preparer: Preparer) -> None:
    [[prepared]] = preparer.batches([sample(7, b"\x05")], 4)
    assert isinstance(prepared, Prepared)
    assert prepared.pixels_CHW.tolist() == [[[6]]] * 3
    assert prepared.sample == Sample("k7", "s.tar", 3584, 1, "label", b"", "png")


def test_whatever_a_decoder_raises_is_a_reject(preparer: Preparer) -> None:
    [batch] = preparer.batches([sample(0, b"undecodable"), sample(1, b"bug")], 4)
    assert batch == [
        Reject("k0", "s.tar", 0, 11, "label", Reason.truncated_image, "half of it"),
        Reject("k1", "s.tar", 512, 3, "label", Reason.corrupt_image, "ZeroDivisionError: by a bug in the decoder"),
    ]


def test_careful_attempts_announce_each_image_before_it_is_decoded_and_all_clear_after(preparer: Preparer) -> None:
    announced: list[int | None] = []
    list(preparer.careful_batches([sample(1), reject(2), sample(3, b"bug")], 4, CAREFUL, announced.append))
    assert announced == [512, None, 1536, None]


def test_a_convicted_image_is_a_reject_and_is_neither_announced_nor_decoded(preparer: Preparer) -> None:
    announced: list[int | None] = []
    attempt = Attempt(3, frozenset({512}))
    [[first, second]] = preparer.careful_batches([sample(1, b"bug"), sample(2)], 4, attempt, announced.append)
    assert isinstance(first, Reject)
    assert first.reason == Reason.kills_decoder
    assert isinstance(second, Prepared)
    assert announced == [1024, None]
