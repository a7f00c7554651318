"""Random numbers by counter, and what is drawn for a view: a pure function of (seed, epoch, row, view number).

No generator keeps a state, so threads, the make-up of a batch and the number of workers change nothing.
Shapes: B rows, V views of a bank, R = V · B with the rows of one view together, S numbers of one view.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.views_config import ASPECT, Bank, Policy

Numbers = NDArray[np.uint64]
Real = NDArray[np.float64]
Whole = NDArray[np.int64]
Flags = NDArray[np.bool_]

GOLDEN = 0x9E3779B97F4A7C15
ATTEMPTS = 10  # of a crop that fits, before the centre is taken: torchvision's number
SLOTS = 2 * ATTEMPTS + 13
BLUR = (0.1, 2.0)  # radius in pixels (Caron et al. 2020), for crops of BLUR_SIZE pixels and more
BLUR_SIZE = 96  # the smallest crop that the published recipe blurs; below it the radius shrinks in proportion


def stream(state_R: Numbers, count: int) -> Numbers:
    """The first `count` outputs of splitmix64 from each state, (R, count) (Steele, Lea, Flood 2014)."""
    steps_S = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GOLDEN)
    return _mix(state_R[:, None] + steps_S)


def uniform(seed: int, epoch: int, row_B: Whole, views: range, count: int) -> Real:
    """Independent numbers of [0, 1), (V · B, count), for every view of every row; about 25 million a second."""
    key_1 = _fold(_fold(_fold(np.zeros(1, np.uint64), seed), epoch), 0)
    key_B = _mix(key_1 ^ row_B.view(np.uint64))
    key_VB = np.concatenate([_fold(key_B, view) for view in views])
    return np.asarray((stream(key_VB, count) >> np.uint64(11)) * 2.0**-53, np.float64)


@dataclass(frozen=True)
class Draws:
    """What happens to R crops: a box of the image, a mirror, an angle, five numbers of colour, grey and blur."""

    top_R: Whole
    left_R: Whole
    height_R: Whole
    width_R: Whole
    flip_R: Flags
    angle_R: Real  # degrees
    brightness_R: Real  # 1 changes nothing; so with contrast and saturation
    contrast_R: Real
    saturation_R: Real
    hue_R: Real  # 0 changes nothing
    gamma_R: Real  # 1 changes nothing
    grey_R: Flags
    blur_R: Real  # standard deviation in pixels of the crop; 0 leaves the crop sharp


def draw(policy: Policy, bank: Bank, u_RS: Real, height: int, width: int) -> Draws:
    """Draws for crops of images of height × width pixels from numbers of [0, 1).

    Every event has its own numbers, so changing one setting leaves the others' events as they were.
    """
    box = crop_box(bank.area, u_RS[:, : 2 * ATTEMPTS + 2], height, width)
    events = u_RS[:, 2 * ATTEMPTS + 2 :].T
    flip, angle, jitter, brightness, contrast, saturation, hue, grey, blur, radius, gamma = events
    changes_R = jitter < policy.jitter
    scale = min(1.0, bank.size / BLUR_SIZE)
    return Draws(
        *box,
        flip_R=flip < policy.flip,
        angle_R=policy.rotate * (2 * angle - 1),
        brightness_R=_factor(brightness, policy.brightness, changes_R),
        contrast_R=_factor(contrast, policy.contrast, changes_R),
        saturation_R=_factor(saturation, policy.saturation, changes_R),
        hue_R=np.where(changes_R, policy.hue * (2 * hue - 1), 0.0),
        gamma_R=np.where(changes_R, np.exp(policy.gamma * (2 * gamma - 1)), 1.0),
        grey_R=grey < policy.grey,
        blur_R=np.where(blur < policy.blur, scale * (BLUR[0] + (BLUR[1] - BLUR[0]) * radius), 0.0),
    )


def crop_box(area: tuple[float, float], u_RS: Real, height: int, width: int) -> tuple[Whole, Whole, Whole, Whole]:
    """Top, left, height, width as torchvision's RandomResizedCrop draws them, from 2 · ATTEMPTS + 2 numbers a crop.

    A share of the area, uniform, and an aspect ratio, log-uniform, until the box fits; after ATTEMPTS the largest
    centred box of an aspect that is allowed.
    """
    area_RA = height * width * (area[0] + (area[1] - area[0]) * u_RS[:, :ATTEMPTS])
    low, high = map(math.log, ASPECT)
    aspect_RA = np.exp(low + (high - low) * u_RS[:, ATTEMPTS : 2 * ATTEMPTS])
    width_RA, height_RA = np.rint(np.sqrt(area_RA * aspect_RA)), np.rint(np.sqrt(area_RA / aspect_RA))
    fits_RA = (width_RA > 0) & (width_RA <= width) & (height_RA > 0) & (height_RA <= height)
    found_R, first_R = fits_RA.any(axis=1), fits_RA.argmax(axis=1)
    rows_R = np.arange(len(u_RS))
    centre_height, centre_width = _centred(height, width)
    height_R = np.where(found_R, height_RA[rows_R, first_R], centre_height).astype(np.int64)
    width_R = np.where(found_R, width_RA[rows_R, first_R], centre_width).astype(np.int64)
    top_R = np.where(found_R, u_RS[:, -2] * (height - height_R + 1), (height - height_R) // 2)
    left_R = np.where(found_R, u_RS[:, -1] * (width - width_R + 1), (width - width_R) // 2)
    return top_R.astype(np.int64), left_R.astype(np.int64), height_R, width_R


def _centred(height: int, width: int) -> tuple[int, int]:
    if width / height < ASPECT[0]:
        return round(width / ASPECT[0]), width
    if width / height > ASPECT[1]:
        return height, round(height * ASPECT[1])
    return height, width


def _factor(u_R: Real, strength: float, changes_R: Flags) -> Real:
    low = max(0.0, 1 - strength)
    return np.where(changes_R, low + (1 + strength - low) * u_R, 1.0)


def _fold(key_R: Numbers, value: int) -> Numbers:
    """A key for each (key, value); of one key, different values never give the same."""
    return _mix(_mix(key_R + np.uint64(GOLDEN)) ^ np.uint64(value % 2**64))


def _mix(state: Numbers) -> Numbers:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
