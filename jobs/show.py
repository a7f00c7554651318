"""`shoal show PATH`: what is this table, run, training run, artifact, clustering or shard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobs.figures import Figures, Row, Value
from jobs.folder import MARKER as RUN_MARKER
from jobs.folder import REPORT
from jobs.steps import Step
from models.errors import ShoalError
from pipeline.ingest.names import is_shard
from pipeline.ingest.shards import Sample, list_shards, read_samples
from pipeline.progress import Progress
from pipeline.tables.artifacts import MANIFEST, read_artifact
from pipeline.tables.collection import MARKER, RUN_FOLDER
from pipeline.tables.describe import describe
from pipeline.tables.place import Place, place, sizes
from pipeline.tables.storage import is_url
from pipeline.train.learn_folder import LearnFolder, is_training
from pipeline.train.metrics import read_lines


@dataclass(frozen=True)
class Show:
    """Look at a path and say what it is; nothing is changed."""

    path: str

    def plan(self) -> list[Step]:
        """Looking is all there is."""
        return [Step("show", self.path)]

    def run(self, on_progress: Progress) -> Figures:
        """Reads logs and manifests only, but a shard to its end. Raises ShoalError for what shoal did not write."""
        if is_url(self.path) and is_shard(self.path):
            return _shard(self.path)
        path = place(self.path)
        if not path.exists():
            raise ShoalError(f"There is nothing at {self.path}; give a table, a run folder, an artifact or a shard.")
        if (path / MARKER).is_file() or (path / RUN_FOLDER / MARKER).is_file():
            return _table(path)
        if (path / MANIFEST).is_file() or path.name == MANIFEST:
            return _artifact(path)
        if is_training(path):
            return _training(LearnFolder(path))
        if is_shard(self.path):
            return _shard(list_shards([self.path])[0])
        what = "a folder without shoal's marks" if path.is_dir() else "a file of another kind"
        raise ShoalError(f"{self.path} is {what}; give a table, a run folder, an artifact or a shard (*.tar).")


def _table(path: Place) -> Figures:
    found = describe(path)
    values: dict[str, Value] = {"path": found["path"], "kind": "table", "format_version": found["format_version"]}
    if (samples := found["samples"]) is not None:
        rows = samples["rows"]
        values |= {"samples_version": samples["version"], "images": rows["ok"], "rejects": rows["rejected"]}
        values |= {name: samples[name] for name in ("dimension", "backbone", "l2_normalised", "shards", "files")}
        values |= {"backbone_digest": samples["backbone_digest"][:12], "size_bytes": samples["bytes"]}
    values["artifacts"] = len(found["artifacts"])
    if (path / RUN_MARKER).is_file():
        values |= {"run": str(path), "report": str(path / REPORT) if (path / REPORT).is_file() else None}
    lineage = [
        _generation(name, generation)
        for name, generations in found["clusterings"].items()
        for generation in generations
    ]
    artifacts: list[Row] = [{"artifact": each["name"], "size_bytes": each["bytes"]} for each in found["artifacts"]]
    return Figures("show", values, {"generations": lineage, "artifacts_of_this_table": artifacts})


def _generation(name: str, generation: dict[str, Any]) -> dict[str, Value]:
    columns = ("generation", "parent", "samples_version", "decision")
    return {
        "clustering": name,
        **{column: generation[column] for column in columns},
        **generation["rows"],
        "artifact": generation["artifact"][:12],
        "config": generation["config_digest"][:12],
        "created_at": str(generation["created_at"]),
    }


def _training(folder: LearnFolder) -> Figures:
    settings, summary = folder.settings, folder.summary()
    values: dict[str, Value] = {"path": str(folder.path), "kind": "training run", "finished": summary is not None}
    if settings:
        loop = settings["train"]["loop"]
        values |= {"backbone": settings["backbone"]["name"], "shards": settings["input"]["shards"]}
        values |= {"objective": settings["train"]["objective"]["kind"], "epochs": loop["epochs"]}
        values |= {"batch_size": loop["batch_size"]}
    if summary is not None:
        counts = ("images", "prototypes", "images_per_second", "seconds")
        values |= {"loss": summary["figures"].get("loss"), **{name: summary[name] for name in counts}}
    artifacts: list[Row] = [
        {"artifact": str(path), "size_bytes": sum(sizes(path).values())} for path in folder.artifacts.list()
    ]
    lines: Sequence[Row] = [line for line in read_lines(folder.path) if "note" not in line][-1:]
    return Figures("show", values, {"artifacts": artifacts, "last_metrics": lines})


def _artifact(path: Place) -> Figures:
    artifact = read_artifact(path)
    values: dict[str, Value] = {"path": str(path), "kind": f"artifact: {artifact.kind}", "digest": artifact.digest}
    values |= {name: value for name, value in artifact.manifest.items() if isinstance(value, str | int | float)}
    tensors: list[Row] = [
        {"tensor": name, "shape": " × ".join(map(str, tensor.shape)), "type": str(tensor.dtype), "bytes": tensor.nbytes}
        for name, tensor in artifact.tensors.items()
    ]
    return Figures("show", values, {"tensors": tensors})


def _shard(shard: str) -> Figures:
    reader = read_samples(shard)
    extensions: Counter[str] = Counter()
    labels: set[str] = set()
    for item in reader:
        if isinstance(item, Sample):
            extensions[item.extension] += 1
            labels |= {item.label} if item.label is not None else set()
    summary = reader.summary
    values: dict[str, Value] = {
        "path": shard,
        "kind": "shard",
        "images": summary.samples,
        "rejects": summary.rejects,
        "labels": len(labels),
        "size_bytes": summary.size,
        "checksum": summary.checksum,
    }
    rows: list[Row] = [{"extension": extension, "images": images} for extension, images in extensions.items()]
    return Figures("show", values, {"images_by_extension": rows})
