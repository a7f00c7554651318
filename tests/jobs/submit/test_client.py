"""What a cluster says no with, as sentences; clusters themselves are in tests/integration/test_submit.py."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from commands import shoal
from head import free_port

from jobs.submit.address import find_address
from jobs.submit.client import Client, Node, UnreachableError, is_here
from models.errors import ShoalError


@contextmanager
def answering(code: int, body: bytes) -> Iterator[str]:
    """A server that is no Ray."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("code", "body", "said"),
    [
        (401, b"Unauthorized: Missing authentication token", "wants a token; set RAY_AUTH_MODE=token with"),
        (403, b"Forbidden: Invalid authentication token", "does not accept this token"),
        (404, b"nothing here", "does not answer as Ray's dashboard does"),
        (200, b"<html>a web page</html>", "does not answer"),
        (500, b"oops", "does not answer"),
    ],
)
def test_who_lets_nobody_in_or_is_no_ray(code: int, body: bytes, said: str) -> None:
    with answering(code, body) as url, pytest.raises(ShoalError, match=said) as raised:
        Client(find_address(url))
    assert url in str(raised.value)
    assert "\n" not in str(raised.value)


def test_where_nobody_listens() -> None:
    with pytest.raises(UnreachableError, match=r"No Ray dashboard answers at .*open a tunnel"):
        Client(find_address(f"http://127.0.0.1:{free_port()}"))


def test_the_address_that_was_given_counts_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://192.0.2.1:1")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://192.0.2.1:1")
    with answering(404, b"") as url, pytest.raises(ShoalError, match=f"^{url} does not answer as"):
        Client(find_address(url))


def test_a_proxy_does_not_see_what_is_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://192.0.2.1:1")
    with answering(401, b"") as url, pytest.raises(ShoalError, match="wants a token"):
        Client(find_address(url))


def test_a_machine_knows_its_own_address() -> None:
    assert is_here([Node("127.0.0.1", True, {}), Node("192.0.2.77", False, {})])
    assert not is_here([Node("203.0.113.7", True, {})])
    assert not is_here([])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["submit", "--address", "10.0.0.5:6379", "demo"], "give the dashboard's URL"),
        (["submit", "--pin", "maybe", "demo"], "--pin is 'maybe'"),
        (["submit", "bench", "list"], "is not for a cluster"),
        (["submit", "demo", "--set", "x=1"], "there is no setting 'x'"),
        (["submit", "demoo"], "'demoo' is no command of shoal"),
        (["jobs", "list", "--address", "auto"], "give the dashboard's URL"),
        (["jobs", "logs", "j", "--address", "auto"], "give the dashboard's URL"),
        (["jobs", "stop", "j", "--address", "auto"], "give the dashboard's URL"),
    ],
)
def test_commands_refuse_in_sentences(words: list[str], said: str) -> None:
    ended = shoal(*words)
    assert ended.exit_code == 2
    assert said in ended.output
    assert "Traceback" not in ended.output


def test_options_after_the_command_are_the_commands_own() -> None:
    assert "No such option: --watch" in shoal("submit", "demo", "--watch").output
