"""The Gaussian side of DeepDPM: the mixture, its responsibilities in batches, and cutting clusters in two.

Shapes: B rows of a batch, D dimensions, K clusters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from models.gaussians import Gaussians, log_determinant, principal_axes

_CELLS = 2**22  # floats of a temporary


@dataclass(frozen=True)
class Mixture:
    """Weighted Gaussians with stable cluster ids."""

    id_K: Tensor  # int64, never reused
    log_weight_K: Tensor  # float64
    gaussians: Gaussians

    def __getitem__(self, index: Tensor) -> Mixture:
        return Mixture(self.id_K[index], self.log_weight_K[index], self.gaussians[index])

    def log_joint(self, x_ND: Tensor) -> Tensor:
        """Log of weight times density, (N, K) float64."""
        return self.gaussians.to(x_ND.device).log_density(x_ND) + self.log_weight_K.to(x_ND.device)

    def tensors(self) -> dict[str, Tensor]:
        """For safetensors; without the origin, which is the prior's mean."""
        return {
            "id_K": self.id_K,
            "log_weight_K": self.log_weight_K,
            "mean_KD": self.gaussians.mean_KD.contiguous(),
            "chol_KDD": self.gaussians.chol_KDD.contiguous(),  # LAPACK leaves them column by column
        }

    @staticmethod
    def from_tensors(origin_D: Tensor, tensors: Mapping[str, Tensor]) -> Mixture:
        """The inverse of `tensors`."""
        gaussians = Gaussians(origin_D, tensors["mean_KD"], tensors["chol_KDD"])
        return Mixture(tensors["id_K"], tensors["log_weight_K"], gaussians)


@dataclass(frozen=True)
class Whitened:
    """A mixture factorised once, for many batches in float32: y = x W_k - b_k is standard normal in cluster k."""

    weight_DE: Tensor  # E = K D: the W_k side by side
    offset_E: Tensor
    constant_K: Tensor

    def to(self, device: torch.device | str) -> Whitened:
        """The same on another device."""
        return Whitened(self.weight_DE.to(device), self.offset_E.to(device), self.constant_K.to(device))

    def log_responsibilities(self, x_BD: Tensor) -> Tensor:
        """Log r^E, (B, K) float32, of centred and scaled rows. O(B K D^2) time, temporaries of some megabytes."""
        dim, clusters = len(self.weight_DE), len(self.constant_K)
        step = max(1, _CELLS // (len(x_BD) * dim + 1))
        joint_BK = x_BD.new_empty(len(x_BD), clusters)
        for k in range(0, clusters, step):
            cut = slice(k * dim, (k + step) * dim)
            white_BE = torch.addmm(-self.offset_E[cut], x_BD, self.weight_DE[:, cut])
            joint_BK[:, k : k + step] = white_BE.square_().view(len(x_BD), -1, dim).sum(dim=2)
        return torch.log_softmax(joint_BK.mul_(-0.5).add_(self.constant_K), dim=1)


def whiten(mixture: Mixture, scale: float) -> Whitened:
    """For rows that were centred at the mixture's origin and divided by `scale`. O(K D^3) time."""
    mean_KD, chol_KDD = mixture.gaussians.mean_KD / scale, mixture.gaussians.chol_KDD / scale
    dim = mean_KD.shape[1]
    eye_DD = torch.eye(dim, dtype=chol_KDD.dtype, device=chol_KDD.device)
    whiten_KDD = torch.linalg.solve_triangular(chol_KDD, eye_DD.expand_as(chol_KDD), upper=False)
    offset_KD = torch.einsum("kij,kj->ki", whiten_KDD, mean_KD)
    constant_K = mixture.log_weight_K - 0.5 * log_determinant(chol_KDD)
    return Whitened(whiten_KDD.permute(2, 0, 1).flatten(1).float(), offset_KD.flatten().float(), constant_K.float())


@dataclass(frozen=True)
class Cut:
    """A cluster's Gaussian cut at its mean across one principal axis."""

    mean_KD: Tensor
    axis_KD: Tensor  # unit vectors
    spread_K: Tensor  # standard deviation along the axis
    half_K2D: Tensor  # means of the two halves


def cut_in_two(gaussians: Gaussians, axis_K: Tensor) -> Cut:
    """A normal of variance v cut at its mean has halves of mean +-sqrt(2 v / pi). `axis_K`: 0 is the widest axis."""
    variance_K, axis_KD = principal_axes(gaussians.covariance_KDD, axis_K)
    spread_K = variance_K.sqrt()
    step_KD = axis_KD * (spread_K * math.sqrt(2 / math.pi))[:, None]
    half_K2D = torch.stack([gaussians.mean_KD - step_KD, gaussians.mean_KD + step_KD], dim=1)
    return Cut(gaussians.mean_KD, axis_KD, spread_K, half_K2D)
