"""`shoal demo`: scikit-learn's handwritten digits as shards, and then the whole job on them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from jobs.config import RunConfig
from jobs.estimate.facts import Facts
from jobs.figures import Figures, Value
from jobs.folder import RunFolder
from jobs.run import Run
from jobs.shards import count_shards
from jobs.steps import State, Step
from pipeline.ingest.digits import COUNT, digits
from pipeline.ingest.write import write_samples
from pipeline.progress import Progress

IMAGE_BYTES = 110  # of a PNG of 8 x 8 grey pixels


@dataclass(frozen=True)
class Digits:
    """Write the digits as shards, as `shoal shards` writes a folder's images."""

    output: str
    config: RunConfig

    def plan(self) -> list[Step]:
        """There are always as many."""
        there = count_shards(Path(self.output))
        what = f"{COUNT:,} handwritten digits of scikit-learn into {self.output} ({there} shards there)"
        return [Step("shards", what, State.CHECKED if there else State.TO_DO)]

    def fingerprint(self) -> str:
        """Of the settings of shards: the digits are always the same."""
        return f"{COUNT} digits {self.config.shards.model_dump_json()}"

    def facts(self) -> Facts:
        """There are always as many."""
        return Facts(COUNT, IMAGE_BYTES)

    def run(self, on_progress: Progress) -> Figures:
        """The same bytes each time, so that shards which are there may as well be written again."""
        began = time.perf_counter()
        shards = write_samples(digits(), Path(self.output), self.config.shards, on_progress)
        values: dict[str, Value] = {
            "images": COUNT,
            "shards": len(shards),
            "size_bytes": sum(shard.stat().st_size for shard in shards),
            "output": self.output,
            "seconds": time.perf_counter() - began,
        }
        return Figures("shards", values)


def demo(output: str, config: RunConfig) -> Run:
    """The run of the digits."""
    shards = str(RunFolder(output).shards)
    return Run(output, config, Digits(shards, config), (shards,))
