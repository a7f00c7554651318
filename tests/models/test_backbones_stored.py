"""Stored backbones: what is kept of one makes the same one again, and nothing that is wrong is believed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.backbones import Backbone, BackboneConfig, load_backbone, load_stored
from models.errors import ShoalError

SETTINGS = BackboneConfig(
    name="timm/test_resnet", weights="random", size=64, l2_normalise=True, precision="bf16", seed=4
)


def images(size: int = 64) -> Tensor:
    return torch.randint(0, 256, (4, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def original() -> Backbone:
    return load_backbone(SETTINGS)


@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS,
        BackboneConfig(),
        BackboneConfig(name="pixels", size=8, grey=True),
        BackboneConfig(name="timm/test_vit", weights="random", size=64),
        BackboneConfig(name="timm/test_vit_relpos", weights="random"),  # indices that are in no file
        BackboneConfig(name="timm/eva02_tiny_patch14_224", weights="random", size=28),  # sines, too
        BackboneConfig(name="torchvision/googlenet", weights="random", size=64),
    ],
    ids=lambda settings: settings.name,
)
def test_what_was_stored_embeds_to_the_bit_as_the_original(settings: BackboneConfig) -> None:
    original = load_backbone(settings)
    again = load_stored(original.manifest, original.tensors())
    assert again.about == original.about and again.config.precision == original.config.precision
    size, channels = original.pixels.size, original.pixels.channels
    batch = images(size)[:, :channels]
    assert torch.equal(again.embed(batch), original.embed(batch))
    assert again.manifest == original.manifest


def test_manifest_and_tensors_are_plain(original: Backbone) -> None:
    manifest = original.manifest
    assert {key: manifest[key] for key in ("name", "weights", "dimension", "precision", "l2_normalise")} == {
        "name": "timm/test_resnet",
        "weights": "random (seed 4)",
        "dimension": original.dim,
        "precision": "bf16",
        "l2_normalise": True,
    }
    assert manifest["preprocessing"] == original.preprocessing and manifest["digest"] == original.digest
    tensors = original.tensors()
    assert tensors.keys() == original.net.state_dict().keys()
    assert {tensor.dtype.name for tensor in tensors.values()} == {"float32", "int64"}


def test_settings_left_open_are_the_artifacts_and_given_ones_win(original: Backbone) -> None:
    manifest, tensors = original.manifest, original.tensors()
    kept = load_stored(manifest, tensors, config=BackboneConfig(size=64, seed=9, weights="anything"))
    assert kept.about == original.about
    named = load_stored(manifest, tensors, config=BackboneConfig(name="timm/test_resnet"))
    assert named.about == original.about
    changes: list[dict[str, Any]] = [{"size": 96}, {"grey": True}, {"l2_normalise": False}, {"precision": "fp32"}]
    found = [load_stored(manifest, tensors, config=BackboneConfig(**change)) for change in changes]
    assert found[0].pixels.size == 96 and found[0].pixels.resize == round(original.pixels.resize * 96 / 64)
    assert found[1].pixels.grey and not found[2].l2_normalise and found[3].about.precision == "fp32"
    assert len({each.digest for each in [original, *found]}) == 5


def test_an_override_equals_loading_with_that_setting(original: Backbone) -> None:
    loaded = load_backbone(SETTINGS.model_copy(update={"precision": "fp32", "l2_normalise": False}))
    config = BackboneConfig(precision="fp32", l2_normalise=False)
    assert load_stored(original.manifest, original.tensors(), config=config).about == loaded.about


def test_positions_of_a_transformer_are_resampled_for_another_size() -> None:
    stored = load_backbone(BackboneConfig(name="timm/test_vit", weights="random"))
    smaller = load_stored(stored.manifest, stored.tensors(), config=BackboneConfig(size=64))
    assert smaller.embed(images()).shape == (4, stored.dim)


def test_grey_pixels_can_be_undone() -> None:
    stored = load_backbone(BackboneConfig(name="pixels", size=8, grey=True))
    coloured = load_stored(stored.manifest, stored.tensors(), config=BackboneConfig(grey=False))
    assert coloured.digest == load_backbone(BackboneConfig(name="pixels", size=8)).digest


def test_half_precision_tensors_survive(original: Backbone) -> None:
    """A file of bfloat16 weights is widened, which is exact; float16 tensors of an artifact are, too."""
    tensors = {
        key: value.astype(np.float16) if value.dtype == np.float32 else value
        for key, value in original.tensors().items()
    }
    config = BackboneConfig(precision="fp32")  # another digest than the manifest's anyway
    loaded = load_stored(original.manifest, tensors, config=config)
    key = next(iter(tensors))
    assert np.array_equal(loaded.tensors()[key], tensors[key].astype(np.float32))
    half = original.net.state_dict()[key].bfloat16()
    net = torch.nn.ParameterDict({"weight": half})
    wide = Backbone(original.about, original.config, original.device, net, net).tensors()["weight"]
    assert wide.dtype == np.float32 and torch.equal(torch.from_numpy(wide), half.float())


def test_another_name_is_refused(original: Backbone) -> None:
    with pytest.raises(ShoalError, match=r"is a timm/test_resnet, but backbone\.name says pixels"):
        load_stored(original.manifest, original.tensors(), config=BackboneConfig(name="pixels"))


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (("name",), "timm/test_resnett", "unknown"),
        (("name",), 3, "name is '3'"),
        (("precision",), "fp8", "precision is 'fp8'"),
        (("dimension",), 0, "dimension is '0'"),
        (("dimension",), 7, "dimensions, but what it holds"),
        (("digest",), "0" * 63, "digest is"),
        (("digest",), "0" * 64, "but what it holds is"),
        (("surprise",), 1, "surprise"),
        (("preprocessing", "size"), -3, "preprocessing.size is '-3'"),
        (("preprocessing", "size"), 5000, "size is at most 4096"),
        (("preprocessing", "resize"), 300, "resize at most 4 times size"),
        (("preprocessing", "std"), [0.0], "std above 0"),
        (("preprocessing", "mean"), [1.0, 2.0], "mean and std need one value"),
        (("preprocessing", "channels"), 1, "one value, or one for each of 1 channels"),
        (("preprocessing", "interpolation"), "nearest", "preprocessing.interpolation"),
        (("preprocessing",), None, "preprocessing is 'None'"),
    ],
)
def test_a_manifest_that_is_wrong_is_one_sentence(
    original: Backbone, where: tuple[str, ...], value: object, message: str
) -> None:
    manifest = original.manifest
    inner = manifest[where[0]] if len(where) == 2 else manifest
    inner[where[-1]] = value
    with pytest.raises(ShoalError, match=message):
        load_stored(manifest, original.tensors())


def test_tensors_that_are_wrong_are_one_sentence(original: Backbone) -> None:
    tensors = original.tensors()
    first, *rest = tensors
    with pytest.raises(ShoalError, match=rf"artifact {original.digest[:12]} do not fit .* 1 missing \({first}\)"):
        load_stored(original.manifest, {key: tensors[key] for key in rest})
    with pytest.raises(ShoalError, match="1 of another shape"):
        load_stored(original.manifest, tensors | {first: tensors[first][:1]})
    with pytest.raises(ShoalError, match="but what it holds is"):
        load_stored(original.manifest, tensors | {first: tensors[first] + 1})
    with pytest.raises(ShoalError, match="manifest is no backbone's"):
        load_stored({}, {})
