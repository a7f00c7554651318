"""`shoal shards INPUT --output DIR`: a folder of images into WebDataset shards."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from jobs.config import RunConfig
from jobs.estimate.facts import Facts
from jobs.figures import Figures
from jobs.folder import on_disk
from jobs.steps import State, Step
from pipeline.ingest.folder import FolderScan, scan_folder
from pipeline.ingest.names import is_shard, label_of
from pipeline.ingest.write import write_shards
from pipeline.progress import Progress


@dataclass(frozen=True)
class Shards:
    """Pack the images of a folder; shards that are there and still right are kept."""

    source: str
    output: str
    config: RunConfig

    def plan(self) -> list[Step]:
        """Counts the images, and the shards that are there."""
        there = count_shards(on_disk(self.output))
        what = f"{len(self.scan.images):,} images of {self.source} into {self.output} ({there} shards there)"
        return [Step("shards", what, State.CHECKED if there else State.TO_DO)]

    def run(self, on_progress: Progress) -> Figures:
        """Raises ShoalError for a folder without images, or an output that holds shards from elsewhere."""
        began = time.perf_counter()
        output, scan = on_disk(self.output), self.scan
        shards = write_shards(scan, output, self.config.shards, on_progress)
        return Figures(
            "shards",
            {
                "images": len(scan.images),
                "labels": len({label_of(image.path) for image in scan.images} - {None}),
                "shards": len(shards),
                "size_bytes": sum(shard.stat().st_size for shard in shards),
                "other_files": scan.others,
                "hidden_entries": scan.hidden,
                "output": self.output,
                "seconds": time.perf_counter() - began,
            },
        )

    def fingerprint(self) -> str:
        """Of the names, sizes and times of the images, and of the settings of shards."""
        content = json.dumps([self.config.shards.model_dump(mode="json"), self.scan.images])
        return hashlib.sha256(content.encode()).hexdigest()

    def facts(self) -> Facts:
        """Of the images in the folder."""
        images = self.scan.images
        return Facts(len(images), sum(image.size for image in images) / len(images))

    @cached_property
    def scan(self) -> FolderScan:
        """What is in the folder, looked at once: what is packed is what the fingerprint is of."""
        return scan_folder(Path(self.source).expanduser())


def count_shards(folder: Path) -> int:
    """Shards in a folder; none where there is no folder."""
    folder = folder.expanduser()
    return sum(is_shard(path.name) and path.name[0] != "." for path in folder.iterdir()) if folder.is_dir() else 0
