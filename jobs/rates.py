"""How fast and how large things are, each with its source and how far off it may be.

Measured ones are of this project, on two cores of one machine (AMD EPYC with AVX-512 bf16) that other work shared at
times; GPUs were not measured, their rates are published ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

IMAGE_224 = 224 * 224  # pixels
MULTI_CROP = 2 * 224 * 224 + 6 * 96 * 96  # pixels of SwAV's eight views
RESNET_50_TRAINED = 1_218.0  # images/s of 224 pixels: what the others of the same table are compared with


@dataclass(frozen=True)
class Rate:
    """A figure that estimates are made from."""

    value: float
    unit: str
    within: float  # the truth should be between value / within and value * within
    source: str


RATES = {
    "pack": Rate(4_000, "images/s", 2, "measured: 70,000 PNGs packed in 17.9 s"),
    "copy": Rate(100_000_000, "bytes/s", 4, "an object store to one stream; a disk is faster"),
    "decode": Rate(75_000_000, "bytes/s a core", 2, "measured: 700 JPEGs/s of 500 x 375, 108 kB (infra/SCALING.md)"),
    "small": Rate(2_400, "images/s a core", 2, "measured: 70,000 PNGs of 28 pixels decoded and kept in 14.5 s on 2"),
    "views": Rate(40, "images/s a core", 3, "measured: SwAV's 8 views of 500 x 375 pixels, 43/s on a busy core"),
    "extract_start": Rate(12, "s", 2, "measured: Ray, workers, their imports; 12 to 18 s"),
    "group_start": Rate(25, "s", 2, "measured: a Ray Train group, 15 to 40 s"),
    "umap_start": Rate(8, "s", 2, "measured: UMAP is compiled when it is first used"),
    "umap": Rate(1_100, "rows/s", 2, "measured: 30,000 rows in 27 s"),
    "neighbours": Rate(25_000_000_000, "multiplications/s", 3, "FAISS on one core, exact, rows against rows"),
    "network": Rate(5, "s", 2, "measured: 3,000 steps that fit UMAP's network"),
    "matrix": Rate(20_000_000_000, "multiplications/s", 3, "float32 products on one core; half of it in float64"),
    "table": Rate(200_000_000, "bytes/s", 4, "measured: 800 MB/s on a disk; an object store gives less"),
    "dpm": Rate(150_000, "rows x dimensions/s a thread", 3, "measured: 10^6 x 64 rows 279 s, 1.28 M x 128 1,440 s"),
    "deepdpm_steps": Rate(500, "steps/s", 2, "measured: 70,000 x 10 rows, 6,564 steps, 19 s"),
    "deepdpm_rows": Rate(125_000, "rows/s", 3, "the same"),
    "deepdpm_cells": Rate(22_000_000, "rows x cells/s", 3, "measured: 100,000 x 10 rows, 400 cells, 11 epochs, 39 s"),
    "deepdpm_epochs": Rate(12, "epochs until it settles", 2, "measured: 11 to 12 where clusters are clear"),
    "kmeans": Rate(30_000, "rows/s", 3, "measured: 70,000 x 10 rows, K 10, labels written, in 2.8 s"),
    "label": Rate(30_000, "rows/s", 3, "measured: 70,000 rows scored in 2.4 s"),
    "report": Rate(3, "s", 3, "measured: 3.2 s for 1,797 images, 7.7 s for 70,000"),
    "report_rows": Rate(15_000, "rows/s", 3, "the same"),
}
LIBRARY_BYTES = 0.8e9  # of a process with torch and Ray; measured, .7 to .9
VALUE_BYTES = 3.4  # of a number of an embedding in a table; measured, 4.3 kB a row of 1,280


@dataclass(frozen=True)
class Pace:
    """Pixels a second through a network: of one core in fp32 and bf16, of one GPU; None where nobody measured."""

    fp32: float | None
    bf16: float | None
    gpu: float | None
    within: float
    source: str

    def of(self, precision: str | None, cores: int, gpus: int) -> Rate | None:
        """Of a worker with so many cores, or a GPU."""
        value = self.gpu if gpus else self.bf16 if precision == "bf16" else self.fp32
        if value is None:
            return None
        return Rate(value * (1 if gpus else cores), "pixels/s a worker", self.within, self.source)


@dataclass(frozen=True)
class Network:
    """A backbone: its size, and how fast it embeds and learns."""

    parameters: int
    dim: int
    embed: Pace
    learn: Pace
    activation_bytes: float = 2_000  # a pixel in fp32 while it learns, half of it and more in bf16


_TIMM = "timm, RTX 4090 in half precision (benchmark-infer-amp-nhwc-pt240-cu124-rtx4090.csv)"
_SWAV = "Caron et al. 2020: 49 hours of 64 V100 for 800 epochs, 91 images/s each"
_OTHERS = f"{_SWAV}; the network's share of that by timm's training table of an RTX 3090"
_V100 = 800 * 1_281_167 / (49 * 3600 * 64) * MULTI_CROP  # pixels/s of a ResNet-50

NETWORKS = {
    "torchvision/resnet50": Network(
        parameters=23_508_032,
        dim=2_048,
        embed=Pace(18 * IMAGE_224, 35 * IMAGE_224, 5_088 * IMAGE_224, 2, f"measured on a core; {_TIMM}"),
        learn=Pace(1.4 * MULTI_CROP, 2.5 * MULTI_CROP, _V100, 3, f"measured on a core in batches of 16; {_SWAV}"),
        activation_bytes=2_100,
    ),
    "torchvision/resnet18": Network(
        parameters=11_176_512,
        dim=512,
        embed=Pace(45 * IMAGE_224, 100 * IMAGE_224, None, 2, "measured on a core (infra/SCALING.md)"),
        learn=Pace(None, None, _V100 * 3_482 / RESNET_50_TRAINED, 4, _OTHERS),
    ),
    "pypi/efficientnet_lite0": Network(
        parameters=3_373_000,
        dim=1_280,
        embed=Pace(60 * IMAGE_224, 130 * IMAGE_224, 9_765 * IMAGE_224, 2, f"measured on a core; {_TIMM}"),
        learn=Pace(None, None, _V100 * 2_079 / RESNET_50_TRAINED, 4, _OTHERS),
    ),
    "shoal/conv4_grey": Network(
        parameters=389_000,
        dim=256,
        embed=Pace(2.4e6, None, None, 3, "thrice the rate at which it learns, which was measured"),
        learn=Pace(0.8e6, None, None, 2, "measured: 1,797 digits, 50 epochs of two views of 16 pixels, 58 s"),
        activation_bytes=600,
    ),
}


def network_of(name: str, side: int | None, grey: bool | None) -> Network | None:
    """What is known of a backbone; raw pixels are one that costs nothing."""
    if name != "pixels":
        return NETWORKS.get(name)
    free = Pace(math.inf, math.inf, math.inf, 1, "pixels are taken as they are")
    return Network(0, (side or 32) ** 2 * (1 if grey else 3), free, free)
