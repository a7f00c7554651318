"""One bare process: a plain loop over tar files with shoal's own decoding and backbone; no Ray, table or checksum.

`python -m jobs.bench.peers.bare BACKBONE BATCH SHARD...`, BACKBONE as JSON; prints one JSON line.
"""

from __future__ import annotations

import json
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from itertools import islice

import torch
import typer
from torch import Tensor

from models.backbones import Backbone, BackboneConfig, load_backbone
from pipeline.ingest.decode import decode
from pipeline.ingest.names import is_image


def embeddings(backbone: Backbone, shards: Sequence[str], batch: int) -> Iterator[Tensor]:
    """Embeddings (B, D) of all images in the order of the shards, `batch` or fewer at a time."""
    images, short_side = _images(shards), backbone.pixels.short_side
    while group := [backbone.prepare(decode(image, short_side=short_side)) for image in islice(images, batch)]:
        yield backbone.embed(torch.stack(group))


def _images(shards: Sequence[str]) -> Iterator[bytes]:
    for shard in shards:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                file = tar.extractfile(member) if is_image(member.name) else None
                if file is not None:
                    yield file.read()


def main(settings: str, batch: str, *shards: str) -> None:
    """Embed the images with one thread, and print how many they were and when that began and ended."""
    torch.set_num_threads(1)
    backbone = load_backbone(BackboneConfig.model_validate_json(settings))
    ready = time.time()
    images = sum(len(x_BD) for x_BD in embeddings(backbone, shards, int(batch)))
    typer.echo(json.dumps({"images": images, "ready": ready, "ended": time.time()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
