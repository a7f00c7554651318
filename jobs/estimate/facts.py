"""What estimates are made from, and what they say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from jobs.rates import RATES, VALUE_BYTES, Network, Rate, network_of

if TYPE_CHECKING:
    from jobs.config import RunConfig


@dataclass(frozen=True)
class Facts:
    """What is known of the images before anything is read."""

    images: int
    image_bytes: float | None = None  # of one as it is stored, on average


@dataclass(frozen=True)
class Estimate:
    """Of one step. None is what is not known."""

    seconds: float | None
    worker_bytes: float | None = None  # memory of each worker; None where there are none beside the driver
    driver_bytes: float | None = None  # memory of the process that runs the command
    bytes_read: float | None = None
    bytes_written: float | None = None
    how: str = ""
    rates: Mapping[str, Rate] = field(default_factory=dict)

    @property
    def within(self) -> float | None:
        """The seconds should be between seconds / within and seconds * within: the margin of the worst rate."""
        return None if self.seconds is None else max((rate.within for rate in self.rates.values()), default=1.0)


@dataclass(frozen=True)
class Setting:
    """Settings, images, and the machines that do the work."""

    config: RunConfig
    facts: Facts
    cpus: int  # of this machine
    gpus: int  # of all machines of `deploy`

    @property
    def images(self) -> int:
        """N."""
        return self.facts.images

    @property
    def stored(self) -> float | None:
        """Bytes of all images."""
        return None if self.facts.image_bytes is None else self.images * self.facts.image_bytes

    @property
    def network(self) -> Network | None:
        """The backbone, if it is one whose rates are known."""
        backbone = self.config.backbone
        return network_of(backbone.name, backbone.size, backbone.grey)

    @property
    def side(self) -> int:
        """Pixels of an image's side, as it is embedded."""
        return self.config.backbone.size or (32 if self.config.backbone.name == "pixels" else 224)

    def decoded(self, cores: float) -> float:
        """Seconds in which so many cores decode all images."""
        large = (self.stored or 0) / RATES["decode"].value
        return max(self.images / RATES["small"].value, large) / max(1.0, cores)


def rates(*names: str) -> dict[str, Rate]:
    """Those of all steps, by name."""
    return {name: RATES[name] for name in names}


def table_bytes(rows: int, dim: int) -> float:
    """Of embeddings in a table."""
    return rows * (dim * VALUE_BYTES + 100)
