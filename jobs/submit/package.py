"""What leaves this machine with a job: the code of shoal as it is in the working tree, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from jobs.submit.pins import metadata_of_shoal, write_pins

PACKAGES = ("models", "pipeline", "jobs")
DATA = {"jobs": ("report/templates/*", "configs/*.yaml", "deploy/*.sh")}  # beside *.py, as pyproject.toml has it
CONFIGS = "config"  # folder of the user's config file
LEFT_OUT = "all that is not *.py or data of the packages: .git, tests, data, credentials, notes"


@dataclass(frozen=True)
class Package:
    """A folder that Ray makes an archive of, named by its content, and uploads once."""

    folder: Path
    files: int
    size_bytes: int


def stage(folder: Path, config: Path | None, pins: Mapping[str, str]) -> Package:
    """Copy what is packed into an empty `folder`: the code, the `config` of the user's, and the `pins` if any."""
    for package in PACKAGES:
        root = _root(package)
        for path in _files(package, root):
            _write(folder / package / path.relative_to(root), path.read_bytes())
    name, text = metadata_of_shoal()
    _write(folder / name, text.encode())
    if config is not None:
        _write(folder / packed_config(config), config.read_bytes())
    if pins:
        write_pins(folder, pins)
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return Package(folder, len(sizes), sum(sizes))


def packed_config(config: Path) -> str:
    """Where the job finds the config file, below the folder that it starts in."""
    return f"{CONFIGS}/{config.name}"


def _files(package: str, root: Path) -> Iterator[Path]:
    """Plain files only: a link may lead anywhere."""
    for pattern in ("**/*.py", *DATA.get(package, ())):
        for path in sorted(root.glob(pattern)):
            hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
            if path.is_file() and not path.is_symlink() and not hidden:
                yield path


def _root(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{package} is no package here")
    return Path(spec.submodule_search_locations[0]).resolve()


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
