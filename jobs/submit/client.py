"""A Ray cluster as its dashboard serves it: machines, jobs, logs. What goes wrong on the way is a sentence."""
# ruff: noqa: PLC0415

from __future__ import annotations

import json
import logging
import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.request import getproxies, proxy_bypass

from jobs.submit.address import TOKEN, Address, find_address
from models.errors import ShoalError

WAIT_S = (10, 60)  # for a connection, and for each part of an answer
OVER = ("SUCCEEDED", "FAILED", "STOPPED")
_OVERRIDING = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")  # Ray's client would believe them rather than --address
_NODES = "/api/v0/nodes?detail=1&limit=10000&filter_keys=state&filter_predicates=%3D&filter_values=ALIVE"
_TALKATIVE = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env")


class UnreachableError(ShoalError):
    """Nobody answers, which may pass."""


class UnknownJobError(ShoalError):
    """The cluster has no such job."""


class FailedError(ShoalError):
    """The cluster answers that it cannot do this."""


@dataclass(frozen=True)
class Job:
    """A submitted job as the cluster knows it."""

    id: str
    state: str  # PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED
    message: str = ""
    exit_code: int | None = None  # of the process; negative if a signal ended it
    started_ms: int | None = None
    ended_ms: int | None = None
    entrypoint: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        """Whether nothing of it runs any more."""
        return self.state in OVER


@dataclass(frozen=True)
class Node:
    """A machine that is up."""

    ip: str
    is_head: bool
    resources: Mapping[str, float]


class Client:
    """Questions and orders to a cluster. Each raises UnreachableError, UnknownJobError or another ShoalError."""

    def __init__(self, address: Address) -> None:
        """Raises ShoalError where no cluster answers, or it does not let us in."""
        self.address = address
        _require_listener(address)
        with self._sentences():
            self._ray = _ray_client(address)

    @property
    def has_token(self) -> bool:
        """Whether a secret goes with every request."""
        return bool(self._ray._headers)

    def nodes(self) -> list[Node]:
        """The machines that are up; empty where the cluster does not say."""
        try:
            with self._sentences():
                answer = self._ray._do_request("GET", _NODES)
                if answer.status_code != HTTPStatus.OK:
                    self._ray._raise_error(answer)
                found = answer.json()["data"]["result"]["result"]
        except (FailedError, KeyError, TypeError):
            return []
        return [Node(str(each["node_ip"]), bool(each["is_head_node"]), each["resources_total"] or {}) for each in found]

    def submit(self, **options: Any) -> str:
        """Hand a job over, uploading what is packed unless it is there; options as of Ray's `submit_job`."""
        with self._sentences():
            submission: str = self._ray.submit_job(**options)
        return submission

    def job(self, id_: str) -> Job:
        """What is known of a job. Raises UnknownJobError."""
        with self._sentences(id_):
            return _job(self._ray.get_job_info(id_))

    def jobs(self) -> list[Job]:
        """All that were submitted, the newest first."""
        with self._sentences():
            found = [_job(each) for each in self._ray.list_jobs() if each.submission_id is not None]
        return sorted(found, key=lambda each: each.started_ms or 0, reverse=True)

    def log(self, id_: str) -> str:
        """All that a job has said so far."""
        with self._sentences(id_):
            text: str = self._ray.get_job_logs(id_)
        return text

    def stop(self, id_: str) -> bool:
        """Ask a job to end; False if it had ended."""
        with self._sentences(id_):
            stopped: bool = self._ray.stop_job(id_)
        return stopped

    @contextmanager
    def _sentences(self, id_: str = "") -> Iterator[None]:
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError as error:
            raise ShoalError(_refusal(self.address, str(error))) from error
        except (RuntimeError, ValueError) as error:
            raise _explained(self.address, id_, error) from error
        except OSError as error:  # whatever `requests` raises is one
            raise _unanswered(self.address, error) from error


def find_job(id_: str, address: str | None) -> Job:
    """A job by its id. Raises ShoalError where there is none, or no cluster answers."""
    return Client(find_address(address)).job(id_)


def is_here(nodes: list[Node]) -> bool:
    """Whether the head is this machine: at the end of a tunnel, files have other places."""
    heads = [node.ip for node in nodes if node.is_head]
    return bool(heads) and all(_is_ours(ip) for ip in heads)


def _is_ours(ip: str) -> bool:
    """Only a machine's own addresses can be bound."""
    try:
        family = socket.AF_INET6 if ":" in ip else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((ip, 0))
    except OSError:
        return False
    return True


def _require_listener(address: Address) -> None:
    """Ray's client has no time limit of its own."""
    if _has_proxy(address):
        return  # which is who is asked, and may know names that this machine does not
    try:
        socket.create_connection((address.host, address.port), timeout=WAIT_S[0]).close()
    except OSError as error:
        raise UnreachableError(
            f"No Ray dashboard answers at {address.url} ({error}); start a cluster with `ray start --head "
            "--include-dashboard true`, open a tunnel to one, or give another --address."
        ) from error


def _has_proxy(address: Address) -> bool:
    scheme = address.url.partition("://")[0]
    proxies = getproxies()
    return not address.is_loopback and bool(proxies.keys() & {scheme, "all"}) and not proxy_bypass(address.host)


def _ray_client(address: Address) -> Any:
    from ray.job_submission import JobSubmissionClient

    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)

    class Patient(JobSubmissionClient):
        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            # A proxy of the environment is for other places, and would see the token.
            direct = {"proxies": {"no_proxy": address.host}} if address.is_loopback else {}
            return super()._do_request(method, endpoint, **{"timeout": WAIT_S, **direct, **options})

    said = {name: os.environ.pop(name) for name in _OVERRIDING if name in os.environ}
    try:
        return Patient(address.url)
    finally:
        os.environ.update(said)


def _refusal(address: Address, text: str) -> str:
    if "Invalid authentication token" in text or "authentication failed" in text.lower():
        return f"{address.url} does not accept this token; set {TOKEN} to the one that the cluster was started with."
    return f"{address.url} wants a token; set {TOKEN}."


def _unanswered(address: Address, error: OSError) -> ShoalError:
    """What Ray's client says of it is not why; that is in the errors before."""
    cause: BaseException | None = error
    while cause is not None:
        if "CERTIFICATE_VERIFY_FAILED" in str(cause):
            return ShoalError(
                f"{address.url} has a certificate that this machine does not trust; set REQUESTS_CA_BUNDLE to a file "
                "with the certificate of whoever signed it (itself, if nobody did), or open a tunnel."
            )
        cause = cause.__cause__ or cause.__context__
    return UnreachableError(f"{address.url} does not answer ({type(error).__name__}).")


def _explained(address: Address, id_: str, error: Exception) -> ShoalError:
    """What the dashboard said, without the stack of its own that it likes to add."""
    found = re.match(r"Request failed with status code (\d+): (.*)", str(error), re.DOTALL)
    if found is None:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        return ShoalError(f"{address.url} does not answer as Ray's dashboard does ({first}); give another --address.")
    code, text = found.groups()
    if id_ and code in ("400", "404"):
        return UnknownJobError(f"{address.url} has no job {id_!r}; `shoal jobs list` names those that it has.")
    last = next((line for line in reversed(text.strip().splitlines()) if line.strip(" .")), "")
    return FailedError(f"{address.url} refuses with {code}: {_cut(last.strip())}")


def _cut(text: str, most: int = 300) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _job(found: Any) -> Job:
    state = getattr(found.status, "value", found.status)
    return Job(
        str(found.submission_id),
        str(state),
        found.message or "",
        found.driver_exit_code,
        found.start_time,
        found.end_time,
        found.entrypoint,
        json.loads(json.dumps(found.metadata or {})),
    )
