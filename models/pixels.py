"""Geometry and colour of many small images at once, each with numbers of its own.

Images are float32 tensors that hold whole grey levels from 0 to 255, and every function returns such levels. Weights
are whole multiples of 1 / UNIT, so the sums behind a level are exact in float32: a level never depends on how many
images share a call, on threads or on the order in which a library adds. Shapes: R images, C channels, H × W pixels.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.preprocessing import grey_levels

FINE = 2  # steps of a level between the two directions of a resize
UNIT = 2**14  # of weights: 255 · FINE · UNIT is below 2**24, where float32 stops counting
TABLE_NUMBERS = 2**22  # weights of every case, kept up to so many: lines of 32 pixels scaled to 32 have half of it

Real = NDArray[np.float64]
Whole = NDArray[np.int64]
Flags = NDArray[np.bool_]


def resample(level_RCHW: Tensor, row_RSH: Tensor, column_RSW: Tensor) -> Tensor:
    """row · level · columnᵀ for each image, (R, C, S, S): both directions of a resize or a blur."""
    images, channels, height, width = level_RCHW.shape
    size = row_RSH.shape[1]
    wide_RCHS = torch.bmm(level_RCHW.reshape(images, channels * height, width), column_RSW.mT)
    wide_RCHS = wide_RCHS.mul_(FINE / UNIT).round_().view(images, channels, height, size)
    return torch.matmul(row_RSH[:, None], wide_RCHS).mul_(1 / (FINE * UNIT)).round_()


def resize_weights(start_R: Whole, length_R: Whole, size: int, pixels: int, flip_R: Flags | None = None) -> Tensor:
    """Weights (R, size, pixels), in UNIT, that scale pixels [start, start + length) of a line to `size` pixels.

    The antialiased triangle filter of PIL and torchvision; `flip` reverses a line. Of short lines every case is
    computed once, and looked up from then on.
    """
    flip_R = np.zeros(len(start_R), np.bool_) if flip_R is None else flip_R
    if 2 * size * pixels**3 > TABLE_NUMBERS:
        return _triangles(start_R, length_R, size, pixels, flip_R)
    case_R = ((flip_R * pixels) + start_R) * pixels + length_R - 1
    return _all_triangles(size, pixels)[torch.from_numpy(case_R)]


@cache
def _all_triangles(size: int, pixels: int) -> Tensor:
    """By mirror, start and length − 1; what would reach beyond the line ends with it, and is never asked for."""
    flip_R, start_R, length_R = (axis.ravel() for axis in np.indices((2, pixels, pixels)))
    return _triangles(start_R, np.minimum(length_R + 1, pixels - start_R), size, pixels, flip_R == 1)


def _triangles(start_R: Whole, length_R: Whole, size: int, pixels: int, flip_R: Flags) -> Tensor:
    scale_R1 = (length_R / size)[:, None]
    stretch_R1 = np.maximum(scale_R1, 1)
    place_S = np.arange(size) + 0.5
    place_RS = np.where(flip_R[:, None], size - place_S, place_S)
    centre_RS = (start_R[:, None] + scale_R1 * place_RS) / stretch_R1
    pixel_P = np.arange(pixels)
    inside_RP = (pixel_P >= start_R[:, None]) & (pixel_P < (start_R + length_R)[:, None])
    pixel_RP = np.where(inside_RP, (pixel_P + 0.5) / stretch_R1, math.inf)
    distance_RSP = torch.sub(_float(pixel_RP)[:, None, :], _float(centre_RS)[:, :, None]).abs_()
    return _in_units(torch.sub(1, distance_RSP, out=distance_RSP).clamp_min_(0))


def blur(level_RCHW: Tensor, sigma_R: Real) -> Tensor:
    """A Gaussian blur of square images by standard deviations in pixels; weights beyond the edge go to the rest."""
    offset_H = np.arange(level_RCHW.shape[-1])
    exponent_RHH = (offset_H[:, None] - offset_H) ** 2 / (2 * sigma_R[:, None, None] ** 2)
    weight_RHH = _in_units(_float(np.exp(-exponent_RHH)))
    return resample(level_RCHW, weight_RHH, weight_RHH)


def turn(level_RCHW: Tensor, angle_R: Real) -> Tensor:
    """Images turned counter-clockwise about their centre by degrees; beyond the edge the edge goes on."""
    images, _, height, width = level_RCHW.shape
    x_W, y_H = (np.arange(length) + 0.5 - length / 2 for length in (width, height))
    cos_R1, sin_R1 = np.cos(np.deg2rad(angle_R))[:, None], np.sin(np.deg2rad(angle_R))[:, None]
    from_RHW2 = torch.empty(images, height, width, 2)  # in −1 … 1 from edge to edge
    for axis, (by_x_RW, by_y_RH) in enumerate(((cos_R1 * x_W, -sin_R1 * y_H), (sin_R1 * x_W, cos_R1 * y_H))):
        half = (width, height)[axis] / 2
        parts = _float(by_x_RW / half)[:, None, :], _float(by_y_RH / half)[:, :, None]
        torch.add(*parts, out=from_RHW2[..., axis])
    turned_RCHW = torch.nn.functional.grid_sample(level_RCHW, from_RHW2, padding_mode="border", align_corners=False)
    return turned_RCHW.round_()


def apply_gamma(level_RCHW: Tensor, exponent_R: Real) -> Tensor:
    """Levels, as parts of 255, to a power; 1 changes nothing."""
    table_RL = np.rint(255 * (np.arange(256) / 255) ** exponent_R[:, None])
    level_RX = level_RCHW.flatten(1).to(torch.int64)
    return _float(table_RL).gather(1, level_RX).view_as(level_RCHW)


def scale_brightness(level_RCHW: Tensor, factor_R: Real) -> Tensor:
    """Levels times a factor; 1 changes nothing."""
    return _levels(level_RCHW * _per_image(factor_R))


def scale_contrast(level_RCHW: Tensor, factor_R: Real) -> Tensor:
    """Differences to the mean grey level of an image times a factor; 1 changes nothing."""
    luma_R1HW = _luma(level_RCHW)
    mean_R = luma_R1HW.sum(dim=(1, 2, 3), dtype=torch.float64) / luma_R1HW[0].numel()
    return _blend(level_RCHW, mean_R.float()[:, None, None, None], factor_R)


def scale_saturation(level_R3HW: Tensor, factor_R: Real) -> Tensor:
    """Differences to a pixel's own grey level times a factor; 1 changes nothing."""
    return _blend(level_R3HW, _luma(level_R3HW), factor_R)


def shift_hue(level_R3HW: Tensor, shift_R: Real) -> Tensor:
    """Hue moved by a part of the colour circle, in −.5 … .5, at the same saturation and value; 0 changes nothing."""
    red, green, blue = level_R3HW.unbind(1)
    low_RHW, high_RHW = torch.aminmax(level_R3HW, dim=1)
    range_RHW = high_RHW - low_RHW
    safe_RHW = range_RHW.clamp_min(1)
    hue_RHW = torch.where(
        high_RHW == red,
        (green - blue) / safe_RHW,
        torch.where(high_RHW == green, (blue - red) / safe_RHW + 2, (red - green) / safe_RHW + 4),
    )  # in sixths of the circle
    turned_R1HW = (hue_RHW + _float(6 * shift_R)[:, None, None])[:, None]
    sixth_R3HW = (turned_R1HW + torch.tensor([5.0, 3.0, 1.0])[:, None, None]).remainder_(6)
    part_R3HW = torch.minimum(sixth_R3HW, 4 - sixth_R3HW).clamp_(0, 1)
    return _levels(high_RHW[:, None] - range_RHW[:, None] * part_R3HW)


def without_colour(level_R3HW: Tensor) -> Tensor:
    """Every channel the grey level of its pixel."""
    return _luma(level_R3HW).expand_as(level_R3HW)


def _luma(level_RCHW: Tensor) -> Tensor:
    return level_RCHW if level_RCHW.shape[1] == 1 else grey_levels(level_RCHW.movedim(1, 0)).movedim(0, 1).float()


def _blend(level_RCHW: Tensor, towards: Tensor, factor_R: Real) -> Tensor:
    return _levels(towards + (level_RCHW - towards).mul_(_per_image(factor_R)))


def _levels(value_RCHW: Tensor) -> Tensor:
    return value_RCHW.clamp_(0, 255).round_()


def _in_units(weight_RSP: Tensor) -> Tensor:
    return weight_RSP.mul_(UNIT / weight_RSP.sum(dim=2, keepdim=True)).round_()


def _per_image(factor_R: Real) -> Tensor:
    return _float(factor_R)[:, None, None, None]


def _float(values: Real) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))
