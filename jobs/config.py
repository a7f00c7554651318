"""The settings of a whole run: every command reads its part of the same tree."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from jobs.context import RayConfig
from jobs.deploy.config import DeployConfig
from jobs.overrides import explain, merge, parse_sets, read_yaml
from jobs.report.data import ReportConfig
from jobs.scale import scaled
from models.backbone_config import BackboneConfig
from models.config import Config
from models.errors import ShoalError
from pipeline.cluster.config import ClusterConfig
from pipeline.evaluate.config import EvaluateConfig
from pipeline.extract.config import ExtractConfig
from pipeline.ingest.decode import DecodeConfig
from pipeline.ingest.write import ShardConfig
from pipeline.recluster.config import ReclusterConfig
from pipeline.train.learn_config import LearnConfig

__all__ = ["ImportConfig", "RayConfig", "RunConfig", "as_yaml", "digest", "resolve"]


class ImportConfig(Config):
    """What `shoal import` is to know of embeddings that were made elsewhere."""

    backbone: str = Field(default="imported", min_length=1, description="what made them, for the table's properties")
    l2_normalise: bool = Field(default=False, description="scale each embedding to length 1")


class CollectionConfig(Config):
    """What is known of the images before anything is read, for the estimates of --dry-run; null: what is found.

    Of a part, `images` is how many are taken (all, where there are fewer).
    """

    images: int | None = Field(default=None, ge=1)
    image_bytes: int | None = Field(default=None, ge=1, description="of an image as it is stored, on average")
    part: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="of the images that are there, `shoal run` takes so much, always the same ones; `scale` sets it",
    )


class RunConfig(Config):
    """Settings of `shoal run` and of each of its steps."""

    collection: CollectionConfig = Field(default_factory=CollectionConfig)
    scale: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="part of everything: images, epochs, batches, workers, also of what --set gives; to try a large "
        "run on a small machine. Resolved into all of these settings at once: then it is 1 again",
    )
    learn: bool = Field(
        default=False,
        description="`shoal run` first learns the backbone from the images, as `train` says; not with --backbone",
    )
    shards: ShardConfig = Field(default_factory=ShardConfig)
    decode: DecodeConfig = Field(default_factory=DecodeConfig)
    backbone: BackboneConfig = Field(default_factory=BackboneConfig)
    train: LearnConfig = Field(default_factory=LearnConfig, description="of `shoal train`, which learns a backbone")
    extract: ExtractConfig = Field(default_factory=ExtractConfig)
    imports: ImportConfig = Field(default_factory=ImportConfig)
    cluster: ClusterConfig = Field(default_factory=ClusterConfig)
    recluster: ReclusterConfig = Field(
        default_factory=ReclusterConfig, description="of `shoal recluster`, which folds in what came since"
    )
    baseline: bool = Field(
        default=True, description="also run k-means given the true number of clusters, for comparison"
    )
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    report: ReportConfig = Field(default_factory=ReportConfig)
    ray: RayConfig = Field(default_factory=RayConfig)
    deploy: DeployConfig = Field(default_factory=DeployConfig, description="of `shoal render`: machines and storage")
    max_reject_fraction: float = Field(
        default=0.05, ge=0, le=1, description="of samples; above it a run ends with exit code 1"
    )


def resolve(file: Path | None = None, sets: Sequence[str] = ()) -> RunConfig:
    """Defaults, then the file's settings, then `sets` (`a.b=c` each).

    `file` may be the bare name of a config that shoal ships. What `scale` makes of them is in them already (see
    `jobs.scale`). Raises ShoalError for a file, key or value that is wrong.
    """
    tree = RunConfig().model_dump(mode="json")
    if file is not None:
        tree = merge(tree, read_yaml(_find(file), RunConfig))
    tree = merge(tree, parse_sets(sets, RunConfig))
    try:
        return scaled(RunConfig.model_validate(tree))
    except ValidationError as error:
        raise ShoalError(explain(error, tree)) from error


def as_yaml(config: Config) -> str:
    """The settings as a file that `--config` reads."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def digest(config: RunConfig) -> str:
    """12 hex digits that name the settings which the results of a run depend on."""
    free = {"ray", "recluster", "deploy"} | ({"collection"} if config.collection.part == 1 else set())
    settings: dict[str, Any] = config.model_dump(mode="json", exclude=free)
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def shipped(name: str) -> Path | None:
    """The file of a config that shoal ships; None if there is none of that name."""
    file = Path(str(resources.files("jobs").joinpath("configs", f"{name}.yaml")))
    return file if re.fullmatch(r"\w+", name) and file.is_file() else None


def _find(file: Path) -> Path:
    if file.is_file() or file.suffix:
        return file
    found = shipped(str(file))
    if found is not None or file.exists():
        return found or file
    configs = sorted(Path(entry.name).stem for entry in resources.files("jobs").joinpath("configs").iterdir())
    raise ShoalError(f"There is no config file {file}; give a YAML file, or one of {', '.join(configs)}.")
