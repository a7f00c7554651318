"""Numbers as a reader sees them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from jobs.report import wording


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "0%"),
        (1.0, "100%"),
        (0.5, "50%"),
        (0.1234, "12.3%"),
        (0.00001, "<0.1%"),
        (0.99996, ">99.9%"),
        (0.0006, "0.1%"),
        (None, "–"),
        (float("nan"), "–"),
    ],
)
def test_percent(share: float | None, text: str) -> None:
    assert wording.percent(share) == text


def test_percent_without_decimals_still_keeps_the_ends_exact() -> None:
    assert [wording.percent(share, 0) for share in (0.996, 0.004, 1.0, 0.514)] == [">99%", "<1%", "100%", "51%"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (161, "2 min 41 s"),
        (3_600, "1 h"),
        (30_120, "8 h 22 min"),
        (180_000, "2 d 2 h"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert wording.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.8314, "0.831"),
        (-0.5, "−0.500"),
        (1234.56, "1,234.6"),
        (-1.2e9, "−1,200,000,000"),
        (None, "–"),
        (float("nan"), "–"),
        (float("-inf"), "−∞"),
    ],
)
def test_number(value: float | None, text: str) -> None:
    assert wording.number(value) == text


def test_signed_shows_the_sign_of_a_log_ratio() -> None:
    assert [wording.signed(value) for value in (12.5, -35.25, float("nan"), None)] == ["+12.5", "−35.2", "–", "–"]


def test_byte_range_is_inclusive_like_a_range_request() -> None:
    assert wording.byte_range(512, 1536) == "512–1,535"
    assert wording.byte_range(512, 512) == wording.byte_range(512, None) == "at 512"
    assert wording.byte_range(None, None) == "–"


def test_counted_and_cluster_list() -> None:
    assert [wording.counted(value, "pass", "passes") for value in (1, 2_000)] == ["1 pass", "2,000 passes"]
    assert wording.cluster_list((3, -1, 10)) == "3, noise, 10"


def test_moment_shows_a_time_zone_only_when_known() -> None:
    assert wording.moment(datetime(2026, 3, 1, 9, 5, tzinfo=UTC)) == "1 March 2026, 09:05 UTC"
    assert wording.moment(datetime(2026, 3, 1, 9, 5)) == "1 March 2026, 09:05"
