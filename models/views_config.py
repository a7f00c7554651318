"""Which random views of an image a network learns from: crops by size, and what each of them suffers."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from models.config import Config

ASPECT = (3 / 4, 4 / 3)  # width over height of the part that is cut out, log-uniform
MAX_CROP = 4096  # pixels; memory goes with the square, as in models.preprocessing


class Bank(Config):
    """`count` crops of size × size pixels; each is a part of the image, of a share of its area drawn from `area`."""

    size: int = Field(ge=1, le=MAX_CROP, description="pixels of the crop")
    count: int = Field(ge=1, description="crops of each image")
    area: tuple[float, float] = Field(description="smallest and largest share of the image that is cut out")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"area is {self.area}; give the smallest and largest part of the image, 0 < a <= b <= 1")
        return self


class ViewsConfig(Config):
    """Views of one image: banks of crops in order, all of them under the same policy. Null takes the policy's value.

    Policies: `colour` for photographs (SwAV's own), `grey` for objects without colour, `digits` for what a mirror makes
    unreadable. `base` brings images to a square first (short side scaled, centre kept) and cuts views of a whole batch
    at once: right for small images. Without it views are cut from the decoded image, one by one.
    """

    policy: Literal["colour", "grey", "digits"] = "colour"
    banks: tuple[Bank, ...] = Field(
        (Bank(size=224, count=2, area=(0.14, 1.0)), Bank(size=96, count=6, area=(0.05, 0.14))),
        min_length=1,
        description="the first one's crops get codes, and all predict them",
    )
    base: int | None = Field(
        None,
        ge=1,
        le=MAX_CROP,
        description="pixels of a square that images are brought to first; null: views are cut from decoded images",
    )
    flip: float | None = Field(None, ge=0, le=1, description="probability of a left-right mirror")
    rotate: float | None = Field(None, ge=0, le=180, description="degrees; the angle is uniform in ± rotate")
    brightness: float | None = Field(None, ge=0, le=10, description="factor uniform in 1 ± brightness, at least 0")
    contrast: float | None = Field(None, ge=0, le=10, description="likewise, about the mean grey level")
    saturation: float | None = Field(None, ge=0, le=10, description="likewise, about each pixel's grey level")
    hue: float | None = Field(None, ge=0, le=0.5, description="shift uniform in ± hue, of the whole colour circle")
    gamma: float | None = Field(
        None, ge=0, le=3, description="exponent of levels (as parts of the largest), log-uniform in exp(± gamma)"
    )
    jitter: float | None = Field(None, ge=0, le=1, description="probability of the five above, all together")
    grey: float | None = Field(None, ge=0, le=1, description="probability of grey levels")
    blur: float | None = Field(
        None,
        ge=0,
        le=1,
        description="probability of a Gaussian blur with a radius from .1 to 2 pixels, less for crops below 96",
    )

    @property
    def views(self) -> int:
        """Views of one image, over all banks."""
        return sum(bank.count for bank in self.banks)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Pixels of each view, in the order of the banks."""
        return tuple(bank.size for bank in self.banks for _ in range(bank.count))

    @property
    def chances(self) -> Policy:
        """What applies: the settings given, and the policy's for the rest."""
        policy = _POLICIES[self.policy]
        given = {name: getattr(self, name) for name in Policy.model_fields}
        return policy.model_copy(update={name: value for name, value in given.items() if value is not None})

    @property
    def resolved(self) -> ViewsConfig:
        """The same with the policy's values in place of null; only `base` may stay null."""
        return self.model_copy(update=self.chances.model_dump())


class Policy(Config):
    """Numbers of a policy, as described at ViewsConfig; what is not named does not happen."""

    flip: float = 0.0
    rotate: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    gamma: float = 0.0
    jitter: float = 0.0
    grey: float = 0.0
    blur: float = 0.0


_POLICIES = {
    # Caron et al. 2020, appendix A: SimCLR's colour distortion at strength 1
    "colour": Policy(flip=0.5, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, jitter=0.8, grey=0.2, blur=0.5),
    "grey": Policy(flip=0.5, brightness=0.4, contrast=0.4, jitter=0.8),
    "digits": Policy(rotate=15.0),
}
