"""A real S3 server on loopback, behind a proxy that can fail, delay and count requests.

The fixtures are in `tests/conftest.py`.
"""

from __future__ import annotations

import http.client
import http.server
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

REFUSED, DROPPED = "refused", "dropped"  # what clients repeat: 503, and no answer
UNANSWERED = "unanswered"  # done, but the client never hears of it
FORBIDDEN = "forbidden"  # 403, which nobody repeats
_ANSWERS = {
    REFUSED: (503, b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"),
    FORBIDDEN: (403, b"<Error><Code>AccessDenied</Code><Message>the-secret-of-tests may not.</Message></Error>"),
}

_HOP = ("connection", "expect", "transfer-encoding")  # headers that end at a proxy


@dataclass
class Fault:
    """What happens to the next `left` requests whose line (`PUT /bucket/key?query`) matches."""

    line: re.Pattern[str]
    kind: str
    left: int


@dataclass
class Meeting:
    """The next requests that match wait for each other, so that they race."""

    line: re.Pattern[str]
    barrier: threading.Barrier
    left: int


@dataclass
class ObjectStore:
    """The store as a test sees it; `url` is a bucket of the test's own."""

    endpoint: str  # of the proxy
    url: str = ""
    lines: list[str] = field(default_factory=list)  # every request that came
    failed: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    meetings: list[Meeting] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    writing: threading.Lock = field(default_factory=threading.Lock)  # S3 decides on one write after the other; moto not

    def fail(self, line: str, kind: str = REFUSED, times: int = 2) -> None:
        """Have the next `times` requests that match fail."""
        self.faults.append(Fault(re.compile(line), kind, times))

    def race(self, line: str, count: int = 2) -> None:
        """Have the next `count` requests that match reach the store together."""
        self.meetings.append(Meeting(re.compile(line), threading.Barrier(count, timeout=60), count))

    def count(self, line: str) -> int:
        """Requests that matched so far."""
        return sum(re.search(line, each) is not None for each in self.lines)

    def begin(self, name: str) -> None:
        """A new bucket, and nothing that an earlier test asked for."""
        self.url = f"s3://{name}"
        for each in (self.lines, self.failed, self.faults, self.meetings):
            each.clear()
        connection = http.client.HTTPConnection(self.endpoint.removeprefix("http://"), timeout=60)
        connection.request("PUT", f"/{name}")
        assert connection.getresponse().status == http.HTTPStatus.OK
        connection.close()
        self.lines.clear()

    def take_fault(self, line: str) -> str | None:
        """Note a request; what is to happen to it."""
        with self.lock:
            self.lines.append(line)
            for fault in self.faults:
                if fault.left and fault.line.search(line):
                    fault.left -= 1
                    self.failed.append(line)
                    return fault.kind
        return None

    def meet(self, line: str) -> None:
        """Wait for the others of a race."""
        with self.lock:
            found = next((each for each in self.meetings if each.left and each.line.search(line)), None)
            if found:
                found.left -= 1
        if found:
            found.barrier.wait()


@contextmanager
def running() -> Iterator[ObjectStore]:
    """Server and proxy, until the end of the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port)
        with _proxy(port) as store:
            yield store
    finally:
        server.terminate()
        server.wait()


def _wait_for(port: int) -> None:
    until = time.monotonic() + 60
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


@contextmanager
def _proxy(port: int) -> Iterator[ObjectStore]:
    class Handler(_Forwarding):
        server_port = port

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as proxy:
        Handler.store = ObjectStore(f"http://127.0.0.1:{proxy.server_address[1]}")
        thread = threading.Thread(target=proxy.serve_forever, daemon=True)
        thread.start()
        yield Handler.store
        proxy.shutdown()
        thread.join()


class _Forwarding(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: ObjectStore
    server_port: int

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        line, body = f"{self.command} {self.path}", self._body()
        fault = self.store.take_fault(line)
        if fault in _ANSWERS:
            status, text = _ANSWERS[fault]
            self._answer(status, {}, text)
            return
        if fault != DROPPED:
            self.store.meet(line)
            answer = self._forward(body)
            if fault is None:
                self._answer(*answer)
                return
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server_port, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
        try:
            with self.store.writing:
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in (*_HOP, "content-length"):
                self.send_header(name, value)
        length = len(body) if self.command != "HEAD" else int(headers.get("Content-Length", 0))
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
