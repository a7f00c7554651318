"""`--backbone NAME|PATH`: one option for every way to say which backbone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from models.backbone_config import DEFAULT_NAME
from models.backbones import backbone_names, require_backbone
from models.errors import ShoalError
from pipeline.extract.backbone import names_artifact
from pipeline.tables.place import place
from pipeline.tables.storage import is_object_store, is_url
from pipeline.train.learn_folder import LearnFolder, is_training

# A config file's backbone is another one; what `--set` says of this one is kept.
_AS_STORED = (
    f"backbone.name={DEFAULT_NAME}",
    *(f"backbone.{each}=null" for each in ("size", "grey", "l2_normalise", "precision")),
)


def with_backbone(given: str, sets: Sequence[str]) -> list[str]:
    """`sets` with those of the backbone that is meant: a name, a training run, an artifact or a checkpoint.

    Of an artifact everything is as it was stored, unless `sets` say otherwise. None is learned then, whatever a config
    file says. Raises ShoalError for what is no backbone.
    """
    sets = [*sets, "learn=false"]
    if given in backbone_names():
        return [*sets, _setting("name", given)]
    weights = trained(given) or given
    if names_artifact(weights):
        return [*_AS_STORED, *sets, _setting("weights", weights)]
    if not Path(weights).exists():
        require_backbone(given)  # names the nearest
    return [*sets, _setting("weights", weights)]


def trained(given: str) -> str | None:
    """The backbone's artifact in the folder of a training run; None for anything else.

    Raises ShoalError while the training is not over.
    """
    if is_url(given) and not is_object_store(given):
        return None
    if not is_training(place(given)):
        return None
    folder = LearnFolder(given)
    summary = folder.summary()
    if summary is None:
        raise ShoalError(f"The training in {folder.path} is not over; run its `shoal train` to the end first.")
    return str(folder.artifacts.root / summary["backbone_artifact"])


def _setting(name: str, value: str) -> str:
    return f"backbone.{name}={json.dumps(value)}"
