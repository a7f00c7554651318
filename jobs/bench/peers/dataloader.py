"""Feature extraction as a torch user writes it: WebDataset, torchvision transforms, a DataLoader, channels last.

`python -m jobs.bench.peers.dataloader BACKBONE BATCH WORKERS THREADS SHARD...`, BACKBONE as JSON; prints one JSON line.
The network and the numbers of its preprocessing are the backbone's; how images get there is torch's and webdataset's.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import typer
import webdataset as wds
from torch import Tensor
from torch.utils.data import default_collate
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import InterpolationMode, v2

from models.backbones import Backbone, BackboneConfig, load_backbone
from models.preprocessing import Preprocessing


def loader(pixels: Preprocessing, shards: Sequence[str], batch: int, workers: int) -> Any:
    """Batches of uint8 (B, 3, size, size), made in `workers` processes, or in this one for 0.

    Float pixels would be four times the bytes from process to process, so they are made later, a batch at a time.
    """
    dataset = (
        wds.WebDataset(list(shards), shardshuffle=False)
        .to_tuple("jpg;jpeg;png")
        .map_tuple(transform(pixels))
        .batched(batch, collation_fn=default_collate)
    )
    return wds.WebLoader(dataset, batch_size=None, num_workers=workers)


def transform(pixels: Preprocessing) -> Any:
    """Decode a file, resize and crop it as the network was trained.

    All by torchvision: 0.3 ms for a JPEG of 256 pixels and 0.1 ms for a PNG of 28, against 0.4 ms by Pillow.
    """
    return v2.Compose(
        [
            _decode,
            v2.Resize(pixels.resize, InterpolationMode(pixels.interpolation), antialias=True),
            v2.CenterCrop(pixels.size),
        ]
    )


def _decode(image: bytes) -> Tensor:
    decoded: Tensor = decode_image(torch.frombuffer(bytearray(image), dtype=torch.uint8), ImageReadMode.RGB)
    return decoded


@torch.inference_mode()
def embeddings(backbone: Backbone, batches: Any) -> Iterator[Tensor]:
    """Embeddings (B, D) of all batches."""
    normalise = v2.Compose(
        [v2.ToDtype(torch.float32, scale=True), v2.Normalize(backbone.pixels.mean, backbone.pixels.std)]
    )
    for (image_BCHW,) in batches:
        yield backbone.net(normalise(image_BCHW).to(memory_format=torch.channels_last))


def main(settings: str, batch: str, workers: str, threads: str, *shards: str) -> None:
    """Embed the images, and print how many they were and when that began and ended."""
    torch.set_num_threads(int(threads))
    backbone = load_backbone(BackboneConfig.model_validate_json(settings))
    batches = loader(backbone.pixels, shards, int(batch), int(workers))
    ready = time.time()
    images = sum(len(x_BD) for x_BD in embeddings(backbone, batches))
    typer.echo(json.dumps({"images": images, "ready": ready, "ended": time.time()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
