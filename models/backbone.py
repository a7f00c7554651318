"""What a backbone is: a network on a device, how images are prepared for it, and a digest of both.

Shapes: B images, C channels, H and W pixels, D dimensions of an embedding.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch.nn import functional

from models.backbone_config import BackboneConfig, Precision
from models.config import Config
from models.errors import ShoalError, first_line
from models.folding import fold_batch_norms
from models.preprocessing import Preprocessing

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class BackboneManifest(Config):
    """All of a backbone but its tensors: what embeddings depend on beside the image, and what its weights are.

    `digest` is SHA-256 over name, preprocessing, l2_normalise, precision and tensors.
    """

    name: str
    weights: str  # what they are, and not where: "random (seed 0)", "a local file (SwAV or DeepCluster-v2)"
    preprocessing: Preprocessing
    precision: Precision
    l2_normalise: bool
    dimension: PositiveInt
    digest: str = Field(pattern="^[0-9a-f]{64}$")


@dataclass(frozen=True)
class Backbone:
    """A loaded feature extractor.

    A row of `embed` depends on its image alone up to rounding: libraries choose kernels by batch size, which moves
    float32 features by about 1e-6 of the largest. bf16 features differ from float32 ones by up to 6 % of their length
    (cosine above .993), fp16 ones by 1 %.
    """

    about: BackboneManifest
    config: BackboneConfig  # what it was loaded with, and nothing in it is None
    device: torch.device
    net: nn.Module  # on the CPU, as loaded: what `tensors` and the digest are of
    forward: Callable[[Tensor], Tensor]  # computes the same on the device, its batch norms folded; perhaps compiled

    @property
    def name(self) -> str:
        """As in BackboneConfig."""
        return self.about.name

    @property
    def weights(self) -> str:
        """What was used."""
        return self.about.weights

    @property
    def dim(self) -> int:
        """D."""
        return self.about.dimension

    @property
    def digest(self) -> str:
        """64 hex digits; backbones that have the same embed alike."""
        return self.about.digest

    @property
    def l2_normalise(self) -> bool:
        """Whether embeddings have length 1."""
        return self.about.l2_normalise

    @property
    def pixels(self) -> Preprocessing:
        """How images are prepared."""
        return self.about.preprocessing

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Plain values for a table's properties."""
        return self.pixels.model_dump(mode="json")

    @property
    def manifest(self) -> dict[str, Any]:
        """JSON that `load_stored` takes, with `tensors`."""
        return self.about.model_dump(mode="json")

    def tensors(self) -> dict[str, np.ndarray]:
        """The network's tensors by name. bfloat16, which numpy lacks, is widened to float32, which is exact."""
        return {key: _in_numpy(value) for key, value in self.net.state_dict().items()}

    def prepare(self, image_3HW: Tensor) -> Tensor:
        """The uint8 tensor (C, size, size) of a uint8 RGB image of any size, on the CPU."""
        return self.pixels.prepare(image_3HW)

    @torch.inference_mode()
    def embed(self, image_BCHW: Tensor) -> Tensor:
        """Float32 features (B, D) on the backbone's device, of images that `prepare` returned.

        On a GPU the call returns before the work is done, and images in pinned memory are copied meanwhile.
        Raises ShoalError for images of another shape or type, fp16 on a CPU, and where torch.compile fails, which it
        does at the first batch of a shape. An all-zero row stays zero under `l2_normalise`.
        """
        self._check(image_BCHW)
        dtype = DTYPES[self.about.precision]
        input_BCHW = self.pixels.normalise(image_BCHW.to(self.device, non_blocking=True), dtype)
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            feature_BD = self._run(input_BCHW).float()
        return functional.normalize(feature_BD) if self.l2_normalise else feature_BD

    def _run(self, input_BCHW: Tensor) -> Tensor:
        try:
            feature_BD: Tensor = self.forward(input_BCHW)
        except TorchDynamoException as error:
            raise ShoalError(
                f"Backbone {self.name} cannot be compiled ({first_line(error)}); torch.compile needs a C++ compiler "
                "(g++, or CXX) on every node: install one, or set backbone.compile=false."
            ) from error
        return feature_BD

    def _check(self, image_BCHW: Tensor) -> None:
        require_precision(self.about.precision, self.device.type)
        shape = (self.pixels.channels, self.pixels.size, self.pixels.size)
        if image_BCHW.dtype != torch.uint8 or image_BCHW.shape[1:] != shape:
            raise ShoalError(
                f"Backbone {self.name} takes uint8 images of shape {shape}, "
                f"not {image_BCHW.dtype} of {tuple(image_BCHW.shape[1:])}; pass each image through prepare first."
            )


def assemble(net: nn.Module, weights: str, pixels: Preprocessing, config: BackboneConfig, device: str) -> Backbone:
    """A backbone of a loaded network; `config` says its name, l2_normalise, precision, and whether to compile.

    Raises ShoalError if the network cannot take images of that size, gives no vector, or is to run on an absent GPU.
    """
    where = torch.device(device)
    if where.type == "cuda" and not torch.cuda.is_available():
        raise ShoalError(f"Backbone {config.name} was asked for on {device}, but torch finds no GPU; use device cpu.")
    net = net.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    forward, dimension = _ready(net, pixels, config.name, where)
    config = config.model_copy(
        update={
            "size": pixels.size,
            "grey": pixels.grey,
            "l2_normalise": bool(config.l2_normalise),
            "precision": config.precision or "fp32",
        }
    )
    settings = {
        "name": config.name,
        "preprocessing": pixels.model_dump(mode="json"),
        "l2_normalise": config.l2_normalise,
        "precision": config.precision,
    }
    about = BackboneManifest.model_validate(
        {**settings, "weights": weights, "dimension": dimension, "digest": _digest(settings, net)}
    )
    return Backbone(about, config, where, net, torch.compile(forward, dynamic=False) if config.compile else forward)


def _ready(net: nn.Module, pixels: Preprocessing, name: str, device: torch.device) -> tuple[nn.Module, int]:
    """The network as it is run on the device, and D."""
    shape = (1, pixels.channels, pixels.size, pixels.size)
    with torch.no_grad(), about_size(name, pixels.size):
        image_1CSS = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        input_1CSS = pixels.normalise(image_1CSS)
        forward = fold_batch_norms(net, input_1CSS)
        if device.type != "cpu":
            forward = (copy.deepcopy(net) if forward is net else forward).to(device)
        feature_1D = forward(input_1CSS.to(device))
    if not isinstance(feature_1D, Tensor) or feature_1D.ndim != 2:
        raise ShoalError(f"Backbone {name} gives no single feature vector per image; choose another backbone.")
    return forward.to(memory_format=torch.channels_last), int(feature_1D.shape[1])


def require_precision(precision: Precision | None, device: str) -> None:
    """Raise ShoalError for fp16 on a CPU, which computes it ten times slower than float32."""
    if precision == "fp16" and not device.startswith("cuda"):
        raise ShoalError(
            f"Precision fp16 was asked for on {device}, which is slow at it; use bf16 or fp32, or workers with a GPU."
        )


@contextmanager
def about_size(name: str, size: int | None) -> Iterator[None]:
    """Networks say in many ways that an image is too small or no multiple of their patches."""
    try:
        yield
    except (RuntimeError, AssertionError, ValueError) as error:
        why = first_line(error)
        if size is None:
            raise ShoalError(f"Backbone {name} cannot be built ({why}); choose another backbone.") from error
        raise ShoalError(
            f"Backbone {name} cannot take images of {size} × {size} pixels ({why}); "
            "leave backbone.size out to use the size it was trained on."
        ) from error


def _digest(settings: Mapping[str, Any], net: nn.Module) -> str:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for key, value in sorted(net.state_dict().items()):
        digest.update(f"{key}{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _in_numpy(tensor: Tensor) -> np.ndarray:
    wide = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    return wide.contiguous().numpy()
