"""The networks that shoal brings: what they take and give, and that they are backbones like any other."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models.backbones import BackboneConfig, backbone_names, load_backbone, load_stored
from models.convnets import Conv4
from models.errors import ShoalError

NAMES = ("shoal/conv4", "shoal/conv4_grey", "shoal/resnet18_small")


def random_images(count: int, channels: int, size: int) -> Tensor:
    shape = (count, channels, size, size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "dim", "channels", "size", "parameters"),
    [
        # 5 x 5 x in x out, then 3 x 3 x in x out of each convolution, and 2 of each batch norm's 32 + 64 + 128 + 256
        ("shoal/conv4", 256, 3, 32, 25 * 3 * 32 + 9 * (32 * 64 + 64 * 128 + 128 * 256) + 2 * 480),
        ("shoal/conv4_grey", 256, 1, 28, 25 * 32 + 9 * (32 * 64 + 64 * 128 + 128 * 256) + 2 * 480),
        # torchvision's 11,689,512 without its classifier (513 x 1000), and 3 x 3 instead of 7 x 7 at the first layer
        ("shoal/resnet18_small", 512, 3, 32, 11_689_512 - 513_000 - 64 * 3 * (49 - 9)),
    ],
)
def test_each_has_the_size_that_its_name_promises(
    name: str, dim: int, channels: int, size: int, parameters: int
) -> None:
    backbone = load_backbone(BackboneConfig(name=name, weights="random"))
    assert (backbone.dim, backbone.pixels.channels, backbone.pixels.size) == (dim, channels, size)
    assert sum(each.numel() for each in backbone.net.parameters()) == parameters
    image_3HW = random_images(1, 3, 50)[0]
    assert backbone.prepare(image_3HW).shape == (channels, size, size)


@pytest.mark.parametrize("name", NAMES)
def test_crops_of_any_size_from_8_pixels_on_become_features_of_one_width(name: str) -> None:
    backbone = load_backbone(BackboneConfig(name=name, weights="random"))
    for size in (8, 11, 28, 32):
        feature_BD = backbone.net(backbone.pixels.normalise(random_images(2, backbone.pixels.channels, size)))
        assert feature_BD.shape == (2, backbone.dim)


@pytest.mark.parametrize("name", NAMES)
def test_what_was_trained_is_stored_and_comes_back_to_the_bit(name: str) -> None:
    backbone = load_backbone(BackboneConfig(name=name, weights="random", seed=3))
    again = load_stored(backbone.manifest, backbone.tensors())
    image_BCHW = random_images(3, backbone.pixels.channels, backbone.pixels.size)
    assert again.digest == backbone.digest
    assert torch.equal(again.embed(image_BCHW), backbone.embed(image_BCHW))


@pytest.mark.parametrize("name", NAMES)
def test_batch_norms_fold_into_convolutions_without_a_change(name: str) -> None:
    backbone = load_backbone(BackboneConfig(name=name, weights="random"))
    net = copy.deepcopy(backbone.net).train()
    with torch.no_grad():  # running means away from 0 and 1, as training leaves them
        net(backbone.pixels.normalise(random_images(8, backbone.pixels.channels, backbone.pixels.size)))
    trained = load_stored(
        {**backbone.manifest, "precision": "fp32"},
        {key: value.numpy() for key, value in net.state_dict().items()},
        config=BackboneConfig(l2_normalise=True),  # other settings: the manifest's digest is that of other weights
    )
    assert not any(isinstance(each, nn.BatchNorm2d) for each in trained.forward.modules())  # type: ignore[attr-defined]
    image_BCHW = random_images(4, trained.pixels.channels, trained.pixels.size)
    with torch.no_grad():
        plain_BD = trained.net(trained.pixels.normalise(image_BCHW))
    torch.testing.assert_close(trained.embed(image_BCHW), nn.functional.normalize(plain_BD), rtol=1e-4, atol=1e-5)


def test_without_weights_they_are_random_with_a_warning_or_refused() -> None:
    with pytest.warns(UserWarning, match=r"shoal/conv4 is there to be trained.*RANDOM"):
        assert load_backbone(BackboneConfig(name="shoal/conv4")).weights == "random (seed 0)"
    with pytest.raises(ShoalError, match="`shoal train`"):
        load_backbone(BackboneConfig(name="shoal/conv4", weights="hub"))


def test_a_file_of_weights_is_loaded_and_one_of_another_network_refused(tmp_path: Path) -> None:
    torch.manual_seed(1)
    net = Conv4(1)
    save_file(net.state_dict(), tmp_path / "conv4.safetensors")
    weights = str(tmp_path / "conv4.safetensors")
    backbone = load_backbone(BackboneConfig(name="shoal/conv4_grey", weights=weights))
    assert torch.equal(backbone.net.state_dict()["layers.0.weight"], net.state_dict()["layers.0.weight"])
    with pytest.raises(ShoalError, match="of another shape"):
        load_backbone(BackboneConfig(name="shoal/conv4", weights=weights))


def test_a_network_of_one_channel_takes_grey_levels_whatever_is_set() -> None:
    digests = {
        load_backbone(BackboneConfig(name="shoal/conv4_grey", weights="random", grey=grey)).digest
        for grey in (None, True, False)
    }
    assert len(digests) == 1


def test_their_names_are_listed_and_close_ones_are_offered() -> None:
    assert set(NAMES) <= set(backbone_names())
    with pytest.raises(ShoalError, match="shoal/conv4"):
        load_backbone(BackboneConfig(name="shoal/conv5"))
    with pytest.raises(ShoalError, match="write shoal/conv4_grey"):
        load_backbone(BackboneConfig(name="conv4_grey"))
