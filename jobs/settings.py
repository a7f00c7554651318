"""`shoal config show` and `shoal config schema`: the settings as they are resolved, and what they may be."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from jobs.config import RunConfig, as_yaml, digest, resolve


def as_resolved(file: Path | None, sets: Sequence[str]) -> str:
    """YAML that `--config` reads, with the digest of its settings in a comment."""
    config = resolve(file, sets)
    return f"# digest {digest(config)}\n{as_yaml(config)}"


def as_schema() -> str:
    """JSON schema of the same tree, for editors that complete and check YAML."""
    return json.dumps(RunConfig.model_json_schema(), indent=2, ensure_ascii=False) + "\n"
