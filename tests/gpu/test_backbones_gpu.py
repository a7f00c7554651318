"""Backbones and reducers on a GPU agree with the CPU."""

from __future__ import annotations

import pytest
import torch

from models.backbone_config import Precision
from models.backbones import BackboneConfig, load_backbone, load_stored
from models.reduce import PCAConfig, fit_reducer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-2), ("bf16", 1e-1), ("fp16", 3e-2)])
def test_features_agree_with_the_cpu(precision: Precision, tolerance: float) -> None:
    settings = BackboneConfig(name="timm/test_resnet", weights="random", size=64)
    image_BCHW = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    cpu_BD = load_backbone(settings).embed(image_BCHW)
    backbone = load_backbone(settings.model_copy(update={"precision": precision}), device="cuda")
    gpu_BD = backbone.embed(image_BCHW)
    assert gpu_BD.device.type == "cuda" and gpu_BD.dtype == torch.float32
    assert float((gpu_BD.cpu() - cpu_BD).norm() / cpu_BD.norm()) < tolerance


def test_pinned_images_give_the_same_features() -> None:
    backbone = load_backbone(BackboneConfig(name="timm/test_resnet", weights="random", size=64), device="cuda")
    image_BCHW = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(backbone.embed(image_BCHW.pin_memory()), backbone.embed(image_BCHW))


def test_a_compiled_backbone_agrees() -> None:
    settings = BackboneConfig(name="timm/test_resnet", weights="random", size=64)
    image_BCHW = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plain_BD = load_backbone(settings, device="cuda").embed(image_BCHW)
    compiled_BD = load_backbone(settings.model_copy(update={"compile": True}), device="cuda").embed(image_BCHW)
    assert float((compiled_BD - plain_BD).norm() / plain_BD.norm()) < 1e-2


def test_a_backbone_stored_from_the_gpu_is_the_one_of_the_cpu() -> None:
    settings = BackboneConfig(name="timm/test_resnet", weights="random", size=64, precision="fp16")
    on_gpu = load_backbone(settings, device="cuda")
    again = load_stored(on_gpu.manifest, on_gpu.tensors(), device="cuda")
    image_BCHW = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert again.about == on_gpu.about == load_backbone(settings).about
    assert torch.equal(again.embed(image_BCHW), on_gpu.embed(image_BCHW))


def test_digest_does_not_depend_on_the_device() -> None:
    settings = BackboneConfig(name="timm/test_resnet", weights="random", size=64)
    assert load_backbone(settings).digest == load_backbone(settings, device="cuda").digest


def test_a_reducer_takes_rows_from_the_gpu() -> None:
    x_ND = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    reducer = fit_reducer(PCAConfig(n_components=3), x_ND.cuda(), seed=0)
    torch.testing.assert_close(reducer.transform(x_ND.cuda()), reducer.transform(x_ND))
