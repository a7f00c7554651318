"""The small networks that shoal brings itself, to be trained on one's own images: nobody publishes weights for them.

Shapes: B images, C channels, H and W pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torchvision
from torch import Tensor, nn

from models.preprocessing import Preprocessing

SMALL_SIZE, GREY_SIZE = 32, 28
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


class _Layer(NamedTuple):
    """A convolution of `kernel` × `kernel` with batch norm and ReLU, then the maximum of `pool` × `pool` (1: none)."""

    width: int
    kernel: int
    stride: int
    pool: int = 1


_CONV4 = (_Layer(32, 5, 2), _Layer(64, 3, 1, 2), _Layer(128, 3, 1, 2), _Layer(256, 3, 1))


class Conv4(nn.Module):
    """Four convolutions of 32, 64, 128 and 256 channels, averaged over the image: (B, C, H, W) to (B, 256).

    For images of about 28 pixels, of which it makes 14, 7, 3 and 3; takes any of at least 8. Most of the work is in the
    two layers in the middle. Weights are Kaiming's (2015), fan-out, as SwAV draws them.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for layer in _CONV4:
            layers += _convolution(channels, layer)
            channels = layer.width
        self.layers = nn.Sequential(*layers)
        draw_fan_out(self)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Features (B, 256)."""
        # Not AdaptiveAvgPool2d: its gradients are not channels-last, and what comes before it would run over them.
        x_BCHW = self.layers(x_BCHW)
        mean_BC: Tensor = x_BCHW.permute(0, 2, 3, 1).flatten(1, 2).mean(1)
        return mean_BC


def conv4() -> nn.Module:
    """Of colour images."""
    return Conv4(3)


def conv4_grey() -> nn.Module:
    """Of grey levels."""
    return Conv4(1)


def resnet18_small() -> nn.Module:
    """ResNet-18 for images of about 32 pixels: its first convolution is 3 × 3 with stride 1, without max-pooling.

    (B, 3, H, W) to (B, 512), for any size. As SimCLR trains on CIFAR (Chen et al. 2020, appendix B.9).
    """
    net: nn.Module = torchvision.models.resnet18(weights=None)
    net.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
    net.maxpool = nn.Identity()
    net.fc = nn.Identity()
    draw_fan_out(net.conv1)  # the others are drawn so by torchvision
    return net


def colour_pixels(size: int) -> Preprocessing:
    """Square colour images, by ImageNet's mean and deviation."""
    return Preprocessing(size=size, resize=size, **_IMAGENET)


def grey_pixels(size: int) -> Preprocessing:
    """Square images of grey levels, by Fashion-MNIST's mean and deviation: much of such images is black."""
    return Preprocessing(size=size, resize=size, grey=True, channels=1, mean=(0.286,), std=(0.353,))


def draw_fan_out(net: nn.Module) -> None:
    """Convolutions anew from N(0, 2 / fan-out), He et al. (2015), from torch's generator."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _convolution(channels: int, layer: _Layer) -> list[nn.Module]:
    made: list[nn.Module] = [
        nn.Conv2d(channels, layer.width, layer.kernel, layer.stride, layer.kernel // 2, bias=False),
        nn.BatchNorm2d(layer.width),
        nn.ReLU(inplace=True),
    ]
    return made if layer.pool == 1 else [*made, nn.MaxPool2d(layer.pool)]
