"""The members of a shard put together by key: samples, and a reject for everything that should have been one."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from pipeline.ingest.names import LABEL_SUFFIXES, is_image, is_unsafe, split_name
from pipeline.ingest.tar import Gap, Member, Other
from pipeline.tables.schema import Reason

MAX_LABEL_BYTES = 2**20  # of a .cls or .json member; in a larger one nobody keeps a label


@dataclass(frozen=True)
class Sample:
    """An image, its label, and where its bytes are: `size` bytes at `offset` of the uncompressed shard."""

    key: str
    shard: str
    offset: int
    size: int
    label: str | None
    image: bytes
    extension: str  # lower case, without the dot


@dataclass(frozen=True)
class Reject:
    """What did not become a sample. `offset` and `size` are those of the image or of the gap, None without either.

    `key` is "" when no sample can be named; no sample's key is empty.
    """

    key: str
    shard: str
    offset: int | None
    size: int | None
    label: str | None
    reason: Reason
    detail: str


@dataclass
class _Group:
    """The members of one key, so far."""

    key: str
    image: Member | None = None
    labels: dict[str, str | None] = field(default_factory=dict)
    suffixes: list[str] = field(default_factory=list)

    @property
    def label(self) -> str | None:
        return self.labels.get("cls") or self.labels.get("json")


class Grouping:
    """Takes the members of one shard in order; gives a sample as soon as the next key begins.

    Members of a key need not be neighbours: labels wait for their image. An image does not wait, or memory would grow
    with the shard: a label that comes after another key began is ignored, and so late an image is a duplicate.
    Memory: one image, and all keys of the shard.
    """

    def __init__(self, shard: str) -> None:
        self._shard = shard
        self._current = _Group("")
        self._waiting: dict[str, _Group] = {}  # keys whose image may still come
        self._done: set[str] = set()  # keys that have their sample or their reject
        self.ignored = 0  # members nothing is made of: other files, links, folders, second images, late labels

    def add(self, item: Member | Other | Gap) -> list[Sample | Reject]:
        """Take in the next piece of the shard and return what it completes or spoils."""
        if isinstance(item, Gap):
            return [self._lose(item)]
        named = split_name(item.name)
        if isinstance(item, Other) or named is None:
            self.ignored += 1
            return []
        add = self._add_image if is_image(item.name) else self._add_companion
        return add(*named, item)

    def finish(self) -> list[Sample | Reject]:
        """The last sample, and a reject for each key that never had an image."""
        last = self._switch_to("")
        return last + [
            Reject(key, self._shard, None, None, group.label, Reason.no_image, f"only {', '.join(group.suffixes)}")
            for key, group in self._waiting.items()
        ]

    def _add_image(self, key: str, suffix: str, member: Member) -> list[Sample | Reject]:
        if is_unsafe(member.name):
            return [self._reject(key, member, Reason.unsafe_member, f"{member.name} leads out of the shard")]
        if key in self._done:
            return [self._reject(key, member, Reason.duplicate_key, f"{member.name} follows the sample of that key")]
        out = self._switch_to(key)
        group = self._current
        if group.image is None and member.data is None:
            detail = f"{member.name} has {member.size} bytes, more than a member may have"
            out.append(self._reject(key, member, Reason.image_too_large, detail, group.label))
            self._close(key)
        elif group.image is None:
            group.image = member
        elif suffix in group.suffixes:
            out.append(self._reject(key, member, Reason.duplicate_key, f"{member.name} is there twice"))
        else:
            self.ignored += 1
        group.suffixes.append(suffix)
        return out

    def _add_companion(self, key: str, suffix: str, member: Member) -> list[Sample | Reject]:
        if key in self._done or is_unsafe(member.name):
            self.ignored += 1
            return []
        out = self._switch_to(key)
        group = self._current
        if suffix in LABEL_SUFFIXES and suffix not in group.labels and member.size <= MAX_LABEL_BYTES:
            group.labels[suffix] = _read_label(suffix, member.data or b"")
        else:
            self.ignored += 1
        group.suffixes.append(suffix)
        return out

    def _lose(self, gap: Gap) -> Reject:
        """A gap is one reject, with its byte range, and that of the sample whose image is known to be in it."""
        detail = f"bytes {gap.start}-{gap.end}: {gap.detail}"
        key, label = "", None
        if gap.name is not None and is_image(gap.name) and (named := split_name(gap.name)) is not None:
            detail = f"{gap.name}, {detail}"
            if named[0] not in self._done and (self._current.key != named[0] or self._current.image is None):
                key, label = named[0], self._group(named[0]).label
                self._close(key)
        return Reject(key, self._shard, gap.start, gap.end - gap.start, label, gap.reason, detail)

    def _reject(self, key: str, member: Member, reason: Reason, detail: str, label: str | None = None) -> Reject:
        return Reject(key, self._shard, member.offset, member.size, label, reason, detail)

    def _group(self, key: str) -> _Group:
        """What is known of a key that is not done."""
        return self._current if self._current.key == key else self._waiting.get(key, _Group(key))

    def _switch_to(self, key: str) -> list[Sample | Reject]:
        """Make `key` the current one. The sample of the previous key comes out when it has an image."""
        left = self._current
        if left.key == key:
            return []
        self._current = self._waiting.pop(key) if key in self._waiting else _Group(key)
        if left.image is None or left.image.data is None:
            if left.key:
                self._waiting[left.key] = left
            return []
        self._done.add(left.key)
        image, kind = left.image, left.image.name.rpartition(".")[2].lower()
        return [Sample(left.key, self._shard, image.offset, image.size, left.label, left.image.data, kind)]

    def _close(self, key: str) -> None:
        """Nothing more is expected of `key`, which has its reject."""
        self._done.add(key)
        self._waiting.pop(key, None)
        if self._current.key == key:
            self._current = _Group("")


def _read_label(suffix: str, data: bytes) -> str | None:
    """The text of a .cls member, or "label" of a .json member when that is text, a number or a truth value."""
    text = data.decode("utf-8", "backslashreplace")
    if suffix == "json":
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            return None
        label = content.get("label") if isinstance(content, dict) else None
        text = str(label) if isinstance(label, str | int | float) else ""
    # JSON can spell lone surrogates, which no table can store
    return text.encode("utf-8", "backslashreplace").decode().strip() or None
