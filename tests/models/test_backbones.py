"""Backbones: names, weights, digests, and features that depend on the image alone."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from models.backbone_config import Precision
from models.backbones import Backbone, BackboneConfig, backbone_names, load_backbone, require_precision
from models.errors import ShoalError
from models.lite0 import in_timm
from models.networks import LIBRARIES


def ramp(size: int) -> Tensor:
    """A uint8 image that every reimplementation can make."""
    row_S1, column_1S = torch.arange(size)[:, None], torch.arange(size)[None]
    channels = [row_S1 * 3 + column_1S, row_S1 + column_1S * 5, row_S1 * column_1S]
    return torch.stack([channel % 256 for channel in channels]).to(torch.uint8)


def random_images(count: int, size: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def lite0() -> Backbone:
    return load_backbone(BackboneConfig())


@pytest.fixture(scope="module")
def squeezenet() -> Backbone:
    return load_backbone(BackboneConfig(name="torchvision/squeezenet1_1", weights="random", size=64))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints"


def test_pixels_are_the_pixels_in_rows_from_0_to_1() -> None:
    backbone = load_backbone(BackboneConfig(name="pixels", size=2))
    image_3HW = torch.tensor([[[0, 51], [102, 153]], [[204, 255], [0, 51]], [[102, 153], [204, 255]]]).to(torch.uint8)
    feature_1D = backbone.embed(backbone.prepare(image_3HW)[None])
    assert backbone.dim == 12 and feature_1D.dtype == torch.float32
    assert feature_1D[0].tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1, 0, 0.2, 0.4, 0.6, 0.8, 1])


def test_grey_pixels_have_one_value_per_pixel() -> None:
    backbone = load_backbone(BackboneConfig(name="pixels", size=8, grey=True))
    image_3HW = (torch.arange(64) * 4).reshape(1, 8, 8).expand(3, 8, 8).to(torch.uint8)
    feature_1D = backbone.embed(backbone.prepare(image_3HW)[None])
    assert backbone.dim == 64
    torch.testing.assert_close(feature_1D[0], torch.arange(64) * 4 / 255)


def test_pixels_are_32_by_32_unless_told() -> None:
    assert load_backbone(BackboneConfig(name="pixels")).dim == 3 * 32 * 32


def test_pixels_have_no_weights() -> None:
    backbones = [load_backbone(BackboneConfig(name="pixels", weights=weights)) for weights in ("default", "random")]
    assert [backbone.weights for backbone in backbones] == ["none", "none"]
    assert backbones[0].digest == backbones[1].digest


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_where_there_is_none_is_one_sentence() -> None:
    with pytest.raises(ShoalError, match="torch finds no GPU"):
        load_backbone(BackboneConfig(name="pixels"), device="cuda")


def test_lite0_gives_the_features_of_the_package_its_weights_were_made_for(lite0: Backbone) -> None:
    """Numbers of efficientnet-lite-pytorch 0.1.0 on the same pixels, pooled before its classifier."""
    feature_D = lite0.embed(ramp(224)[None])[0]
    assert feature_D.shape == (1280,) and int(feature_D.argmax()) == 245
    expected_8 = [0.0, 0.0, 0.0027275, 0.4465248, 0.0, 0.0, 0.0, 0.2879020]
    torch.testing.assert_close(feature_D[:8], torch.tensor(expected_8), rtol=1e-3, atol=1e-4)
    assert float(feature_D.norm()) == pytest.approx(21.07313, rel=1e-4)
    assert float(feature_D.sum()) == pytest.approx(243.09317, rel=1e-4)


def test_lite0_prepares_images_as_the_release_does(lite0: Backbone) -> None:
    assert lite0.preprocessing["size"] == 224 and lite0.preprocessing["resize"] == 256
    assert lite0.preprocessing["interpolation"] == "bicubic"
    low, high = lite0.pixels.normalise(torch.tensor([0, 255], dtype=torch.uint8).expand(1, 3, 1, 2))[0, 0, 0].tolist()
    assert (low, high) == (pytest.approx(-127 / 128), pytest.approx(1.0))


def test_every_tensor_of_lite0_gets_a_name_of_timm_and_those_keep_theirs() -> None:
    in_library = timm.create_model("tf_efficientnet_lite0").state_dict()
    published, _ = LIBRARIES["pypi/"].published("efficientnet_lite0")
    renamed = in_timm(published)
    assert renamed.keys() == in_library.keys()
    assert in_timm(renamed).keys() == renamed.keys()


@pytest.mark.parametrize(
    ("name", "dim"),
    [
        ("torchvision/resnet18", 512),  # fc
        ("torchvision/squeezenet1_1", 512),  # classifies with a convolution
        ("torchvision/mobilenet_v3_small", 1024),  # the last of two linear layers goes
        ("torchvision/shufflenet_v2_x0_5", 1024),
        ("torchvision/googlenet", 1024),  # auxiliary classifiers come before
        ("timm/test_vit", 64),
        ("timm/resnet10t", 512),
    ],
)
def test_dimension_is_that_of_the_features_before_the_classifier(name: str, dim: int) -> None:
    backbone = load_backbone(BackboneConfig(name=name, weights="random"))
    assert backbone.dim == dim
    size = backbone.pixels.size
    assert backbone.embed(random_images(1, size)).shape == (1, dim)


def test_squeezenet_keeps_the_pooled_features_of_its_library(squeezenet: Backbone) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        whole = torchvision.models.squeezenet1_1().eval()
    image_BCHW = random_images(2, 64)
    with torch.inference_mode():
        expected_BD = whole.features(squeezenet.pixels.normalise(image_BCHW)).mean(dim=(2, 3))
    torch.testing.assert_close(squeezenet.embed(image_BCHW), expected_BD, rtol=1e-4, atol=1e-5)


def test_features_do_not_depend_on_the_batch(squeezenet: Backbone) -> None:
    image_BCHW = random_images(7, 64)
    together_BD = squeezenet.embed(image_BCHW)
    alone_BD = torch.cat([squeezenet.embed(image_1CHW) for image_1CHW in image_BCHW.split(1)])
    torch.testing.assert_close(together_BD, alone_BD, rtol=1e-4, atol=1e-5)
    assert (together_BD[0] - together_BD[1]).abs().max() > 1e-3  # else the above would be empty


def test_l2_normalise_gives_unit_rows_and_leaves_zero_alone() -> None:
    backbone = load_backbone(BackboneConfig(name="pixels", size=4, l2_normalise=True))
    norm_B = backbone.embed(torch.stack([ramp(4), torch.zeros(3, 4, 4, dtype=torch.uint8)])).norm(dim=1)
    assert norm_B.tolist() == pytest.approx([1.0, 0.0])


def test_bf16_is_close_and_float32_outside() -> None:
    settings = BackboneConfig(name="timm/test_resnet", weights="random", size=64)
    image_BCHW = random_images(4, 64)
    exact_BD = load_backbone(settings).embed(image_BCHW)
    rough_BD = load_backbone(settings.model_copy(update={"precision": "bf16"})).embed(image_BCHW)
    assert rough_BD.dtype == torch.float32 and not torch.equal(rough_BD, exact_BD)
    assert float((rough_BD - exact_BD).norm() / exact_BD.norm()) < 0.05


def test_folding_norms_changes_what_runs_and_not_what_is_kept(lite0: Backbone) -> None:
    """The features by hand above are of the folded network."""
    kept = [name for name in lite0.net.state_dict() if name.endswith("running_mean")]
    assert isinstance(lite0.forward, nn.Module)
    run = [name for name in lite0.forward.state_dict() if name.endswith("running_mean")]
    assert len(kept) == 49 and run == []
    image_BCHW = random_images(2, 224)
    with torch.inference_mode():
        expected_BD = lite0.net(lite0.pixels.normalise(image_BCHW))
    torch.testing.assert_close(lite0.embed(image_BCHW), expected_BD, rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_fp16_can_be_described_on_a_cpu_but_not_run() -> None:
    """A driver without a GPU describes the table that workers with GPUs fill."""
    settings = BackboneConfig(name="timm/test_resnet", weights="random", size=32, precision="fp16")
    backbone = load_backbone(settings)
    assert backbone.about.precision == "fp16" and backbone.dim == 96
    with pytest.raises(ShoalError, match=r"fp16 was asked for on cpu.*use bf16 or fp32"):
        backbone.embed(random_images(1, 32))
    for precision in ("fp32", "bf16", None):
        require_precision(precision, "cpu")
    require_precision("fp16", "cuda:0")


@pytest.mark.slow
def test_compiling_is_no_part_of_the_digest_and_needs_a_compiler() -> None:
    settings = BackboneConfig(name="pixels", size=6, compile=True)
    backbone = load_backbone(settings)
    assert backbone.digest == load_backbone(settings.model_copy(update={"compile": False})).digest
    with (
        torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",), "fx_graph_cache": False}),
        pytest.raises(ShoalError, match=r"cannot be compiled.*needs a C\+\+ compiler.*backbone.compile=false"),
    ):
        backbone.embed(random_images(2, 6))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_features_agree(precision: Precision) -> None:
    settings = BackboneConfig(name="timm/test_resnet", weights="random", size=64, precision=precision, compile=True)
    compiled, plain = load_backbone(settings), load_backbone(settings.model_copy(update={"compile": False}))
    image_BCHW = random_images(4, 64)
    plain_BD, compiled_BD = plain.embed(image_BCHW), compiled.embed(image_BCHW)
    limit = 1e-4 if precision == "fp32" else 0.06
    assert float((compiled_BD - plain_BD).norm() / plain_BD.norm()) < limit


def test_a_config_says_what_was_used() -> None:
    settings = BackboneConfig(name="timm/test_resnet", weights="random")
    used = load_backbone(settings).config
    assert (used.size, used.grey, used.l2_normalise, used.precision) == (160, False, False, "fp32")
    assert load_backbone(used).digest == load_backbone(settings).digest


def test_settings_are_read_without_importing_torch() -> None:
    code = "import sys, models.backbone_config; print(sorted({'torch', 'timm', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_digest_names_everything_that_features_depend_on() -> None:
    base = BackboneConfig(name="timm/test_resnet", weights="random", size=32)
    changes = [
        {},
        {"seed": 1},
        {"name": "timm/test_convnext"},
        {"size": 64},
        {"grey": True},
        {"l2_normalise": True},
        {"precision": "bf16"},
        {"precision": "fp16"},
    ]
    digests = [load_backbone(base.model_copy(update=change)).digest for change in changes]
    assert len(set(digests)) == len(changes) and all(len(digest) == 64 for digest in digests)
    assert load_backbone(base).digest == digests[0]


def test_random_weights_leave_the_callers_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    backbone = load_backbone(BackboneConfig(name="timm/test_resnet", weights="random", seed=3))
    assert torch.equal(torch.rand(1), expected)
    assert backbone.weights == "random (seed 3)"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet18", "torchvision/resnet18 or timm/resnet18"),
        ("efficientnet_lite0", "timm/efficientnet_lite0 or pypi/efficientnet_lite0"),
        ("timm/resnet81", "nearest names: timm/resnet18"),
        ("pypi/efficientnet-lite0", "nearest names: pypi/efficientnet_lite0"),
        ("pixel", "nearest names: pixels"),
        ("", "nearest names: pixels"),
        ("torchvision/", "unknown"),
    ],
)
def test_unknown_names_are_answered_with_known_ones(name: str, message: str) -> None:
    with pytest.raises(ShoalError, match=message):
        load_backbone(BackboneConfig(name=name))


def test_names_are_unique_and_the_prefix_decides() -> None:
    names = backbone_names()
    assert len(set(names)) == len(names)
    assert {"pixels", "torchvision/resnet18", "timm/resnet18", "timm/resnet18.a1_in1k"} <= set(names)


def test_published_weights_come_from_the_cache_without_their_classifier(offline: Path) -> None:
    model = torchvision.models.squeezenet1_1()
    offline.mkdir(parents=True)
    torch.save(model.state_dict(), offline / "squeezenet1_1-b8a52dc0.pth")
    backbone = load_backbone(BackboneConfig(name="torchvision/squeezenet1_1", size=64))
    assert backbone.weights == "SqueezeNet1_1_Weights.IMAGENET1K_V1"
    assert torch.equal(backbone.net.state_dict()["features.0.weight"], model.state_dict()["features.0.weight"])


@pytest.mark.usefixtures("offline")
def test_weights_that_cannot_be_had_become_random_loudly_or_an_error() -> None:
    settings = BackboneConfig(name="torchvision/squeezenet1_1", size=64)
    with pytest.warns(UserWarning, match="weights are RANDOM"):
        assert load_backbone(settings).weights == "random (seed 0)"
    with pytest.raises(ShoalError, match="cannot be had"):
        load_backbone(settings.model_copy(update={"weights": "hub"}))


def test_a_local_file_loads_with_and_without_its_classifier(tmp_path: Path) -> None:
    for number, (name, whole) in enumerate(
        [
            ("torchvision/squeezenet1_1", torchvision.models.squeezenet1_1()),
            ("timm/test_vit", timm.create_model("test_vit")),
        ]
    ):
        path, headless = tmp_path / f"{number}.safetensors", tmp_path / f"{number}-headless.safetensors"
        save_file(whole.state_dict(), path)
        backbone = load_backbone(BackboneConfig(name=name, weights=str(path)))
        save_file({key: value.contiguous() for key, value in backbone.net.state_dict().items()}, headless)
        again = load_backbone(BackboneConfig(name=name, weights=str(headless), seed=9))
        assert backbone.weights == "a local file" and again.digest == backbone.digest
        first = next(iter(whole.state_dict()))
        assert torch.equal(backbone.net.state_dict()[first], whole.state_dict()[first])


def test_timm_itself_resizes_what_was_trained_at_another_size(tmp_path: Path) -> None:
    """Position embeddings of 160 × 160 images, used at 64 × 64."""
    path = tmp_path / "vit.safetensors"
    whole = timm.create_model("test_vit")
    save_file(whole.state_dict(), path)
    backbone = load_backbone(BackboneConfig(name="timm/test_vit", weights=str(path), size=64))
    assert backbone.embed(random_images(2, 64)).shape == (2, 64)
    assert torch.equal(backbone.net.state_dict()["cls_token"], whole.state_dict()["cls_token"])


def test_weights_of_another_network_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"stem.weight": torch.zeros(1)}, path)
    for name in ("torchvision/squeezenet1_1", "timm/test_resnet", "pypi/efficientnet_lite0", "pixels"):
        with pytest.raises(ShoalError, match=r"do not fit the backbone.*unexpected \(stem.weight\)"):
            load_backbone(BackboneConfig(name=name, weights=str(path)))


def test_sizes_that_a_network_cannot_take_are_one_sentence() -> None:
    with pytest.raises(ShoalError, match="cannot take images of 50 × 50 pixels"):
        load_backbone(BackboneConfig(name="torchvision/vit_b_32", weights="random", size=50))
    with pytest.raises(ShoalError, match="cannot take images of 8 × 8 pixels"):
        load_backbone(BackboneConfig(name="torchvision/squeezenet1_1", weights="random", size=8))


def test_a_vision_transformer_takes_another_size() -> None:
    backbone = load_backbone(BackboneConfig(name="timm/test_vit", weights="random", size=64))
    assert backbone.embed(random_images(1, 64)).shape == (1, backbone.dim)


@pytest.mark.parametrize("batch", [torch.zeros(1, 3, 4, 5, dtype=torch.uint8), torch.zeros(1, 3, 4, 4)])
def test_images_that_were_not_prepared_are_refused(batch: Tensor) -> None:
    backbone = load_backbone(BackboneConfig(name="pixels", size=4))
    with pytest.raises(ShoalError, match="pass each image through prepare"):
        backbone.embed(batch)


def test_loading_and_embedding_warn_of_nothing(lite0: Backbone) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lite0.embed(lite0.prepare(ramp(300))[None])
        load_backbone(BackboneConfig(name="torchvision/googlenet", weights="random", size=64))
