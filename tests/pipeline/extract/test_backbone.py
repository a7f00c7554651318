"""Backbones as artifacts: published once, opened anywhere, refused when they are something else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from models.backbones import Backbone, BackboneConfig, load_backbone
from models.errors import ShoalError
from pipeline.extract.backbone import open_backbone, publish_backbone
from pipeline.tables.artifacts import ArtifactStore
from pipeline.tables.schema import TableError

SETTINGS = BackboneConfig(name="timm/test_resnet", weights="random", size=64, precision="bf16", seed=2)


@pytest.fixture(scope="module")
def original() -> Backbone:
    return load_backbone(SETTINGS)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


def test_a_published_backbone_opens_by_its_folder_or_its_manifest(original: Backbone, store: ArtifactStore) -> None:
    artifact = publish_backbone(store, original)
    folder = store.path("backbone", artifact.digest)
    image_BCHW = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for weights in (str(folder), str(folder / "artifact.json"), folder.as_uri()):
        opened = open_backbone(BackboneConfig(weights=weights))
        assert opened.about == original.about
        assert torch.equal(opened.embed(image_BCHW), original.embed(image_BCHW))


def test_publishing_is_idempotent_also_from_the_artifact_itself(original: Backbone, store: ArtifactStore) -> None:
    first = publish_backbone(store, original)
    again = publish_backbone(store, load_backbone(SETTINGS))
    opened = open_backbone(BackboneConfig(weights=str(store.path("backbone", first.digest))))
    assert first.digest == again.digest == publish_backbone(store, opened).digest
    assert len(store.list()) == 1


def test_a_local_file_is_published_without_its_path(original: Backbone, store: ArtifactStore, tmp_path: Path) -> None:
    """The same file elsewhere is the same artifact, and where it was is nobody's business."""
    digests = set()
    for name in ("here.safetensors", "there.safetensors"):
        save_file({key: value.contiguous() for key, value in original.net.state_dict().items()}, tmp_path / name)
        artifact = publish_backbone(store, load_backbone(SETTINGS.model_copy(update={"weights": str(tmp_path / name)})))
        assert artifact.manifest["weights"] == "a local file"
        digests.add(artifact.digest)
    assert len(digests) == 1


def test_the_config_of_an_opened_backbone_opens_it_again(original: Backbone, store: ArtifactStore) -> None:
    """Workers get the driver's settings with the artifact's place in them."""
    folder = store.path("backbone", publish_backbone(store, original).digest)
    for config in (original.config, SETTINGS, open_backbone(BackboneConfig(weights=str(folder))).config):
        assert open_backbone(config.model_copy(update={"weights": str(folder)})).digest == original.digest


def test_pixels_have_no_tensors_and_can_be_kept_all_the_same(store: ArtifactStore) -> None:
    pixels = load_backbone(BackboneConfig(name="pixels", size=4))
    folder = store.path("backbone", publish_backbone(store, pixels).digest)
    assert open_backbone(BackboneConfig(weights=str(folder))).about == pixels.about


def test_what_names_no_artifact_is_loaded_as_before(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "random").mkdir()
    monkeypatch.chdir(tmp_path)  # a folder of that name does not change what `random` means
    assert open_backbone(BackboneConfig(name="timm/test_resnet", weights="random")).weights == "random (seed 0)"
    with pytest.raises(ShoalError, match="does not exist"):
        open_backbone(BackboneConfig(weights=str(tmp_path / "none.pth")))


def test_other_artifacts_and_folders_are_refused(original: Backbone, store: ArtifactStore, tmp_path: Path) -> None:
    reducer = store.write("pca", {"n": 1}, {"mean": np.zeros(2, np.float32)})
    with pytest.raises(ShoalError, match="of the kind pca; give one of the kind backbone"):
        open_backbone(BackboneConfig(weights=str(store.path("pca", reducer.digest))))
    for weights in (tmp_path, (tmp_path / "nothing").as_uri()):
        with pytest.raises(TableError, match="no artifact"):
            open_backbone(BackboneConfig(weights=str(weights)))
    folder = store.path("backbone", publish_backbone(store, original).digest)
    tensors = folder / "tensors.safetensors"
    content = tensors.read_bytes()
    tensors.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(TableError, match="changed"):
        open_backbone(BackboneConfig(weights=str(folder)))


@pytest.mark.parametrize(
    "weights", ["s3://bucket/swav_800ep.pth.tar", "https://host/vit.pth?X-Amz-Signature=secret", "file:///a/VIT.PTH"]
)
def test_a_checkpoint_behind_a_url_is_refused_before_anything_is_asked_for(weights: str) -> None:
    with pytest.raises(ShoalError, match="must be a file on this machine") as caught:
        open_backbone(BackboneConfig(weights=weights))
    assert "secret" not in str(caught.value)
