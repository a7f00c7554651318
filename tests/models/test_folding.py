"""Folding: the same features from fewer layers, and hands off where it would not be the same."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from models.folding import fold_batch_norms


def image(size: int = 32) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def trained(net: nn.Module) -> nn.Module:
    """With norms that do something: neither their statistics nor their weights are 0 and 1."""
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                if tensor is not None:
                    tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return net.eval().requires_grad_(False)


def norms(net: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())


def test_a_folded_convolution_by_hand() -> None:
    """(3 x + 1 − 2) / sqrt(4) · 10 + 5 = 15 x + 0."""
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=0)).eval()
    values = {
        "0.weight": 3.0,
        "0.bias": 1.0,
        "1.running_mean": 2.0,
        "1.running_var": 4.0,
        "1.weight": 10.0,
        "1.bias": 5.0,
    }
    for key, value in values.items():
        net.state_dict()[key].fill_(value)
    with torch.no_grad():
        folded = fold_batch_norms(net, torch.ones(1, 1, 2, 2))
    assert norms(folded) == 0 and norms(net) == 1
    state = folded.state_dict()
    assert state["0.weight"].item() == pytest.approx(15.0) and state["0.bias"].item() == pytest.approx(0.0)


@pytest.mark.parametrize(
    "net",
    [torchvision.models.resnet18(num_classes=8), timm.create_model("tf_efficientnet_lite0", num_classes=0)],
    ids=["torchvision", "timm, whose norms hold the activation"],
)
def test_real_networks_lose_all_norms_and_keep_their_features(net: nn.Module) -> None:
    trained(net)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with torch.no_grad():
        folded = fold_batch_norms(net, image()[:1])
        torch.testing.assert_close(folded(image()), net(image()), rtol=1e-3, atol=1e-4)
    assert norms(net) > 10 and norms(folded) == 0
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


class Twice(nn.Module):
    """The convolution's output goes into the norm and around it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        made = self.conv(image_BCHW)
        return self.norm(made) + made


class Shared(Twice):
    """One convolution, and its norm after the second use only."""

    def forward(self, image_BCHW: Tensor) -> Tensor:
        return self.conv(image_BCHW) + self.norm(self.conv(image_BCHW))


class Standardised(nn.Conv2d):
    """Computes its weights from its weights, so that a factor in them is lost."""

    def forward(self, image_BCHW: Tensor) -> Tensor:
        return functional.conv2d(image_BCHW, functional.normalize(self.weight, dim=(1, 2, 3)), self.bias)


class Asks(Twice):
    """Looks into its norm."""

    def forward(self, image_BCHW: Tensor) -> Tensor:
        return self.norm(self.conv(image_BCHW)) * self.norm.weight[:, None, None]


@pytest.mark.parametrize(
    "net",
    [
        Twice(),
        Shared(),
        Asks(),
        nn.Sequential(Standardised(3, 4, 3), nn.BatchNorm2d(4)),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
        nn.Flatten(),
    ],
)
def test_what_cannot_be_folded_comes_back_untouched(net: nn.Module) -> None:
    with torch.no_grad():
        assert fold_batch_norms(trained(net), image()) is net
