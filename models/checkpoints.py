"""Checkpoints as people have them: which tensors are the backbone's, by the names that training scripts give.

Sources of the layouts: main_*.py and eval_*.py of facebookresearch/swav, moco, moco-v3, simsiam, barlowtwins, vicreg,
dino and dinov2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from models.errors import ShoalError
from models.preprocessing import Preprocessing

WRAPPERS = ("teacher", "state_dict", "model")  # keys under which training scripts keep a network, the wanted one first
MAX_WRAPPERS = 3  # a hostile file may hold itself
PARALLEL = ("module.", "_orig_mod.")  # put before every name by DistributedDataParallel and torch.compile
IMAGENET: dict[str, Any] = {  # Resize(256), CenterCrop(224), as these releases evaluate; `resize` scales with the size
    "size": 224,
    "resize": 256,
    "interpolation": "bilinear",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}


@dataclass(frozen=True)
class Layout:
    """How one family of training scripts names tensors."""

    title: str
    marks: tuple[str, ...]  # beginnings of names; a file with all of them is of this layout
    prefix: str = ""  # of the backbone's own tensors
    heads: tuple[str, ...] = ()  # beginnings of the names of what is known and not wanted
    preprocessing: Mapping[str, Any] = field(default_factory=dict)  # of the release, where the library's differs


LAYOUTS = (
    Layout(
        "SwAV or DeepCluster-v2",
        ("layer1.", "projection_head."),
        heads=("projection_head.", "prototypes."),
        preprocessing={**IMAGENET, "std": (0.228, 0.224, 0.225)},  # sic: multicropdataset.py and eval_linear.py
    ),
    Layout("MoCo v3", ("base_encoder.", "predictor."), "base_encoder.", ("momentum_encoder.", "predictor."), IMAGENET),
    Layout("MoCo v1 or v2", ("encoder_q.",), "encoder_q.", ("encoder_k.", "queue"), IMAGENET),
    Layout("SimSiam", ("encoder.", "predictor."), "encoder.", ("predictor.",), IMAGENET),
    Layout("Barlow Twins or VICReg", ("backbone.", "projector."), "backbone.", ("projector.", "bn."), IMAGENET),
    Layout("DINOv2 teacher", ("backbone.", "dino_head."), "backbone.", ("dino_head.", "ibot_head.")),
    Layout(
        "DINO",
        ("backbone.", "head.last_layer."),
        "backbone.",
        ("head.",),
        {**IMAGENET, "interpolation": "bicubic"},  # eval_linear.py: interpolation=3
    ),
    Layout("DINOv2", ("mask_token", "blocks.0.ls1.gamma")),  # its mask_token is dropped by timm's own rules
)


@dataclass(frozen=True)
class Checkpoint:
    """A backbone's tensors, without wrapper, prefix or training head."""

    title: str  # of the layout; empty for plain tensors of a network
    state: dict[str, Tensor]
    preprocessing: Mapping[str, Any]

    def prepare_as_released(self, pixels: Preprocessing) -> Preprocessing:
        """`pixels` as the release evaluates, at the size that `pixels` has."""
        if not self.preprocessing:
            return pixels
        return Preprocessing.model_validate(dict(self.preprocessing)).at_size(pixels.size)


def recognise(content: object, source: str) -> Checkpoint:
    """What a weights file holds. A tensor that no layout knows stays, to be refused when the backbone is loaded.

    Raises ShoalError if there is no mapping of names to tensors in it, or a network that no library here has.
    """
    state = _unwrapped(content, source)
    layout = next((each for each in LAYOUTS if all(_any_starts(state, mark) for mark in each.marks)), None)
    if layout is None:
        return Checkpoint("", state, {})
    heads = (*layout.heads, f"{layout.prefix}head.", f"{layout.prefix}fc.") if layout.prefix else layout.heads
    wanted = {key: value for key, value in state.items() if not key.startswith(heads)}
    renamed = {key.removeprefix(layout.prefix): value for key, value in wanted.items()}
    _refuse_twelve_heads(layout, renamed, source)
    if layout.title.startswith("DINOv2"):  # blocks in chunks for FSDP: blocks.CHUNK.BLOCK
        renamed = {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", key): value for key, value in renamed.items()}
    return Checkpoint(layout.title, renamed, layout.preprocessing)


def _unwrapped(content: object, source: str) -> dict[str, Tensor]:
    for _ in range(MAX_WRAPPERS):
        if isinstance(content, dict):
            content = next((content[key] for key in WRAPPERS if isinstance(content.get(key), dict)), content)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ShoalError(f"Weights file {source} holds no mapping of names to tensors; save the model's state_dict.")
    return {_without_parallel(str(key)): value for key, value in content.items()}


def _without_parallel(key: str) -> str:
    while key.startswith(PARALLEL):
        key = key.partition(".")[2]
    return key


def _any_starts(state: Mapping[str, Tensor], mark: str) -> bool:
    return any(key.startswith(mark) for key in state)


def _refuse_twelve_heads(layout: Layout, state: Mapping[str, Tensor], source: str) -> None:
    """MoCo v3's ViT-S has 12 attention heads; timm's has 6, takes the same tensors, and computes something else.

    Only its training checkpoint is known: what main_lincls.py saved has the plain names of a network, and loads.
    """
    token = state.get("cls_token")
    if layout.title == "MoCo v3" and token is not None and token.shape[-1] == 384:
        raise ShoalError(
            f"Weights file {source} is MoCo v3's ViT-S, which has 12 attention heads where timm's has 6: its features "
            "would be wrong without a word; use MoCo v3's ViT-B or ResNet-50."
        )
