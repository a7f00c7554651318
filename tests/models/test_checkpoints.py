"""Checkpoints in the layouts of the official releases: every tensor of the backbone arrives, and nothing else."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from models.backbones import BackboneConfig, load_backbone
from models.checkpoints import recognise
from models.errors import ShoalError
from models.networks import LIBRARIES
from models.preprocessing import Preprocessing
from models.weights import read_checkpoint

State = dict[str, Tensor]


def named(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {prefix + key: value for key, value in state.items()}


def linear(name: str, bias: bool = True) -> State:
    return {f"{name}.weight": torch.zeros(2, 2)} | ({f"{name}.bias": torch.zeros(2)} if bias else {})


def norm(name: str) -> State:
    keys = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{key}": torch.zeros(2) for key in keys} | {f"{name}.num_batches_tracked": torch.tensor(5)}


def swav(body: State) -> object:
    """main_swav.py; `prototypes` is one linear layer."""
    head = linear("projection_head.0") | norm("projection_head.1") | linear("projection_head.3")
    return named("module.", body | head | linear("prototypes", bias=False))


def swav_training(body: State) -> object:
    """Learning rates come from a numpy schedule."""
    return {"epoch": 7, "state_dict": swav(body), "optimizer": optimizer(np.float64(0.6)), "amp": {"loss_scaler0": {}}}


def deepcluster(body: State) -> object:
    """main_deepclusterv2.py: several prototype heads."""
    head = linear("projection_head.0") | norm("projection_head.1") | linear("projection_head.3")
    prototypes = linear("prototypes.prototypes0", bias=False) | linear("prototypes.prototypes1", bias=False)
    return named("module.", body | head | prototypes)


def moco_v1(body: State) -> object:
    both = named("encoder_q.", body | linear("fc")) | named("encoder_k.", body | linear("fc"))
    queue = {"queue": torch.zeros(2, 4), "queue_ptr": torch.zeros(1, dtype=torch.long)}
    return {
        "epoch": 200,
        "arch": "resnet50",
        "state_dict": named("module.", both | queue),
        "optimizer": optimizer(0.03),
    }


def moco_v2(body: State) -> object:
    net = body | linear("fc.0") | linear("fc.2")
    both = named("encoder_q.", net) | named("encoder_k.", net) | {"queue": torch.zeros(2, 4)}
    return {"epoch": 800, "arch": "resnet50", "state_dict": named("module.", both), "optimizer": optimizer(0.03)}


def moco_v3(body: State) -> object:
    net = body | linear("fc.0", bias=False) | norm("fc.1") | linear("fc.3", bias=False) | norm("fc.4")
    predictor = linear("predictor.0", bias=False) | norm("predictor.1")
    both = named("base_encoder.", net) | named("momentum_encoder.", net) | predictor
    return {"epoch": 1000, "arch": "resnet50", "state_dict": named("module.", both), "scaler": {"scale": 65536.0}}


def simsiam(body: State) -> object:
    net = body | linear("fc.0", bias=False) | norm("fc.1") | linear("fc.6") | norm("fc.7")
    predictor = linear("predictor.0", bias=False) | norm("predictor.1") | linear("predictor.3")
    return {"epoch": 100, "arch": "resnet50", "state_dict": named("module.", named("encoder.", net) | predictor)}


def barlow_twins(body: State) -> object:
    projector = linear("projector.0", bias=False) | norm("projector.1") | linear("projector.6", bias=False)
    return {"epoch": 1000, "model": named("module.", named("backbone.", body) | projector | norm("bn"))}


def vicreg(body: State) -> object:
    projector = linear("projector.0") | norm("projector.1") | linear("projector.6", bias=False)
    return {"epoch": 1000, "model": named("module.", named("backbone.", body) | projector), "optimizer": optimizer(0.2)}


def dino_head() -> State:
    last = {"head.last_layer.weight_g": torch.zeros(4, 1), "head.last_layer.weight_v": torch.zeros(4, 2)}
    return linear("head.mlp.0") | linear("head.mlp.2") | linear("head.mlp.4") | last


def dino_training(body: State) -> object:
    """main_dino.py with a network that has batch norms: the teacher, too, is wrapped. The student differs."""
    student = {key: value + 1 for key, value in body.items()}
    return {
        "student": named("module.", named("backbone.", student) | dino_head()),
        "teacher": named("module.", named("backbone.", body) | dino_head()),
        "optimizer": optimizer(np.float64(0.0005)),
        "epoch": 100,
        "args": argparse.Namespace(arch="resnet50", global_crops_scale=(0.14, 1.0), lr=0.0005),
        "dino_loss": {"center": torch.zeros(1, 4)},
        "fp16_scaler": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 3},
    }


def timm_training(body: State) -> object:
    """train.py of timm and references/classification of torchvision, after torch.compile."""
    return {"epoch": 9, "arch": "resnet18", "state_dict": named("_orig_mod.", body), "args": argparse.Namespace(lr=0.1)}


def optimizer(rate: Any) -> dict[str, Any]:
    """The state_dict of an SGD after a step, its learning rate set from a schedule."""
    layer = nn.Linear(2, 2)
    sgd = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    layer(torch.ones(1, 2)).sum().backward()
    sgd.step()
    sgd.param_groups[0]["lr"] = rate
    return sgd.state_dict()


SWAV, MOCO = "SwAV or DeepCluster-v2", "MoCo v1 or v2"
BARLOW = "Barlow Twins or VICReg"
RELEASES = [
    (swav, SWAV),
    (swav_training, SWAV),
    (deepcluster, SWAV),
    (moco_v1, MOCO),
    (moco_v2, MOCO),
    (moco_v3, "MoCo v3"),
    (simsiam, "SimSiam"),
    (barlow_twins, BARLOW),
    (vicreg, BARLOW),
    (dino_training, "DINO"),
    (timm_training, ""),
    (dict, ""),
]


@pytest.fixture(scope="module")
def resnet() -> State:
    """Names and tensors as a ResNet has them before its classifier; those of ResNet-50 differ in number only."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        state = torchvision.models.resnet18().state_dict()
    return {key: value for key, value in state.items() if not key.startswith("fc.")}


@pytest.mark.parametrize(("release", "title"), RELEASES)
def test_official_layouts_give_exactly_the_tensors_of_the_backbone(
    release: Callable[[State], object], title: str, resnet: State, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.pth.tar"
    torch.save(release(resnet), path)
    checkpoint = read_checkpoint(path)
    assert checkpoint.title == title and checkpoint.state.keys() == resnet.keys()
    backbone = load_backbone(BackboneConfig(name="torchvision/resnet18", weights=str(path), size=32))
    assert backbone.weights == (f"a local file ({title})" if title else "a local file")
    loaded = backbone.net.state_dict()
    assert loaded.keys() == resnet.keys() and all(torch.equal(loaded[key], resnet[key]) for key in resnet)


@pytest.mark.parametrize("release", [swav, deepcluster, moco_v2, barlow_twins])
def test_the_same_files_fit_resnet_50_of_both_libraries(release: Callable[[State], object]) -> None:
    with torch.device("meta"):
        body = torchvision.models.resnet50().state_dict()
        in_timm = timm.create_model("resnet50", num_classes=0).state_dict()
    body = {key: value for key, value in body.items() if not key.startswith("fc.")}
    found = recognise(release(body), "a file").state
    shapes = {key: value.shape for key, value in found.items()}
    assert len(shapes) == 318 and shapes == {key: value.shape for key, value in in_timm.items()}


def test_releases_bring_the_preprocessing_that_they_are_evaluated_with(resnet: State) -> None:
    """eval_linear.py of SwAV divides red by .228, others by .229; torchvision's own for ResNet-50 resizes to 232.

    DINO's is bicubic (interpolation=3); main_lincls.py of MoCo v3 is as that of MoCo v2.
    """
    library = Preprocessing(size=112, resize=116, interpolation="bicubic", mean=(0.5,), std=(0.5,))
    swavs = recognise(swav(resnet), "a file").prepare_as_released(library)
    assert (swavs.size, swavs.resize, swavs.interpolation) == (112, 128, "bilinear")
    assert swavs.mean == (0.485, 0.456, 0.406) and swavs.std == (0.228, 0.224, 0.225)
    mocos = recognise(moco_v2(resnet), "a file").prepare_as_released(library)
    assert mocos == swavs.model_copy(update={"std": (0.229, 0.224, 0.225)})
    assert recognise(moco_v3(resnet), "a file").prepare_as_released(library) == mocos
    dinos = recognise(dino_training(resnet), "a file").prepare_as_released(library)
    assert dinos == mocos.model_copy(update={"interpolation": "bicubic"})
    assert recognise(dict(resnet), "a file").prepare_as_released(library) == library


def test_a_backbone_is_prepared_as_its_checkpoint_was_released(resnet: State, tmp_path: Path) -> None:
    torch.save(swav(resnet), tmp_path / "swav.pth.tar")
    settings = BackboneConfig(name="torchvision/resnet18", weights=str(tmp_path / "swav.pth.tar"), size=32)
    assert load_backbone(settings).pixels.std == (0.228, 0.224, 0.225)


@pytest.mark.parametrize("zipped", [True, False])
def test_learning_rates_of_numpy_are_read(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save(swav_training({"layer1.0.weight": torch.ones(2)}), path, _use_new_zipfile_serialization=zipped)
    assert b"cnumpy._core.multiarray\nscalar\n" in path.read_bytes()
    assert read_checkpoint(path).state.keys() == {"layer1.0.weight"}


def test_learning_rates_of_numpy_1_are_read(tmp_path: Path) -> None:
    """The releases were written with it, and it said numpy.core where numpy 2 says numpy._core."""
    path = tmp_path / "checkpoint.pth"
    torch.save(swav_training({"layer1.0.weight": torch.ones(2)}), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    assert read_checkpoint(path).state.keys() == {"layer1.0.weight"}


def test_a_checkpoint_with_a_function_in_it_says_what_to_save(resnet: State, tmp_path: Path) -> None:
    """Barlow Twins and VICReg leave `exclude_bias_and_norm` in their optimizer's state."""
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": resnet, "optimizer": {"weight_decay_filter": optimizer}}, path)
    with pytest.raises(ShoalError, match="save its model's state_dict alone"):
        read_checkpoint(path)


@pytest.mark.parametrize("release", [swav, moco_v2, simsiam, vicreg, dino_training])
def test_what_no_head_is_known_by_is_refused(release: Callable[[State], object], resnet: State, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save(release(resnet | {"layer5.weight": torch.zeros(1)}), path)
    with pytest.raises(ShoalError, match=r"1 unexpected \(layer5\.weight\)"):
        load_backbone(BackboneConfig(name="torchvision/resnet18", weights=str(path), size=32))
    short = {key: value for key, value in resnet.items() if key != "bn1.bias"}
    torch.save(release(short), path)
    with pytest.raises(ShoalError, match=r"1 missing \(bn1\.bias\)"):
        load_backbone(BackboneConfig(name="torchvision/resnet18", weights=str(path), size=32))


def test_files_of_before_2018_lack_a_counter_that_nothing_reads(resnet: State, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save({key: value for key, value in resnet.items() if "num_batches" not in key}, path)
    backbone = load_backbone(BackboneConfig(name="torchvision/resnet18", weights=str(path), size=32))
    assert torch.equal(backbone.net.state_dict()["bn1.weight"], resnet["bn1.weight"])


def test_torchvisions_densenet_file_has_older_names(tmp_path: Path) -> None:
    """densenet121-a639ec97.pth: norm.1 for norm1, and no counters."""
    state = torchvision.models.densenet121().state_dict()
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", key): value
        for key, value in state.items()
        if "num_batches" not in key
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "densenet121.pth")
    settings = BackboneConfig(name="torchvision/densenet121", weights=str(tmp_path / "densenet121.pth"), size=32)
    loaded = load_backbone(settings).net.state_dict()
    key = "features.denseblock1.denselayer1.conv2.weight"
    assert torch.equal(loaded[key], state[key])


@pytest.mark.parametrize(
    ("name", "key"), [("mobilenet_v2", "features.1.conv.1.weight"), ("mnasnet0_5", "layers.1.bias")]
)
def test_odd_files_of_torchvision_load(name: str, key: str, tmp_path: Path) -> None:
    """MobileNet's layers are really called conv.1 and conv.2; MNASNet wants to know a version when it loads tensors."""
    state = torchvision.models.get_model(name, weights=None).state_dict()
    torch.save(state, tmp_path / "weights.pth")
    settings = BackboneConfig(name=f"torchvision/{name}", weights=str(tmp_path / "weights.pth"), size=32)
    backbone = load_backbone(settings)
    assert backbone.dim == 1280 and torch.equal(backbone.net.state_dict()[key], state[key])


def test_a_file_that_holds_itself_ends() -> None:
    content: dict[str, Any] = {"epoch": 1}
    content["model"] = content
    with pytest.raises(ShoalError, match="no mapping of names to tensors"):
        recognise(content, "a file")


def test_moco_v3s_small_transformer_is_refused_for_its_heads() -> None:
    state = named("module.base_encoder.", {"cls_token": torch.zeros(1, 1, 384)}) | linear("module.predictor.0")
    with pytest.raises(ShoalError, match="12 attention heads"):
        recognise({"state_dict": state}, "a file")
    wide = named("module.base_encoder.", {"cls_token": torch.zeros(1, 1, 768)}) | linear("module.predictor.0")
    assert recognise({"state_dict": wide}, "a file").state.keys() == {"cls_token"}


def test_dino_transformers_load_from_training_checkpoints_and_backbone_files(tmp_path: Path) -> None:
    """Without batch norms the teacher is not wrapped. The small network has the names of dino_deitsmall16.

    A file of the backbone alone has no marks: its images are prepared as timm says of the name that was given.
    """
    body = timm.create_model("test_vit", num_classes=0).state_dict()
    teacher = named("backbone.", body) | dino_head()
    torch.save({"student": named("module.", teacher), "teacher": teacher, "epoch": 1}, tmp_path / "full.pth")
    torch.save(body, tmp_path / "backbone.pth")
    full, alone = [
        load_backbone(BackboneConfig(name="timm/test_vit", weights=str(tmp_path / f"{name}.pth")))
        for name in ("full", "backbone")
    ]
    assert full.weights == "a local file (DINO)" and alone.weights == "a local file"
    loaded, again = full.net.state_dict(), alone.net.state_dict()
    assert loaded.keys() == body.keys() and all(torch.equal(loaded[key], again[key]) for key in body)
    assert full.pixels.mean == (0.485, 0.456, 0.406) and alone.pixels.mean == (0.5, 0.5, 0.5)
    smaller = BackboneConfig(name="timm/test_vit", weights=str(tmp_path / "backbone.pth"), size=64)
    assert load_backbone(smaller).net.state_dict()["pos_embed"].shape == (1, 17, 64)  # 16 patches and the class token


def dinov2_names(depth: int) -> set[str]:
    """Of facebookresearch/dinov2's DinoVisionTransformer."""
    outer = {"cls_token", "pos_embed", "mask_token", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    outer |= {"norm.weight", "norm.bias"}
    layers = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    inner = {f"blocks.{n}.{layer}.{kind}" for n in range(depth) for layer in layers for kind in ("weight", "bias")}
    return outer | inner | {f"blocks.{n}.{scale}.gamma" for n in range(depth) for scale in ("ls1", "ls2")}


@pytest.fixture(scope="module")
def dinov2() -> State:
    """dinov2_vits14_pretrain.pth: at 518 pixels, with 37 × 37 positions and the class token's."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = timm.create_model("vit_small_patch14_dinov2", num_classes=0)
    return net.state_dict() | {"mask_token": torch.zeros(1, 384)}


def test_dinov2_loads_and_timm_resamples_its_positions(dinov2: State, tmp_path: Path) -> None:
    assert dinov2.keys() == dinov2_names(12) and dinov2["pos_embed"].shape == (1, 1370, 384)
    torch.save(dinov2, tmp_path / "dinov2_vits14_pretrain.pth")
    weights = str(tmp_path / "dinov2_vits14_pretrain.pth")
    backbone = load_backbone(BackboneConfig(name="timm/vit_small_patch14_dinov2.lvd142m", weights=weights, size=28))
    assert backbone.weights == "a local file (DINOv2)" and backbone.dim == 384
    loaded = backbone.net.state_dict()
    assert loaded["pos_embed"].shape == (1, 5, 384)
    assert all(torch.equal(loaded[key], dinov2[key]) for key in loaded if key != "pos_embed")


def test_dinov2_with_registers_and_as_its_training_keeps_the_teacher(dinov2: State, tmp_path: Path) -> None:
    """Blocks come in chunks there (blocks.CHUNK.BLOCK); registers are a tensor more, and positions exclude them."""
    chunked = {
        (f"blocks.{int(key.split('.')[1]) // 3}.{key.partition('.')[2]}" if key.startswith("blocks.") else key): value
        for key, value in dinov2.items()
    }
    assert "blocks.3.11.ls2.gamma" in chunked
    registers = {"register_tokens": torch.ones(1, 4, 384)}
    heads = linear("dino_head.mlp.0") | linear("dino_head.last_layer") | linear("ibot_head.mlp.0")
    path = tmp_path / "teacher_checkpoint.pth"
    torch.save({"teacher": named("backbone.", chunked | registers) | heads}, path)
    backbone = load_backbone(BackboneConfig(name="timm/vit_small_patch14_reg4_dinov2", weights=str(path), size=28))
    assert backbone.weights == "a local file (DINOv2 teacher)"
    loaded = backbone.net.state_dict()
    assert torch.equal(loaded["reg_token"], registers["register_tokens"]) and loaded["pos_embed"].shape == (1, 4, 384)
    assert torch.equal(loaded["blocks.11.mlp.fc2.weight"], dinov2["blocks.11.mlp.fc2.weight"])
    with pytest.raises(ShoalError, match="do not fit the backbone"):
        load_backbone(BackboneConfig(name="timm/vit_small_patch14_dinov2", weights=str(path), size=28))


def test_libraries_offer_the_networks_of_the_releases() -> None:
    assert "resnet50" in LIBRARIES["torchvision/"].names()
    wanted = {"vit_small_patch16_224.dino", "vit_small_patch14_dinov2.lvd142m", "vit_base_patch14_reg4_dinov2"}
    assert wanted <= set(LIBRARIES["timm/"].names())
