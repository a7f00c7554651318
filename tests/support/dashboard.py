"""A dashboard that answers what it is told to, where a real one would have to be made to fail."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from jobs.submit.address import find_address
from jobs.submit.client import Client

JOB: dict[str, Any] = {"type": "SUBMISSION", "submission_id": "j", "status": "RUNNING", "entrypoint": "x"}


@dataclass
class Dashboard:
    """Answers by path: each once, the last of a path again and again."""

    url: str = ""
    asked: list[str] = field(default_factory=list)
    answers: dict[str, list[tuple[int, Any]]] = field(
        default_factory=lambda: {"/api/version": [(200, {"version": "4", "ray_version": "2.50.0", "ray_commit": ""})]}
    )

    @property
    def client(self) -> Client:
        """Of this cluster."""
        return Client(find_address(self.url))

    def tell(self, *answers: tuple[int, Any] | str, path: str = "/api/jobs/j") -> None:
        """What is answered from now on; a word is the state of job `j`, and a code of 0 no answer at all."""
        told = [(200, {**JOB, "status": each}) if isinstance(each, str) else each for each in answers]
        self.answers[path] = told

    def answer(self, target: str) -> tuple[int, bytes]:
        """Of a request."""
        self.asked.append(target)
        left = self.answers.get(target.partition("?")[0], [(404, "nothing here")])
        code, body = left.pop(0) if len(left) > 1 else left[0]
        return code, json.dumps(body).encode() if isinstance(body, dict) else str(body).encode()


@contextmanager
def answering() -> Iterator[Dashboard]:
    """On a port of loopback."""
    found = Dashboard()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            code, body = found.answer(self.path)
            if code:
                self.send_response(code)
                self.end_headers()
                self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    found.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
