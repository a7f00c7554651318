"""Random views of images, the same for a (seed, epoch, row, view number) whatever else is in the batch.

Views are uint8: networks scale pixels themselves, on their own device (`Preprocessing.normalise`).
Shapes: B images, C channels, V views of a bank, R = V · B crops, S × S pixels of a crop.
"""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as image_ops

from models import pixels
from models.draws import SLOTS, Draws, Whole, draw, uniform
from models.errors import ShoalError
from models.preprocessing import Preprocessing, grey_levels
from models.views_config import Bank, ViewsConfig

ROWS_AT_ONCE = 128  # what they need in between stays in a cache where images are small


class Views:
    """Cuts views of images with `channels` (1: grey levels, 3: RGB). Nothing in it changes, so threads may share it."""

    def __init__(self, config: ViewsConfig, channels: int, seed: int) -> None:
        self.config = config
        self._policy = config.chances
        self.channels = channels
        self.seed = seed
        ends = list(accumulate(bank.count for bank in config.banks))
        self._banks = [(bank, range(end - bank.count, end)) for bank, end in zip(config.banks, ends, strict=True)]

    def base_image(self, image_3HW: Tensor) -> Tensor:
        """The square that views are cut from, uint8 (C, base, base): the short side scaled, the centre kept."""
        if self.config.base is None:
            raise ShoalError("views.base is null, so images have no common size; set views.base, or use of_image")
        base = self.config.base
        grey = self.channels == 1
        return Preprocessing(size=base, resize=base, grey=grey, channels=1 if grey else 3).prepare(image_3HW)

    def of_batch(self, image_BCHW: Tensor, row_B: Whole, epoch: int) -> tuple[Tensor, ...]:
        """All views of images of one small size, uint8 (B, C, S, S) each, in the order of the banks."""
        blocks = zip(image_BCHW.split(ROWS_AT_ONCE), _blocks(row_B), strict=True)
        parts = [self._of_block(image_bCHW.float(), row_b, epoch) for image_bCHW, row_b in blocks]
        return tuple(torch.cat(view) for view in zip(*parts, strict=True))

    def of_image(self, image_3HW: Tensor, row: int, epoch: int) -> tuple[Tensor, ...]:
        """All views of one RGB image of any size, uint8 (C, S, S) each, in the order of the banks.

        What is cut out is scaled, not the whole image; only `rotate` costs time with the image's area.
        """
        image_CHW = grey_levels(image_3HW) if self.channels == 1 else image_3HW
        row_1 = np.array([row], np.int64)
        return tuple(view for bank, views in self._banks for view in self._of_one(image_CHW, bank, views, row_1, epoch))

    def _of_block(self, level_BCHW: Tensor, row_B: Whole, epoch: int) -> list[Tensor]:
        height, width = level_BCHW.shape[-2:]
        views_done: list[Tensor] = []
        for bank, views in self._banks:
            u_RS = uniform(self.seed, epoch, row_B, views, SLOTS)
            drawn = draw(self._policy, bank, u_RS, height, width)
            level_RCHW = level_BCHW.repeat(bank.count, 1, 1, 1)
            if self._policy.rotate:
                level_RCHW = pixels.turn(level_RCHW, drawn.angle_R)
            row_RSH = pixels.resize_weights(drawn.top_R, drawn.height_R, bank.size, height)
            column_RSW = pixels.resize_weights(drawn.left_R, drawn.width_R, bank.size, width, drawn.flip_R)
            crop_RCSS = self._coloured(pixels.resample(level_RCHW, row_RSH, column_RSW), drawn)
            views_done += crop_RCSS.to(torch.uint8).chunk(bank.count)
        return views_done

    def _of_one(self, image_CHW: Tensor, bank: Bank, views: range, row_1: Whole, epoch: int) -> tuple[Tensor, ...]:
        drawn = draw(self._policy, bank, uniform(self.seed, epoch, row_1, views, SLOTS), *image_CHW.shape[-2:])
        crops = [self._cut(image_CHW, bank.size, drawn, view) for view in range(bank.count)]
        return self._coloured(torch.stack(crops).float(), drawn).to(torch.uint8).unbind(0)

    def _cut(self, image_CHW: Tensor, size: int, drawn: Draws, view: int) -> Tensor:
        if self._policy.rotate:
            image_CHW = pixels.turn(image_CHW[None].float(), drawn.angle_R[view : view + 1])[0].to(torch.uint8)
        box = [int(each[view]) for each in (drawn.top_R, drawn.left_R, drawn.height_R, drawn.width_R)]
        crop_CSS: Tensor = image_ops.resized_crop(image_CHW, *box, size=[size, size], antialias=True)
        return crop_CSS.flip(-1) if drawn.flip_R[view] else crop_CSS

    def _coloured(self, level_RCSS: Tensor, drawn: Draws) -> Tensor:
        """Gamma, jitter in torchvision's order as written (it shuffles the four), grey, and blur last as in SwAV."""
        policy, colour = self._policy, self.channels == 3
        if policy.jitter and policy.gamma:
            level_RCSS = pixels.apply_gamma(level_RCSS, drawn.gamma_R)
        if policy.jitter and policy.brightness:
            level_RCSS = pixels.scale_brightness(level_RCSS, drawn.brightness_R)
        if policy.jitter and policy.contrast:
            level_RCSS = pixels.scale_contrast(level_RCSS, drawn.contrast_R)
        if colour and policy.jitter and policy.saturation:
            level_RCSS = pixels.scale_saturation(level_RCSS, drawn.saturation_R)
        if colour and policy.jitter and policy.hue:
            level_RCSS = pixels.shift_hue(level_RCSS, drawn.hue_R)
        if colour and drawn.grey_R.any():
            level_RCSS[drawn.grey_R] = pixels.without_colour(level_RCSS[drawn.grey_R])
        blurred_R = drawn.blur_R > 0
        if blurred_R.any():
            level_RCSS[blurred_R] = pixels.blur(level_RCSS[blurred_R], drawn.blur_R[blurred_R])
        return level_RCSS


def _blocks(row_B: Whole) -> list[Whole]:
    return [row_B[begin : begin + ROWS_AT_ONCE] for begin in range(0, len(row_B), ROWS_AT_ONCE)]
