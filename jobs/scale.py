"""A large run made small: the same steps on a part of the images, so that a cluster's config is tried on a laptop.

Lengths, batches and machines shrink in proportion, each down to the least with which it still is what it is. What only
limits a search stays: the epochs after which DeepDPM would give up, the clusters that a search starts from, samples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from models.reduce import ReduceConfig
from models.umap_network import UMAPConfig

if TYPE_CHECKING:
    from jobs.config import RunConfig
    from jobs.deploy.config import MachinesConfig
    from pipeline.cluster.config import ClusterConfig
    from pipeline.train.config import TrainConfig
    from pipeline.train.learn_config import LearnConfig

LEAST_BATCH = 16  # rows that a batch norm, and balanced codes, still say something of
_LEAST_PROTOTYPES = 16  # each of which needs a row of a batch
_LEAST_ROWS_OF_A_FIT = 128  # DeepDPM's own batch
_LEAST_LANES, _LEAST_SHUFFLED = 8, 1_024
_LEAST_UMAP_ROWS = 2_000

T = TypeVar("T", int, "int | None")


def scaled(config: RunConfig) -> RunConfig:
    """The settings that `config.scale` means, with scale 1: scaling them again changes nothing.

    Images, epochs, batches, prototypes, workers, their CPUs, and the machines of `deploy` become `scale` of what they
    were. The learning rate falls with the batch (Goyal et al. 2017), and what is counted in epochs with the epochs.
    Which images a run takes is `collection.part`.
    """
    part = config.scale
    if part == 1:
        return config
    known = config.collection
    images = None if known.images is None else max(1, round(known.images * part))
    deploy, extract = config.deploy, config.extract
    return config.model_copy(
        update={
            "scale": 1.0,
            "collection": known.model_copy(update={"images": images, "part": known.part * part}),
            "train": _training(config.train, part),
            "extract": extract.model_copy(
                update={each: _share(getattr(extract, each), part) for each in ("actors", "decode_threads")}
            ),
            "cluster": _clustering(config.cluster, part),
            "deploy": deploy.model_copy(
                update={"cpu": _machines(deploy.cpu, part, 1), "gpu": _machines(deploy.gpu, part, 0)}
            ),
        }
    )


def _training(learn: LearnConfig, part: float) -> LearnConfig:
    before, swav, images = learn.loop, learn.objective, learn.images
    loop = _loop(before, part)
    shorter = loop.epochs / before.epochs
    objective: dict[str, Any] = {
        "prototypes": _share(swav.prototypes, part, _LEAST_PROTOTYPES),
        "queue": _share(swav.queue, part, 0),
        "freeze": (1.0 if swav.freeze is None else swav.freeze) * shorter,
        "queue_start": None if swav.queue_start is None else swav.queue_start * shorter,
    }
    reading: dict[str, Any] = {
        "lanes": _share(images.lanes, part, max(_LEAST_LANES, loop.workers)),
        "shuffle_rows": _share(images.shuffle_rows, part, _LEAST_SHUFFLED),
        "threads": _share(images.threads, part),
    }
    return learn.model_copy(
        update={
            "objective": swav.model_copy(update=objective),
            "images": images.model_copy(update=reading),
            "loop": loop,
        }
    )


def _loop(loop: TrainConfig, part: float) -> TrainConfig:
    """A training of fixed length."""
    epochs, batch = _share(loop.epochs, part), _share(loop.batch_size, part, LEAST_BATCH)
    shorter = epochs / loop.epochs
    changed: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": batch,
        "accumulate": _share(loop.accumulate, part),
        "lr": loop.lr * batch / loop.batch_size,
        "warmup_epochs": loop.warmup_epochs * shorter,
        "checkpoint_every": _share(loop.checkpoint_every, shorter),
        "keep_every": _share(loop.keep_every, shorter),
    }
    return _workers(loop.model_copy(update=changed), part)


def _clustering(cluster: ClusterConfig, part: float) -> ClusterConfig:
    """A search ends when it settles, and takes as long as it takes."""
    train = cluster.train
    train = train.model_copy(update={"batch_size": _share(train.batch_size, part, _LEAST_ROWS_OF_A_FIT)})
    fit = cluster.fit.model_copy(
        update={each: _share(getattr(cluster.fit, each), part) for each in ("workers", "threads")}
    )
    return cluster.model_copy(
        update={"train": _workers(train, part), "fit": fit, "reduce": _reduction(cluster.reduce, part)}
    )


def _reduction(reduce: ReduceConfig | None, part: float) -> ReduceConfig | None:
    if not isinstance(reduce, UMAPConfig):
        return reduce
    return reduce.model_copy(update={"max_fit_rows": _share(reduce.max_fit_rows, part, _LEAST_UMAP_ROWS)})


def _workers(loop: TrainConfig, part: float) -> TrainConfig:
    names = ("workers", "min_workers", "cpus_per_worker")
    return loop.model_copy(update={each: _share(getattr(loop, each), part) for each in names})


def _machines(machines: MachinesConfig, part: float, least: int) -> MachinesConfig:
    return machines.model_copy(
        update={each: _share(getattr(machines, each), part, least) for each in ("count", "most")}
    )


def _share(value: T, part: float, least: int = 1) -> T:
    """`part` of a number, rounded, but no less than `least` of what there was; null stays null."""
    return value if value is None else max(round(value * part), min(value, least))
