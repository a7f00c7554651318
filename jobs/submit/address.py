"""Which cluster is meant: the address of its dashboard, and whether a token may travel there."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from models.errors import ShoalError

VARIABLE = "RAY_API_SERVER_ADDRESS"
DEFAULT = "http://127.0.0.1:8265"
TOKEN = "RAY_AUTH_MODE=token with RAY_AUTH_TOKEN_PATH=FILE (or RAY_AUTH_TOKEN) in the environment"  # noqa: S105  how


@dataclass(frozen=True)
class Address:
    """A dashboard's URL, without a slash at its end."""

    url: str
    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether nothing leaves this machine, unless a tunnel carries it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def is_open(self) -> bool:
        """Whether whoever is on the way can read what is sent."""
        return self.url.startswith("http://") and not self.is_loopback


def find_address(given: str | None) -> Address:
    """`given`, else RAY_API_SERVER_ADDRESS, else this machine's dashboard. Raises ShoalError for what is no URL."""
    said, source = (given, "--address") if given is not None else (os.environ.get(VARIABLE), VARIABLE)
    text = said or DEFAULT
    wanted = f"give the dashboard's URL, such as {DEFAULT}"
    try:
        parts = urlsplit(text)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        (parts.hostname or "").encode("idna")  # as whoever looks it up will
    except ValueError as error:
        raise ShoalError(f"{source} is no URL ({error}); {wanted}.") from error
    if parts.username is not None or parts.password is not None:
        raise ShoalError(f"{source} has a name or a password in it; leave them out, and set {TOKEN}.")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ShoalError(f"{source} is {text!r}, {_instead(text, parts)}; {wanted}.")
    if parts.query or parts.fragment:
        raise ShoalError(f"{source} is {text!r}, with more than host, port and path; {wanted}.")
    return Address(text.rstrip("/"), parts.hostname, port)


def _instead(text: str, parts: SplitResult) -> str:
    """What was given instead of a URL."""
    if parts.scheme == "ray":
        return "which is for Ray's client and not for jobs"
    host, colon, port = text.rpartition(":")
    if colon and port.isdigit() and "/" not in host:
        return "where Ray's own processes meet and jobs are not taken"
    return "which is no http or https URL"
