"""The settings of probes, apart from what probes: reading settings should not cost its imports."""

from __future__ import annotations

from pydantic import Field

from models.config import Config


class ProbeConfig(Config):
    """How features are probed; `k` and `temperature` are Wu et al.'s (2018) and DINO's (Caron et al. 2021)."""

    k: int = Field(20, ge=1, description="neighbours that vote")
    temperature: float = Field(0.07, gt=0, description="a vote counts exp(cosine / temperature)")
    strengths: tuple[float, ...] = Field(
        (1e-1, 1e-2, 1e-3, 1e-4, 1e-5),
        min_length=1,
        description="of the linear probe's penalty, strength / 2 |w|^2 beside the mean loss; a fifth of the train rows "
        "decides which",
    )
    iterations: int = Field(200, ge=1, description="of L-BFGS, at most")
    linear_rows: int = Field(100_000, ge=10, description="train rows of the linear probe at most: those of least hash")
    restarts: int = Field(10, ge=1, description="seedings of k-means, of which the one with the least inertia counts")
    threads: int = Field(1, ge=1)
    seed: int = Field(0, ge=0, description="of k-means; the other probes draw nothing")
