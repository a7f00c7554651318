"""What each shard did to the workers that read it, kept where no worker's death reaches it."""

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


@dataclass
class _Case:
    deaths: int = 0
    suspect: int | None = None
    strikes: Counter[int] = field(default_factory=Counter)

    def attempt(self) -> Attempt:
        convicted = frozenset(offset for offset, count in self.strikes.items() if count >= STRIKES)
        unexplained = self.deaths - STRIKES * len(convicted)
        return Attempt(self.deaths, convicted, hopeless=unexplained > MAX_UNEXPLAINED)


class Ledger:
    """Finds the images that kill their worker, from what workers said just before they died.

    The first attempt at a shard costs two calls. A shard that was begun and never ended killed its worker; later
    attempts announce each image, so that a crash has a name. k killing images cost 1 + 2 k deaths. A worker lost for
    another reason costs a careful attempt, and convicts an image only if that happens twice on the same one.
    Memory grows with the shards being read, not with those done.
    """

    def __init__(self) -> None:
        self._open: dict[str, _Case] = {}

    def begin(self, shard: str) -> Attempt:
        """Open the shard; a shard still open means that its last worker died."""
        case = self._open.get(shard)
        if case is None:
            case = self._open[shard] = _Case()
        else:
            case.deaths += 1
            if case.suspect is not None:
                case.strikes[case.suspect] += 1
                case.suspect = None
        return case.attempt()

    def enter(self, shard: str, offset: int | None) -> None:
        """Whom to suspect from here on: the image at `offset`, or none."""
        self._open[shard].suspect = offset

    def end(self, shard: str) -> None:
        """Forget the shard."""
        self._open.pop(shard, None)
