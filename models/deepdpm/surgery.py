"""Giving DeepDPM's networks another number of clusters.

Shapes: K clusters after the operation, D dimensions, H hidden units.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.deepdpm.mixture import Cut
from models.deepdpm.network import DeepDPMNet
from models.objective import Surgery

_GAIN = 3.0  # logit difference per standard deviation from the cut
SUB = ("weight_in", "bias_in", "weight_out", "bias_out")


def regrow(net: DeepDPMNet, row_K: Tensor, log_share_K: Tensor, anew_K: Tensor) -> Surgery:
    """Output k continues old output `row_K[k]` with its bias raised by `log_share_K[k]`; so do the subclustering nets.

    Those in `anew_K` are to be renewed, so they get fresh optimizer state. Two children of one output whose shares add
    to 1 have its mass together, so other outputs stay what they were; training tells the children apart.
    """
    with torch.no_grad():
        net.last.weight = nn.Parameter(net.last.weight[row_K])
        net.last.bias = nn.Parameter(net.last.bias[row_K] + log_share_K.to(net.last.bias))
        for name in SUB:
            setattr(net.sub, name, nn.Parameter(getattr(net.sub, name)[row_K]))
    net.last.out_features = len(row_K)
    source = {"last.weight": row_K, "last.bias": row_K}
    fresh_K = torch.where(anew_K, -1, row_K)
    return Surgery(source | {f"sub.{name}": fresh_K for name in SUB})


def renew(net: DeepDPMNet, index: Tensor, cut: Cut, rng: torch.Generator) -> None:
    """Subclustering nets `index` begin as the given cuts, exactly: two hidden units measure the way along the axis.

    The other hidden units are random and have no output yet, so nothing needs to be trained before the halves mean
    something. `cut` is in the data's units, about its mean.
    """
    sub, scale = net.sub, net.scale
    k, dim, hidden = len(index), *sub.weight_in.shape[1:]
    bound = 1 / math.sqrt(dim)
    weight_in = (torch.rand(k, dim, hidden, generator=rng) * 2 - 1) * bound
    bias_in = (torch.rand(k, hidden, generator=rng) * 2 - 1) * bound
    spread_K1 = cut.spread_K.clamp_min(1e-6 * float(scale))[:, None]
    along_KD = (cut.axis_KD * float(scale) / spread_K1).float()
    from_K1 = ((cut.axis_KD * cut.mean_KD).sum(dim=1, keepdim=True) / spread_K1).float()
    weight_in[:, :, 0], weight_in[:, :, 1] = along_KD, -along_KD
    bias_in[:, 0:1], bias_in[:, 1:2] = -from_K1, from_K1
    weight_out = torch.zeros(k, hidden, 2)
    weight_out[:, 0, 0], weight_out[:, 0, 1] = -_GAIN / 2, _GAIN / 2
    weight_out[:, 1, 0], weight_out[:, 1, 1] = _GAIN / 2, -_GAIN / 2
    with torch.no_grad():
        for name, value in zip(SUB, (weight_in, bias_in, weight_out, torch.zeros(k, 2)), strict=True):
            getattr(sub, name)[index] = value.to(sub.bias_in)


def resize(net: DeepDPMNet, clusters: int) -> None:
    """Give a freshly built net room for another number of clusters; the values are the caller's."""
    regrow(net, torch.zeros(clusters, dtype=torch.int64), torch.zeros(clusters), torch.zeros(clusters).bool())


def rebase(net: DeepDPMNet, origin_D: Tensor, scale: float) -> None:
    """Other units for the networks' inputs, with first layers that make up for it: outputs stay what they were."""
    ratio = scale / float(net.scale)
    shift_D = ((origin_D.to(net.origin_D) - net.origin_D) / net.scale).float()
    with torch.no_grad():
        net.hidden.bias.add_(net.hidden.weight @ shift_D)
        net.hidden.weight.mul_(ratio)
        net.sub.bias_in.add_(torch.einsum("d,kdh->kh", shift_D, net.sub.weight_in))
        net.sub.weight_in.mul_(ratio)
        net.origin_D.copy_(origin_D)
        net.scale.fill_(scale)
