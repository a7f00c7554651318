"""Backbones as artifacts: kept beside a table, so that workers need neither the hub nor a copy of the weights."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from models.backbones import Backbone, BackboneConfig, load_backbone, load_stored
from models.errors import ShoalError
from pipeline.tables.artifacts import MANIFEST, Artifact, ArtifactStore, read_artifact
from pipeline.tables.storage import is_url

KIND = "backbone"
KEYWORDS = ("default", "hub", "random")
CHECKPOINTS = (".safetensors", ".pth", ".tar", ".pt", ".bin", ".ckpt")


def open_backbone(config: BackboneConfig, device: str = "cpu") -> Backbone:
    """The backbone of `config`, whose `weights` may also name an artifact: its folder, a URL, or its artifact.json.

    What `config` leaves open is then as the artifact says. Raises ShoalError as load_backbone and load_stored, and for
    a checkpoint behind a URL; TableError if the artifact is missing or was changed.
    """
    if not names_artifact(config.weights):
        return load_backbone(config, device)
    _refuse_remote_checkpoint(config.weights)
    artifact = read_artifact(config.weights)
    if artifact.kind != KIND:
        raise ShoalError(
            f"{config.weights} is an artifact of the kind {artifact.kind}; give one of the kind {KIND} as "
            "backbone.weights."
        )
    return load_stored(artifact.manifest, artifact.tensors, device, config)


def publish_backbone(store: ArtifactStore, backbone: Backbone) -> Artifact:
    """Store a backbone, unless the same one is there already. Raises TableError if that cannot be done."""
    return store.write(KIND, backbone.manifest, backbone.tensors())


def names_artifact(weights: str) -> bool:
    """Whether `weights` of a backbone are given as an artifact; if not, as a checkpoint or a keyword."""
    if weights in KEYWORDS:
        return False
    return is_url(weights) or Path(weights).name == MANIFEST or Path(weights).is_dir()


def _refuse_remote_checkpoint(weights: str) -> None:
    url = urlsplit(weights)
    if is_url(weights) and url.path.lower().endswith(CHECKPOINTS):
        name = Path(url.path).name  # the rest of a URL may hold a signature
        raise ShoalError(
            f"backbone.weights is a {url.scheme} URL of the file {name}, but a checkpoint must be a file on this "
            "machine, and an artifact is given by its folder; copy the checkpoint here and give its path."
        )
