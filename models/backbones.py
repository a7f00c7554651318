"""Backbones: from images to embeddings by a network that is not trained here, or by the pixels themselves.

Shapes: B images, C channels, H and W pixels, D dimensions of an embedding.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from models.config import Config
from models.errors import ShoalError
from models.networks import LIBRARIES, Library, Network
from models.preprocessing import Preprocessing
from models.weights import HubUnavailableError, read_state_dict


class BackboneConfig(Config):
    """Which backbone, with which weights, on images of which size.

    `weights`: `default` is what the library publishes, and random with a warning when that cannot be had; `hub` is
    the same without the fallback; `random` draws them from `seed`; anything else is the path of a file of tensors.
    """

    name: str = "pypi/efficientnet_lite0"
    weights: str = "default"
    size: PositiveInt | None = None  # pixels; None: what the backbone was trained on, 32 for pixels
    grey: bool = False
    l2_normalise: bool = False
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0


@dataclass(frozen=True)
class Backbone:
    """A loaded feature extractor.

    A row of `embed` depends on its image alone up to rounding: libraries choose kernels by batch size, which moves
    float32 features by about 1e-6 of the largest. bf16 features differ from float32 ones by about 3 %.
    """

    name: str
    weights: str  # what was used, e.g. "random (seed 0)"
    dim: int
    digest: str
    device: torch.device
    config: BackboneConfig
    pixels: Preprocessing
    net: nn.Module

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Plain values for a table's properties."""
        return self.pixels.model_dump(mode="json")

    def prepare(self, image_3HW: Tensor) -> Tensor:
        """The uint8 tensor (C, size, size) of a uint8 RGB image of any size, on the CPU."""
        return self.pixels.prepare(image_3HW)

    @torch.inference_mode()
    def embed(self, image_BCHW: Tensor) -> Tensor:
        """Float32 features (B, D) on the backbone's device, of images that `prepare` returned.

        Raises ShoalError for images of another shape or type. An all-zero row stays zero under `l2_normalise`.
        """
        self._check(image_BCHW)
        image_BCHW = self.pixels.normalise(image_BCHW.to(self.device, non_blocking=True))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            feature_BD: Tensor = self.net(image_BCHW.contiguous(memory_format=torch.channels_last))
        feature_BD = feature_BD.float()
        return functional.normalize(feature_BD) if self.config.l2_normalise else feature_BD

    def _check(self, image_BCHW: Tensor) -> None:
        shape = (self.pixels.channels, self.pixels.size, self.pixels.size)
        if image_BCHW.dtype != torch.uint8 or image_BCHW.shape[1:] != shape:
            raise ShoalError(
                f"Backbone {self.name} takes uint8 images of shape {shape}, "
                f"not {image_BCHW.dtype} of {tuple(image_BCHW.shape[1:])}; pass each image through prepare first."
            )


def load_backbone(config: BackboneConfig, device: str = "cpu") -> Backbone:
    """Build, load and try out a backbone on one black image.

    Raises ShoalError for an unknown name, weights that cannot be read or do not fit, a size it cannot take, or CUDA
    where there is none.
    Warns (UserWarning) when published weights cannot be had and random ones stand in.
    """
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ShoalError(f"Backbone {config.name} was asked for on {device}, but torch finds no GPU; use device cpu.")
    library, name = _find(config.name)
    network = _build(library, name, config)
    weights = _load_weights(library, name, network, config)
    net = network.net.eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last)
    pixels = _with_grey(network.preprocessing, config)
    return Backbone(
        name=config.name,
        weights=weights,
        dim=_measure_dim(net, pixels, config, device),
        digest=_digest(config, pixels, net),
        device=torch.device(device),
        config=config,
        pixels=pixels,
        net=net,
    )


def require_backbone(name: str) -> None:
    """Raise ShoalError, naming the nearest valid names, unless `name` is one of a backbone."""
    _find(name)


def backbone_names() -> list[str]:
    """Every name that BackboneConfig takes, prefixed."""
    return [prefix + name for prefix, library in LIBRARIES.items() for name in library.names()]


def _find(name: str) -> tuple[Library, str]:
    prefix, slash, rest = name.rpartition("/")
    library = LIBRARIES.get(prefix + slash)
    if library is None or rest not in library.names():
        raise ShoalError(_unknown(name))
    return library, rest


def _unknown(name: str) -> str:
    known = backbone_names()
    prefixed = [full for full in known if "/" in full and full.partition("/")[2] == name]
    if prefixed:
        return f"Backbone {name!r} lacks its library; write {' or '.join(prefixed)}."
    near = difflib.get_close_matches(name, known, n=3) or ["pixels", "torchvision/resnet18", "timm/resnet18"]
    return f"Backbone {name!r} is unknown; nearest names: {', '.join(near)}."


def _build(library: Library, name: str, config: BackboneConfig) -> Network:
    with torch.random.fork_rng(devices=[]), _about_size(config, config.size):
        torch.manual_seed(config.seed)
        return library.build(name, config.size)


def _load_weights(library: Library, name: str, network: Network, config: BackboneConfig) -> str:
    """Returns what the weights are."""
    random = f"random (seed {config.seed})"
    if config.weights == "random":
        return random if network.net.state_dict() else "none"
    if config.weights not in ("default", "hub"):
        library.load(name, network, read_state_dict(Path(config.weights)), config.weights)
        return config.weights
    try:
        state, title = library.published(name)
    except HubUnavailableError as error:
        if config.weights == "hub":
            raise ShoalError(
                f"Published weights of {config.name} cannot be had ({error}); give a local file as backbone.weights."
            ) from error
        message = (
            f"Published weights of {config.name} cannot be had ({error}): its weights are RANDOM, and its "
            "embeddings say little; set backbone.weights to a local file, or use pypi/efficientnet_lite0."
        )
        warnings.warn(message, stacklevel=3)
        return random
    library.load(name, network, state, title)
    return title


def _with_grey(pixels: Preprocessing, config: BackboneConfig) -> Preprocessing:
    if not config.grey:
        return pixels
    return pixels.model_copy(update={"grey": True, "channels": 1 if config.name == "pixels" else 3})


def _measure_dim(net: nn.Module, pixels: Preprocessing, config: BackboneConfig, device: str) -> int:
    black_1CSS = torch.zeros(1, pixels.channels, pixels.size, pixels.size, device=device)
    with torch.inference_mode(), _about_size(config, pixels.size):
        feature_1D = net(black_1CSS)
    if not isinstance(feature_1D, Tensor) or feature_1D.ndim != 2:
        raise ShoalError(f"Backbone {config.name} gives no single feature vector per image; choose another backbone.")
    return int(feature_1D.shape[1])


@contextmanager
def _about_size(config: BackboneConfig, size: int | None) -> Iterator[None]:
    """Networks say in many ways that an image is too small or no multiple of their patches."""
    try:
        yield
    except (RuntimeError, AssertionError, ValueError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0][:120]
        if size is None:
            raise ShoalError(f"Backbone {config.name} cannot be built ({why}); choose another backbone.") from error
        raise ShoalError(
            f"Backbone {config.name} cannot take images of {size} × {size} pixels ({why}); "
            "leave backbone.size out to use the size it was trained on."
        ) from error


def _digest(config: BackboneConfig, pixels: Preprocessing, net: nn.Module) -> str:
    """Sha256 over all that embeddings depend on beside the image and the machine."""
    settings = {
        "name": config.name,
        "preprocessing": pixels.model_dump(mode="json"),
        "l2_normalise": config.l2_normalise,
        "precision": config.precision,
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for key, value in sorted(net.state_dict().items()):
        digest.update(f"{key}{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
