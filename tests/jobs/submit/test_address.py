"""Which cluster is meant, and what is no address of one."""

from __future__ import annotations

import pytest

from jobs.submit.address import DEFAULT, VARIABLE, find_address
from models.errors import ShoalError


def test_the_option_comes_before_the_variable_and_the_variable_before_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert find_address(None).url == DEFAULT
    monkeypatch.setenv(VARIABLE, "https://cluster.example/ray/")
    assert find_address(None).url == "https://cluster.example/ray"
    assert find_address("http://10.0.0.5:8265").url == "http://10.0.0.5:8265"


@pytest.mark.parametrize(
    ("url", "loopback", "open_"),
    [
        ("http://127.0.0.1:8265", True, False),
        ("http://127.9.9.9:1", True, False),
        ("http://localhost", True, False),
        ("http://[::1]:8265", True, False),
        ("http://10.0.0.5:8265", False, True),
        ("https://10.0.0.5", False, False),
        ("http://localhost.example:8265", False, True),
    ],
)
def test_where_a_token_could_be_read_on_its_way(url: str, loopback: bool, open_: bool) -> None:
    address = find_address(url)
    assert (address.is_loopback, address.is_open) == (loopback, open_)


def test_ports_are_those_of_the_scheme() -> None:
    assert [find_address(url).port for url in ("http://a", "https://a", "http://a:8265")] == [80, 443, 8265]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("10.0.0.5:6379", "where Ray's own processes meet"),
        ("localhost:8265", "where Ray's own processes meet"),
        ("ray://10.0.0.5:10001", "for Ray's client"),
        ("auto", "no http or https URL"),
        ("http://", "no http or https URL"),
        ("http://a:port", "is no URL"),
        ("http://a..b:8265", "is no URL"),
        ("http://a:8265/?x=1", "more than host, port and path"),
    ],
)
def test_what_is_no_address_of_a_dashboard(text: str, said: str) -> None:
    with pytest.raises(ShoalError, match=said) as raised:
        find_address(text)
    assert DEFAULT in str(raised.value)


def test_a_password_is_refused_and_not_repeated() -> None:
    with pytest.raises(ShoalError, match="a name or a password") as raised:
        find_address("http://me:hunter2@10.0.0.5:8265")
    assert "hunter2" not in str(raised.value)
