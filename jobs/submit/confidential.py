"""Secrets in the words of a command: whoever sees a cluster's jobs sees them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from urllib.parse import urlsplit

from jobs.submit.parse import Parsed
from models.errors import ShoalError
from pipeline.tables.schema import TableError
from pipeline.tables.storage import SCHEME, is_object_store
from pipeline.tables.stores import CREDENTIAL, Address


def require_no_secret(parsed: Parsed) -> None:
    """Raise ShoalError, which does not repeat it, for a URL with a password or a signature in any word."""
    for url in (url for word in parsed.words for url in _urls(word)):
        if problem := _secret(url):
            raise ShoalError(
                f"A {url.partition('://')[0]}:// URL of the command has {problem} in it, which everybody sees who sees "
                "the cluster's jobs; leave it out, and give credentials to the machines themselves, by their "
                "environment. A signed URL is for commands that run here."
            )


def _urls(word: str) -> Iterator[str]:
    """Those in a word, which may be a setting or a pattern: `a=URL`, `[URL, URL]`, `{URL,URL}/x`."""
    starts = [found.start() for found in SCHEME.finditer(word)]
    for start, end in pairwise([*starts, len(word)]):
        yield word[start:end].rstrip(",]}\"' ")


def _secret(url: str) -> str | None:
    """What a URL has that is nobody else's business."""
    if found := CREDENTIAL.search(url):
        return f"the option {found[1]!r}"
    if is_object_store(url):
        return _login_of_store(url)
    return "a name or a password" if "@" in _authority(url) else None


def _authority(url: str) -> str:
    """All that may be one: a password may hold the first slash, and then what stands for the port is no number."""
    try:
        parts = urlsplit(url)
        return f"{parts.netloc}:{parts.port}"
    except ValueError:
        return url


def _login_of_store(url: str) -> str | None:
    """`container@account`, as Azure has it, is none."""
    authority = url.partition("://")[2].partition("/")[0]
    if "@" not in authority and ":" not in authority:
        return None
    try:
        Address.of(url)
    except TableError:
        return "a name or a password"
    return None
