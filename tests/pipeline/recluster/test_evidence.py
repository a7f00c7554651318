"""Evidence read back: all of what a generation says, and the little that older ones said."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
import torch

from models.drift import Arrivals, Reference, drift
from pipeline.recluster.evidence import Drift, Evidence
from pipeline.tables.clusterings import Generation


def generation(evidence: str) -> Generation:
    return Generation(
        samples_version=3,
        artifact="a",
        config_digest="c",
        decision="refine",
        evidence=evidence,
        generation=2,
        assignments_version=1,
        clusters_version=1,
        moves_version=1,
        created_at=datetime(2026, 3, 1, tzinfo=UTC),
    )


def test_what_older_shoals_said_is_enough() -> None:
    assert Evidence.of(generation("{}")) == Evidence()
    assert Evidence.of(generation('{"labelled": 12}')).arrived == 12
    fitted = Evidence.of(generation('{"seconds": {"fit": 1.5}, "unknown": [1]}'))
    assert (fitted.seconds, fitted.why, fitted.drift) == ({"fit": 1.5}, "", None)


def test_the_models_drift_comes_back_number_by_number() -> None:
    score_N = torch.linspace(-3, 3, 400)
    reference = Reference.of(torch.arange(400) % 2, score_N, torch.tensor([0, 1]))
    cluster_N = torch.zeros(50, dtype=torch.int64)
    made = drift(reference, Arrivals.of(reference, cluster_N, torch.full((50,), -9.0)))
    assert made.clusters[0].is_novel  # else there would be little to bring back
    found = Evidence.of(generation(json.dumps({"why": "x", "drift": made.as_json()}))).drift
    assert found is not None and len(found.clusters) == 1
    for mine, theirs in ((found.overall, made.overall), (found.clusters[0], made.clusters[0])):
        assert mine.model_dump() == {**vars(theirs), "p": pytest.approx(theirs.p)}


def test_what_is_not_finite_is_not_known() -> None:
    found = Evidence.of(generation('{"drift": {"overall": {"rows": 3, "p": NaN, "z": Infinity}, "clusters": []}}'))
    assert found.drift is not None
    assert (found.drift.overall.rows, found.drift.overall.p, found.drift.overall.z) == (3, None, None)


def test_the_surest_change_comes_first() -> None:
    clusters = [
        {"cluster": 0, "p": 0.5, "z": 1.0},
        {"cluster": 1, "p": 0.5, "z": -3.0},
        {"cluster": 2},
        {"cluster": 3, "p": 1e-9, "is_novel": True},
        {"cluster": 4, "p": 0.2, "z": 9.0, "has_drifted": True},
        {"cluster": 5, "p": 1e-3},
    ]
    drifted = Drift.model_validate({"clusters": clusters})
    assert [each.cluster for each in drifted.worst_first()] == [3, 4, 5, 1, 0, 2]
