"""Object stores: a URL and the environment become a pyarrow filesystem, and the same settings as deltalake spells them.

Credentials come from the environment, where both libraries find them by themselves, and are never part of a URL: the
names of shards and tables are written into tables. A URL is taken letter by letter, as the stores' own tools do, except
that `?region=`, `?endpoint_override=` (with `scheme=`) and `?anonymous=true` may end one.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from typing import Protocol
from urllib.parse import parse_qsl, quote

import pyarrow as pa
import pyarrow.fs as pafs

from pipeline.tables.schema import TableError

SCHEMES = ("s3", "gs", "gcs", "az", "abfs", "abfss")
OPTIONS = ("region", "endpoint_override", "scheme", "anonymous")
ATTEMPTS = 8  # of a request; with the libraries' own growing pauses that is half a minute
_CONNECT_S = 10.0  # pyarrow's is 1 s, which a busy network exceeds
_SILENCE_S = 60.0
_RETRY_S = 180  # the most that one request and its repetitions may take
_DELTA_RETRIES = {"max_retries": str(ATTEMPTS - 1), "retry_timeout": f"{_RETRY_S}s"}
_QUERY = re.compile(r"\?([A-Za-z_]+=[^&/]*(?:&[A-Za-z_]+=[^&/]*)*)$")
CREDENTIAL = re.compile(  # as signed URLs have them, whose values may hold what `_QUERY` takes for a part of a name
    r"(?i)[?&]([\w-]*(?:signature|token|credential|secret|password)|sig|[\w-]*key(?:[-_]?id)?)="
)
_AZURE_HOST = re.compile(r"(?P<container>[^@:]+)@(?P<account>[a-z0-9]+)\.(?:dfs|blob)\.core\.windows\.net")
_AZURE_SECRETS = {  # pyarrow takes no key from the environment; deltalake does
    "account_key": ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY"),
    "sas_token": ("AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_SAS_KEY"),
}

_SECRET_NAME = re.compile(r"(AWS|AZURE|GOOGLE)_.*(SECRET|TOKEN|KEY|PASSWORD).*")
_SECRET_LENGTH = 8  # what is shorter protects nothing, and may be part of any word
_SIGNATURE = re.compile(r"(?i)\b(sig|signature|x-amz-signature|x-amz-security-token|x-goog-signature)=[^&\s\"')]+")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Store(Protocol):
    """One object store as an account sees it; hashable, so that there is one filesystem of it in a process."""

    def __hash__(self) -> int: ...

    @property
    def filesystem(self) -> pafs.FileSystem:
        """Made now; nothing is asked of the store yet."""
        ...

    @property
    def delta_options(self) -> dict[str, str]:
        """`storage_options` of deltalake."""
        ...


@dataclass(frozen=True)
class Address:
    """A URL taken apart."""

    scheme: str
    bucket: str  # container, for Azure
    key: str  # without a leading slash
    query: str  # as written, with its question mark
    account: str = ""  # of Azure, when the URL names it
    options: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, url: str) -> Address:
        """Raises TableError for a URL with a user, a password, a signature or an option that is none of OPTIONS."""
        if credential := CREDENTIAL.search(url):
            raise TableError(
                f"A {url.partition('://')[0]}:// URL has the option {credential[1]!r}; credentials belong into the "
                "environment."
            )
        found = _QUERY.search(url)
        bare, query = (url[: found.start()], found[0]) if found else (url, "")
        scheme, _, rest = bare.partition("://")
        authority, _, key = rest.partition("/")
        options = dict(parse_qsl(query[1:]))
        if unknown := sorted(set(options) - set(OPTIONS)):
            raise TableError(
                f"A {scheme}:// URL has the options {unknown}; {', '.join(OPTIONS)} are known, credentials belong into "
                "the environment."
            )
        azure = _AZURE_HOST.fullmatch(authority)
        if azure:
            return cls(scheme.lower(), azure["container"], key.strip("/"), query, azure["account"], options)
        if not authority or "@" in authority or ":" in authority:  # a password may hold the first slash
            raise TableError(
                f"{scheme}://{'…' if authority else ''} is no address of an object store; write s3://bucket/path, "
                "gs://bucket/path or az://container/path, and put credentials into the environment."
            )
        return cls(scheme.lower(), authority, key.strip("/"), query, "", options)

    @property
    def path(self) -> str:
        """Bucket and key, as pyarrow's filesystems name a file."""
        return f"{self.bucket}/{self.key}" if self.key else self.bucket

    @property
    def delta_url(self) -> str:
        """As deltalake wants it: without options, and with everything encoded that a URL could mean something by."""
        scheme = {"gcs": "gs", "abfs": "az", "abfss": "az"}.get(self.scheme, self.scheme)
        return f"{scheme}://{self.bucket}/{quote(self.key)}"

    @property
    def store(self) -> Store:
        """Raises TableError if the environment does not say enough."""
        if self.scheme == "s3":
            return _s3(self)
        return _azure(self) if self.scheme in ("az", "abfs", "abfss") else Google(self._anonymous("GOOGLE"))

    def _anonymous(self, vendor: str) -> bool:
        text = self.options.get("anonymous", os.environ.get(f"{vendor}_SKIP_SIGNATURE", ""))
        return text.lower() in ("true", "1")


@dataclass(frozen=True)
class S3:
    """Amazon's S3, or a store that speaks like it at `endpoint` (scheme://host:port)."""

    endpoint: str | None
    region: str
    anonymous: bool

    @property
    def filesystem(self) -> pafs.FileSystem:
        """As of Store."""
        scheme, _, host = (self.endpoint or "").rpartition("://")
        return pafs.S3FileSystem(
            endpoint_override=host or None,
            scheme=scheme or "https",
            region=self.region,
            anonymous=self.anonymous,
            allow_delayed_open=True,  # what is small is one request
            connect_timeout=_CONNECT_S,
            request_timeout=_SILENCE_S,
            retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        )

    @property
    def delta_options(self) -> dict[str, str]:
        """As of Store."""
        options = {"aws_region": self.region, **_DELTA_RETRIES}
        if self.endpoint:
            names = ("aws_endpoint_url", "aws_endpoint_url_s3")  # the second would win if the environment had it
            options |= dict.fromkeys(names, self.endpoint) | {"aws_allow_http": "true"}
        return options | ({"aws_skip_signature": "true"} if self.anonymous else {})


@dataclass(frozen=True)
class Google:
    """Google Cloud Storage; both libraries find the application default credentials."""

    anonymous: bool

    @property
    def filesystem(self) -> pafs.FileSystem:
        """As of Store."""
        return pafs.GcsFileSystem(anonymous=self.anonymous, retry_time_limit=timedelta(seconds=_RETRY_S))

    @property
    def delta_options(self) -> dict[str, str]:
        """As of Store."""
        return _DELTA_RETRIES | ({"google_skip_signature": "true"} if self.anonymous else {})


@dataclass(frozen=True)
class Azure:
    """An account of Azure Blob Storage, whose SDK repeats requests by itself."""

    account: str

    @property
    def filesystem(self) -> pafs.FileSystem:
        """As of Store; by key or token if the environment has one, else by Azure's default credential."""
        secrets = {name: _first(*variables) for name, variables in _AZURE_SECRETS.items()}
        return pafs.AzureFileSystem(self.account, **{name: value for name, value in secrets.items() if value})

    @property
    def delta_options(self) -> dict[str, str]:
        """As of Store."""
        return {"azure_storage_account_name": self.account, **_DELTA_RETRIES}


def _s3(address: Address) -> S3:
    endpoint = address.options.get("endpoint_override") or _first(
        "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"
    )
    if endpoint and "://" not in endpoint:
        endpoint = f"{address.options.get('scheme', 'https')}://{endpoint}"
    region = address.options.get("region") or _first("AWS_REGION", "AWS_DEFAULT_REGION")
    region = region or ("us-east-1" if endpoint else _region(address.bucket))  # of its own store nobody asks Amazon
    return S3(endpoint.rstrip("/") if endpoint else None, region, address._anonymous("AWS"))


def _azure(address: Address) -> Azure:
    account = address.account or _first("AZURE_STORAGE_ACCOUNT_NAME")
    if not account:
        raise TableError(
            f"{address.scheme}://{address.path} names no storage account; set AZURE_STORAGE_ACCOUNT_NAME, or write "
            f"abfss://{address.bucket}@ACCOUNT.dfs.core.windows.net/{address.key}."
        )
    return Azure(account)


@lru_cache
def _region(bucket: str) -> str:
    """Where a bucket of Amazon's is; one request over the network."""
    try:
        return str(pafs.resolve_s3_region(bucket))
    except (pa.ArrowException, OSError) as error:
        raise TableError(
            f"The region of s3://{bucket} cannot be found out ({one_line(error)}); set AWS_REGION, or "
            "AWS_ENDPOINT_URL for another store than Amazon's."
        ) from error


def _first(*variables: str) -> str | None:
    return next((value for each in variables if (value := os.environ.get(each))), None)


def one_line(error: Exception) -> str:
    """An exception as part of a sentence: its first line, or its type, without the secrets of the environment.

    deltalake writes causes as a tree in colours; all of it is kept, as the first line says nothing.
    """
    text = _COLOUR.sub("", str(error)).strip()
    lines = [line.strip() for line in text.split("↳" if "↳" in text else "\n")] if text else [type(error).__name__]
    line = ": ".join(" ".join(each.split()) for each in (lines if "↳" in text else lines[:1]))
    for name, value in os.environ.items():
        if len(value) >= _SECRET_LENGTH and _SECRET_NAME.fullmatch(name):
            line = line.replace(value, "***")
    return _SIGNATURE.sub(r"\1=***", line)
