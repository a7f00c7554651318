"""A folder of images, looked through before it is packed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from models.errors import ShoalError
from pipeline.ingest.names import IMAGE_EXTENSIONS, is_image


class ImageFile(NamedTuple):
    """A file that a scan found, and what tells later whether it was changed."""

    path: str  # relative to the scanned folder, with "/"
    size: int
    modified_ns: int


@dataclass(frozen=True)
class FolderScan:
    """The images of a folder, in order of their paths, and how many entries were passed over."""

    folder: Path
    images: tuple[ImageFile, ...]
    hidden: int  # files and folders whose name begins with a dot
    others: int  # files that are no images by their extension


def scan_folder(folder: Path) -> FolderScan:
    """Find all images below `folder`. Links to files are followed, links to folders are not.

    Raises ShoalError when it is no folder, cannot be read, or holds no image.
    """
    if not folder.is_dir():
        raise ShoalError(f"{folder} is not a folder; name a folder of images.")
    images, hidden, others = [], 0, 0
    for parent, folders, files in os.walk(folder, onerror=_cannot_read):
        hidden += sum(name.startswith(".") for name in (*folders, *files))
        folders[:] = [name for name in folders if not name.startswith(".")]
        for file in (Path(parent, name) for name in files if not name.startswith(".")):
            if is_image(file.name) and file.is_file():
                status = file.stat()
                images.append(ImageFile(file.relative_to(folder).as_posix(), status.st_size, status.st_mtime_ns))
            else:
                others += 1
    if not images:
        raise ShoalError(
            f"{folder} holds no images ({others} other files, {hidden} hidden ones); "
            f"images are known by their extensions: {', '.join(sorted(IMAGE_EXTENSIONS))}."
        )
    return FolderScan(folder, tuple(sorted(images)), hidden, others)


def _cannot_read(error: OSError) -> None:
    raise ShoalError(
        f"{error.filename} cannot be read ({error.strerror}); make it readable or leave it out."
    ) from error
