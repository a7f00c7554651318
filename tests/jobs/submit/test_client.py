"""What a cluster says no with, as sentences; clusters themselves are in tests/integration/test_submit.py."""

from __future__ import annotations

import http.server
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import typer
from commands import shoal
from dashboard import Dashboard
from head import free_port

from jobs.submit.address import find_address
from jobs.submit.client import Client, Node, UnreachableError, is_here
from jobs.submit.commands import _named
from models.errors import ShoalError


@contextmanager
def answering(code: int, body: bytes, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """A server that is no Ray."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"{'http' if tls is None else 'https'}://127.0.0.1:{server.server_port}"
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


def test_a_cluster_that_does_not_say_which_machines_it_has_has_none_and_a_silent_one_is_no_cluster(
    dashboard: Dashboard,
) -> None:
    dashboard.tell((500, "stack\nno such thing"), path="/api/v0/nodes")
    assert dashboard.client.nodes() == []
    dashboard.tell((0, ""), path="/api/v0/nodes")
    with pytest.raises(UnreachableError, match="does not answer"):
        dashboard.client.nodes()


def test_machines_are_asked_for_that_are_up_however_many_there_are(dashboard: Dashboard) -> None:
    node = {"node_ip": "10.0.0.1", "is_head_node": True, "resources_total": {"CPU": 8.0}}
    dashboard.tell((200, {"data": {"result": {"result": [node]}}}), path="/api/v0/nodes")
    assert dashboard.client.nodes() == [Node("10.0.0.1", True, {"CPU": 8.0})]
    asked = parse_qs(urlsplit(dashboard.asked[-1]).query)
    assert (asked["limit"], asked["detail"]) == (["10000"], ["1"])
    assert [asked[f"filter_{part}"] for part in ("keys", "predicates", "values")] == [["state"], ["="], ["ALIVE"]]


@pytest.mark.parametrize(("direct", "said"), [("", "does not answer"), ("elsewhere.invalid", "No Ray dashboard")])
def test_behind_a_proxy_the_proxy_is_asked(direct: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "ALL_PROXY", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("NO_PROXY", direct)
    with pytest.raises(UnreachableError, match=said):
        Client(find_address("http://elsewhere.invalid:8265"))


def test_a_certificate_that_nobody_signed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with: install the package openssl")
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "1",
    ]
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*make, *names, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with answering(404, b"", context) as url:
        with pytest.raises(ShoalError, match="does not trust; set REQUESTS_CA_BUNDLE"):
            Client(find_address(url))
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        with pytest.raises(ShoalError, match="as Ray's dashboard does"):
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


def test_ctrl_c_while_a_job_is_handed_over_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as left, _named("shoal-ab-1"):
        raise KeyboardInterrupt
    assert left.value.exit_code == 130
    assert "job shoal-ab-1 may run already" in capsys.readouterr().err


def test_options_after_the_command_are_the_commands_own() -> None:
    assert "No such option: --watch" in shoal("submit", "demo", "--watch").output
