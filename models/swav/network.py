"""SwAV's network: backbone, projection head, and prototypes that meet nothing but unit vectors.

Shapes: B images, V views, A assigning views, S pixels, F features of the backbone, D dimensions, K prototypes.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:  # torchvision takes seconds to import, and labelling needs the head alone
    from models.preprocessing import Preprocessing

_NORM = ("running_mean", "running_var", "weight", "bias")  # of a batch norm


@dataclass(frozen=True)
class Embedded:
    """What the network makes of views."""

    unit_VBD: Tensor  # length 1
    norm: Tensor  # (), mean length before


class SwAVNet(nn.Module):
    """Parameters are named backbone.*, head.* and prototypes.weight."""

    def __init__(self, backbone: nn.Module, head: nn.Module, prototypes: nn.Linear, pixels: Preprocessing) -> None:
        super().__init__()
        self.backbone, self.head, self.prototypes = backbone, head, prototypes
        self.pixels = pixels

    def forward(self, views: tuple[Tensor, ...]) -> Embedded:
        """Unit vectors of uint8 crops (B, C, S, S), in at least float32.

        Crops of one size pass through the backbone together, and so do features of all crops through the head: batch
        norms see the same neighbours as in the authors' code.
        """
        groups = [torch.cat(list(group)) for _, group in itertools.groupby(views, key=lambda view: view.shape[-2:])]
        feature_GF = torch.cat([self.backbone(self.pixels.normalise(crops, self._dtype(crops))) for crops in groups])
        z_GD = self.head(feature_GF)
        with torch.autocast(z_GD.device.type, enabled=False):
            z_GD = z_GD if z_GD.dtype == torch.float64 else z_GD.float()
            unit_VBD = functional.normalize(z_GD).unflatten(0, (len(views), -1))
            return Embedded(unit_VBD, torch.linalg.vector_norm(z_GD.detach(), dim=1).mean())

    def scores(self, unit_XD: Tensor) -> Tensor:
        """Cosines (..., K) of unit vectors (..., D) with the prototypes, never in half precision."""
        with torch.autocast(unit_XD.device.type, enabled=False):
            cosine_XK: Tensor = self.prototypes(unit_XD)
        return cosine_XK

    @torch.no_grad()
    def normalise_prototypes(self) -> None:
        """Give each the length 1, outside of what gradients see."""
        self.prototypes.weight.copy_(functional.normalize(self.prototypes.weight))

    def _dtype(self, crops: Tensor) -> torch.dtype:
        device = crops.device.type
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.prototypes.weight.dtype


def make_head(features: int, hidden: int, dim: int) -> nn.Sequential:
    """Linear, batch norm, ReLU, Linear; one Linear where `hidden` is 0."""
    if not hidden:
        return nn.Sequential(nn.Linear(features, dim))
    return nn.Sequential(nn.Linear(features, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, dim))


def project(head: Mapping[str, Tensor], x_NF: Tensor) -> Tensor:
    """Unit vectors (N, D), float64, of a head in evaluation mode, given as the tensors of `make_head`'s."""
    tensors = {name: value.to(x_NF.device, torch.float64) for name, value in head.items()}
    linear = partial(_linear, tensors)
    if "3.weight" not in tensors:
        return functional.normalize(linear("0", x_NF.double()))
    mean_H, var_H, weight_H, bias_H = (tensors[f"1.{name}"] for name in _NORM)
    hidden_NH = functional.batch_norm(linear("0", x_NF.double()), mean_H, var_H, weight_H, bias_H).relu_()
    return functional.normalize(linear("3", hidden_NH))


def _linear(tensors: dict[str, Tensor], layer: str, x_NF: Tensor) -> Tensor:
    return functional.linear(x_NF, tensors[f"{layer}.weight"], tensors[f"{layer}.bias"])


def swapped_loss(score_VBK: Tensor, code_ABK: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of each code with the prediction from every other view of its image: the mean over all of them.

    Codes belong to the first A views. Caron et al. 2020, equations 1 and 2, with the multi-crop sum of section 3.2.
    """
    views, assigning = len(score_VBK), len(code_ABK)
    log_prediction_VBK = (score_VBK / temperature).log_softmax(dim=2)
    surprise_BAV = -(code_ABK.transpose(0, 1) @ log_prediction_VBK.permute(1, 2, 0))
    other_AV = 1 - torch.eye(assigning, views, dtype=surprise_BAV.dtype, device=surprise_BAV.device)
    return (surprise_BAV * other_AV).sum(dim=(1, 2)).mean() / (assigning * (views - 1))
