"""What the steps of a plan will take: seconds, memory and bytes, from what is known of the images and stated rates.

An estimate is worth as much as its rates (`jobs.rates`), which come with their sources and margins. Seconds are those
of machines with nothing else to do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from jobs.estimate import clusters, images
from jobs.estimate.facts import Estimate, Facts, Setting
from jobs.steps import State, Step

if TYPE_CHECKING:
    from jobs.config import RunConfig

_STEPS: dict[str, Callable[[Setting], Estimate]] = {
    "shards": images.shards,
    "train": images.train,
    "extract": images.extract,
    "cluster": clusters.cluster,
    "baseline": clusters.baseline,
    "evaluate": clusters.evaluate,
    "report": images.report,
}


def estimated(steps: Sequence[Step], config: RunConfig, facts: Facts | None, cpus: int | None = None) -> list[Step]:
    """The steps with estimates of those that are still to do; as they were where nothing is known of the images.

    The machines are those of `deploy` if it has GPUs, else this one, or one of `cpus` cores.
    """
    if facts is None:
        return list(steps)
    machines = config.deploy.gpu
    here = cpus or config.ray.num_cpus or os.cpu_count() or 1
    setting = Setting(config, facts, here, machines.limit * machines.gpus)
    return [
        replace(step, estimate=_STEPS[step.step](setting)) if step.step in _STEPS and step.state != State.DONE else step
        for step in steps
    ]
