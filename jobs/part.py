"""A part of the images there are, always the same ones: for a large run that is tried on a small machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice, product
from pathlib import Path, PurePosixPath

from jobs.config import RunConfig
from jobs.estimate.facts import Facts
from jobs.figures import Figures
from jobs.folder import on_disk
from jobs.scale import LEAST_BATCH
from jobs.shards import Shards, count_shards
from jobs.steps import State, Step
from models.errors import ShoalError
from pipeline.ingest.folder import FolderScan, ImageFile
from pipeline.ingest.shards import Sample, list_shards, read_samples
from pipeline.ingest.write import NewSample, write_samples
from pipeline.progress import Progress
from pipeline.tables.place import write_whole
from pipeline.tables.storage import is_url

ENOUGH = 8  # shards that stand for all of them; of fewer, images are taken one by one
_DONE = "part.json"  # in the folder of the copies, when they are complete


def shards_of_part(shards: Sequence[str], config: RunConfig) -> list[str] | None:
    """The whole shards that a run takes of those there are; None where it has to take images one by one.

    The last happens where the part is less than ENOUGH shards, and the settings say how many images it is.
    """
    count = round(len(shards) * config.collection.part)
    if count < ENOUGH and config.collection.images is not None:
        return None
    return sorted(_drawn(shards)[: max(1, count)])


@dataclass(frozen=True)
class Part:
    """Copy `collection.images` images of shards into shards of our own.

    Shards are visited in an order drawn by their names, and the first images of each are taken: an eighth of all that
    are wanted at most, unless there are fewer shards, so that a collection in order of classes gives several of them.
    Where some have less than that, all are visited once more, for what comes after. Damaged samples are passed over.
    Reads what it takes, and holds one image.
    """

    inputs: tuple[str, ...]
    output: str
    config: RunConfig

    @property
    def images(self) -> int:
        """How many are wanted. Raises ShoalError for fewer than a batch."""
        return _enough(self.config.collection.images or 1)

    @cached_property
    def shards(self) -> list[str]:
        """All that there are, in the order in which they are visited."""
        return _drawn(list_shards(self.inputs))

    def plan(self) -> list[Step]:
        """Opens no shard."""
        there = count_shards(on_disk(self.output))
        what = f"{self.images:,} images of {', '.join(self.inputs)} into {self.output} ({there} shards there)"
        return [Step("shards", what, State.DONE if self._is_done() else State.TO_DO)]

    def fingerprint(self) -> str:
        """Of the names and sizes of all shards, in whatever folder of a disk; elsewhere of their URLs."""
        shards = sorted(_described(shard) for shard in self.shards)
        content = json.dumps([self.config.shards.model_dump(mode="json"), shards, self.images])
        return hashlib.sha256(content.encode()).hexdigest()

    def facts(self) -> Facts:
        """What the settings say."""
        return Facts(self.images, self.config.collection.image_bytes)

    def run(self, on_progress: Progress) -> Figures:
        """Raises ShoalError where no image can be read. What was copied before is kept."""
        output = on_disk(self.output)
        if not self._is_done():
            (output / _DONE).unlink(missing_ok=True)
            shards = write_samples(self._samples(), output, self.config.shards, on_progress)
            sizes = {shard.name: shard.stat().st_size for shard in shards}
            write_whole(output / _DONE, json.dumps({"fingerprint": self.fingerprint(), "shards": sizes}).encode())
        return Figures("shards", {"shards": count_shards(output), "output": self.output})

    def _is_done(self) -> bool:
        folder = on_disk(self.output)
        try:
            found = json.loads((folder / _DONE).read_text())
            sizes = {str(name): (folder / str(name)).stat().st_size for name in found["shards"]}
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return bool(found == {"fingerprint": self.fingerprint(), "shards": sizes})

    def _samples(self) -> Iterator[NewSample]:
        each = -(-self.images // min(len(self.shards), ENOUGH))
        keys: set[str] = set()
        rounds = ((0, each), (each, self.images))  # the first of those to take of a shard, and how many at most
        for (begin, most), shard in product(rounds, self.shards):
            if len(keys) == self.images:
                return
            samples = (item for item in read_samples(shard) if isinstance(item, Sample))
            for sample in islice(samples, begin, begin + min(most, self.images - len(keys))):
                key = sample.key if sample.key not in keys else f"{PurePosixPath(shard).stem}/{sample.key}"
                keys.add(key)
                yield NewSample(key, sample.extension, sample.image, sample.label)


@dataclass(frozen=True)
class PartOfFolder(Shards):
    """Pack a part of the images of a folder: those whose paths have the smallest hashes, as any larger part does.

    As many as `collection.images`, where that is set, or else the part of those that there are.
    """

    @cached_property
    def scan(self) -> FolderScan:
        """The folder as if it had no others. Raises ShoalError for fewer images than a batch."""
        whole, wanted = super().scan, self.config.collection
        count = round(len(whole.images) * wanted.part) if wanted.images is None else wanted.images
        count = _enough(min(len(whole.images), count))
        return replace(whole, images=tuple(sorted(sorted(whole.images, key=_by_path)[:count])))


def _enough(images: int) -> int:
    if images < LEAST_BATCH:
        raise ShoalError(
            f"The part is {images} images, but a run of a part needs {LEAST_BATCH} at least; give a larger scale."
        )
    return images


def _described(shard: str) -> tuple[str, int]:
    """What tells a shard from others: no requests are made for it, so of a URL there is nothing but itself."""
    return (shard, 0) if is_url(shard) else (PurePosixPath(shard).name, Path(shard).stat().st_size)


def _by_path(image: ImageFile) -> bytes:
    return _hash(image.path)


def _drawn(shards: Sequence[str]) -> list[str]:
    """In an order that depends on their names alone."""
    return sorted(shards, key=lambda shard: (_hash(PurePosixPath(shard).name), shard))


def _hash(name: str) -> bytes:
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()
