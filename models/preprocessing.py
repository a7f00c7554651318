"""From an image of any size to the fixed uint8 tensor that a backbone takes, and from there to floats.

Shapes: B images, C channels, H and W pixels.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as image_ops

from models.config import Config

MAX_ASPECT = 4  # beyond it the long side is cut before resizing: 1 × 10,000 pixels would become 256 × 2,560,000


class Preprocessing(Config):
    """How pixels become a network's input; part of what embeddings depend on, so part of the digest.

    `crop` scales the short side to `resize` and keeps the centre; `squash` ignores the aspect ratio.
    """

    size: PositiveInt
    resize: PositiveInt
    fit: Literal["crop", "squash"] = "crop"
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    grey: bool = False
    channels: Literal[1, 3] = 3
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def prepare(self, image_3HW: Tensor) -> Tensor:
        """The uint8 tensor (channels, size, size) of a uint8 RGB image; an image of that size is not resampled."""
        image_CHW = grey_levels(image_3HW).expand(self.channels, -1, -1) if self.grey else image_3HW
        shape = [self.size, self.size]
        if self.fit == "squash":
            return self._scale(image_CHW, shape).contiguous()
        scaled_CHW = self._scale(_without_excess(image_CHW), [self.resize])
        return _centre(scaled_CHW, shape).contiguous()

    def normalise(self, image_BCHW: Tensor) -> Tensor:
        """Float32 input of the network: pixels scaled to [0, 1], then (pixel − mean) / std per channel."""
        mean_C11 = torch.tensor(self.mean, device=image_BCHW.device)[:, None, None]
        std_C11 = torch.tensor(self.std, device=image_BCHW.device)[:, None, None]
        return (image_BCHW.float() / 255 - mean_C11) / std_C11

    def _scale(self, image_CHW: Tensor, shape: list[int]) -> Tensor:
        mode = InterpolationMode(self.interpolation)
        scaled_CHW: Tensor = image_ops.resize(image_CHW, shape, interpolation=mode, antialias=True)
        return scaled_CHW


def grey_levels(image_3HW: Tensor) -> Tensor:
    """Luma (ITU-R BT.601) in 16-bit fixed point, uint8 (1, H, W); weights sum to 1: grey pixels stay as they are."""
    red, green, blue = image_3HW.int().unbind(0)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).to(torch.uint8)[None]


def _without_excess(image_CHW: Tensor) -> Tensor:
    height, width = image_CHW.shape[-2:]
    limit = MAX_ASPECT * min(height, width)
    return _centre(image_CHW, [min(height, limit), min(width, limit)])


def _centre(image_CHW: Tensor, shape: list[int]) -> Tensor:
    cropped_CHW: Tensor = image_ops.center_crop(image_CHW, shape)
    return cropped_CHW
