"""Shards of real images: Fashion-MNIST as PNG, and JPEGs cut from two photos; the same bytes each time."""

from __future__ import annotations

import gzip
import io
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

from models.errors import ShoalError
from pipeline.ingest.write import NewSample, ShardConfig, write_samples

FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # of the Debian package
PIXELS_FILE, LABELS_FILE = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
TEST_FILES = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"
PHOTOS = ("china", "flower")  # of sklearn.datasets.load_sample_images, 427 x 640
SIDE = 256  # the short side of a JPEG
QUALITY = 90


@dataclass(frozen=True)
class Size:
    """How many shards, and images in each."""

    shards: int
    images: int

    @property
    def total(self) -> int:
        """Images in all."""
        return self.shards * self.images


@contextmanager
def folder_for(data: Path | None) -> Iterator[Path]:
    """Where images are made: the folder given, which keeps them, or one that is gone afterwards."""
    if data is None:
        with tempfile.TemporaryDirectory(prefix="shoal-bench-images-") as name:
            yield Path(name)
        return
    if not data.is_dir():
        raise ShoalError(f"There is no data at {data}; give a folder, in which images are made and kept, as --data.")
    yield data.absolute()


def fashion(folder: Path, size: Size) -> list[str]:
    """Fashion-MNIST as 28 x 28 grey PNGs with the class as label; from the 60,001st on, images come again.

    Reads the files of the data set in `folder` if they are there, or those of the Debian package. Raises ShoalError
    where they are in neither.
    """
    return _made(folder / f"fashion-{size.shards}x{size.images}", size, lambda: _fashion_samples(folder, size.total))


def fashion_test(folder: Path, size: Size) -> list[str]:
    """Likewise the 10,000 test images, in the same order."""
    name = f"fashion-test-{size.shards}x{size.images}"
    return _made(folder / name, size, lambda: _fashion_samples(folder, size.total, TEST_FILES))


def photos(folder: Path, size: Size) -> list[str]:
    """JPEGs of quality 90, short side 256: random parts of two photos, mirrored or not, labelled with the photo.

    A part has 50 to 100 % of the photo's height, and 3/4 to 4/3 of that as width.
    """
    return _made(folder / f"photos-{size.shards}x{size.images}", size, lambda: _photo_samples(size.total))


SETS: dict[str, Callable[[Path, Size], list[str]]] = {"fashion": fashion, "photos": photos}


def linked(shards: list[str], folder: Path, times: int) -> list[str]:
    """The same shards under `times` as many names."""
    folder.mkdir()
    links = [folder / f"{time:02d}-{Path(shard).name}" for time in range(times) for shard in shards]
    for link, shard in zip(links, shards * times, strict=True):
        link.symlink_to(shard)
    return [str(link) for link in links]


def _made(folder: Path, size: Size, samples: Callable[[], Iterable[NewSample]]) -> list[str]:
    """The shards in `folder`, which appears when all are written."""
    if not folder.exists():
        with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=folder.parent) as name:
            unfinished = Path(name) / folder.name
            write_samples(samples(), unfinished, ShardConfig(images_per_shard=size.images))
            unfinished.rename(folder)
    return sorted(str(shard) for shard in folder.glob("*.tar"))


def _fashion_samples(
    folder: Path, count: int, files: tuple[str, str] = (PIXELS_FILE, LABELS_FILE)
) -> Iterator[NewSample]:
    pixels, labels = files
    source = folder if (folder / pixels).is_file() else FASHION_FOLDER
    if not (source / pixels).is_file():
        raise ShoalError(
            f"Fashion-MNIST is not at {source}; install the Debian package dataset-fashion-mnist, "
            f"or give a folder with its {pixels} and {labels} as --data."
        )
    ink_NHW, label_N = _read_idx(source / pixels, 3), _read_idx(source / labels, 1)
    for index in range(count):
        row = index % len(ink_NHW)
        yield NewSample(
            f"fashion-{index:06d}", "png", _encoded(Image.fromarray(ink_NHW[row]), "PNG"), str(label_N[row])
        )


def _read_idx(file: Path, dimensions: int) -> np.ndarray:
    """Bytes of a gzipped IDX file: a magic number and `dimensions` sizes as big-endian int32, then the values."""
    content = gzip.decompress(file.read_bytes())
    shape = np.frombuffer(content, ">i4", dimensions, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def _photo_samples(count: int) -> Iterator[NewSample]:
    folder = resources.files("sklearn.datasets.images")
    pictures = [Image.open(io.BytesIO(folder.joinpath(f"{name}.jpg").read_bytes())).convert("RGB") for name in PHOTOS]
    rng = np.random.default_rng(0)
    for index in range(count):
        which = index % len(PHOTOS)
        part = _encoded(_part(pictures[which], rng), "JPEG", quality=QUALITY)
        yield NewSample(f"photo-{index:06d}", "jpg", part, PHOTOS[which])


def _part(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    height = int(picture.height * rng.uniform(0.5, 1))
    width = min(picture.width, round(height * math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))))
    left, top = (int(rng.integers(free + 1)) for free in (picture.width - width, picture.height - height))
    scale = SIDE / min(width, height)
    part = picture.resize(
        (round(width * scale), round(height * scale)),
        Image.Resampling.BICUBIC,
        box=(left, top, left + width, top + height),
    )
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else part


def _encoded(image: Image.Image, form: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()
