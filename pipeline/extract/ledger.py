"""What each shard did to the workers that read it and how far they are, kept where no worker's death reaches it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

STRIKES = 2  # careful deaths on one image that convict it; one alone may be a lost machine's
MAX_UNEXPLAINED = 5  # deaths on one shard that no image explains, before the shard is left alone


@dataclass(frozen=True)
class Attempt:
    """How a worker is to read a shard this time."""

    deaths: int  # workers that died reading it before
    convicted: frozenset[int]  # offsets of images that are not to be decoded again
    hopeless: bool = False

    @property
    def careful(self) -> bool:
        """Whether every image must be announced before it is decoded."""
        return self.deaths > 0


@dataclass(frozen=True)
class Standing:
    """How far a shard is, or all shards of a run are together."""

    shards: float = 0.0  # of one shard the part that was embedded: of its bytes, less what was read and waits
    images: int = 0
    rejects: int = 0
    waiting: int = 0  # images begun, and not yet embedded

    def __add__(self, other: Standing) -> Standing:
        return Standing(
            self.shards + other.shards,
            self.images + other.images,
            self.rejects + other.rejects,
            self.waiting + other.waiting,
        )


@dataclass
class _Case:
    deaths: int = 0
    suspect: int | None = None
    strikes: Counter[int] = field(default_factory=Counter)
    standing: Standing = Standing()

    def attempt(self, patience: int) -> Attempt:
        convicted = frozenset(offset for offset, count in self.strikes.items() if count >= STRIKES)
        unexplained = self.deaths - STRIKES * len(convicted)
        return Attempt(self.deaths, convicted, hopeless=unexplained > patience)


class Ledger:
    """Finds the images that kill their worker, from what workers said just before they died; adds up progress.

    The first attempt at a shard costs two calls. A shard that was begun and never ended killed its worker; later
    attempts announce each image, so that a crash has a name. k killing images cost 1 + 2 k deaths, which count for
    every shard that the worker had open (`streams` at most), though only one can be the suspect. A worker lost for
    another reason costs a careful attempt, and convicts an image only if that happens twice on the same one.
    Memory grows with the shards being read, not with those done.
    """

    def __init__(self, streams: int = 1) -> None:
        self._patience = MAX_UNEXPLAINED * streams  # a worker's death is held against each shard that it had open
        self._open: dict[str, _Case] = {}
        self._ended = Standing()

    def begin(self, shard: str) -> Attempt:
        """Open the shard; a shard still open means that its last worker died."""
        case = self._open.get(shard)
        if case is None:
            case = self._open[shard] = _Case()
        else:
            case.deaths += 1
            case.standing = Standing()
            if case.suspect is not None:
                case.strikes[case.suspect] += 1
                case.suspect = None
        return case.attempt(self._patience)

    def enter(self, shard: str, offset: int | None) -> None:
        """Whom to suspect from here on: the image at `offset`, or none."""
        if shard in self._open:  # or it is the last word of a task that was given up
            self._open[shard].suspect = offset

    def advance(self, shard: str, standing: Standing) -> None:
        """How far an open shard is."""
        if shard in self._open:
            self._open[shard].standing = standing

    def end(self, shard: str, standing: Standing) -> None:
        """Forget the shard, but not what was made of it."""
        self._open.pop(shard, None)
        self._ended += standing

    def standing(self) -> Standing:
        """The sum over shards that ended and shards that are open."""
        return sum((case.standing for case in self._open.values()), self._ended)
