"""What a generation says of how it came to be: the JSON in its `evidence`, read back.

Generations of older shoals say less, so nothing here is sure to be there.
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field

from pipeline.tables.clusterings import Generation


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


Measure = Annotated[float | None, AfterValidator(_finite)]  # None for what could not be measured


class _Told(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class ClusterDrift(_Told):
    """As of models.drift: how what arrived differs from what the model was made of, in one cluster or in all."""

    cluster: int | None = None  # None: all together
    rows: int = 0  # that arrived since the model last changed
    low_fraction: Measure = None  # share of them that score lower than all but 1 % of what the model was made of
    expected_fraction: float = 0.01  # the same of rows like those
    log_density_shift: Measure = None  # change of their mean score, in deviations
    z: Measure = None  # the same in standard errors
    p: Measure = None  # chance of so many low scores
    is_novel: bool = False
    has_drifted: bool = False


class Drift(_Told):
    """Overall, and in each cluster that something arrived in."""

    overall: ClusterDrift = ClusterDrift()
    clusters: tuple[ClusterDrift, ...] = ()

    def worst_first(self) -> list[ClusterDrift]:
        """Clusters by how sure it is that they changed: those over a threshold, then by p and |z|; ties by id."""
        return sorted(self.clusters, key=_calm)


class Evidence(_Told):
    """Why a generation was made as it was, and from what."""

    why: str = ""
    arrived: int | None = Field(None, validation_alias=AliasChoices("arrived", "labelled"))  # the latter is older
    removed: int | None = None
    drift: Drift | None = None
    seconds: dict[str, float] = Field(default_factory=dict)  # by step, in order

    @classmethod
    def of(cls, generation: Generation) -> Evidence:
        """Raises pydantic.ValidationError, a ValueError, for JSON that no shoal wrote."""
        return cls.model_validate_json(generation.evidence)


def _calm(drift: ClusterDrift) -> tuple[bool, float, float, int]:
    flagged = drift.is_novel or drift.has_drifted
    p, z = (1.0 if drift.p is None else drift.p), (drift.z or 0.0)
    return not flagged, p, -abs(z), -1 if drift.cluster is None else drift.cluster
