"""Settings of training by gradient; none of them belongs to one algorithm."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from models.config import Config

_FREE = {  # what a result does not depend on
    "checkpoint_every",
    "checkpoint_minutes",
    "keep",
    "keep_every",
    "log_every",
    "workers",
    "min_workers",
    "cpus_per_worker",
    "gpus_per_worker",
    "max_failures",
    "max_skipped",
}


class TrainConfig(Config):
    """How an objective is trained. The number of workers changes a result by rounding only."""

    batch_size: int = Field(128, ge=1, description="rows of a step, over all workers; batches are equal up to one row")
    accumulate: int = Field(
        1, ge=1, description="losses whose gradients make one step; each sees batch_size / accumulate rows"
    )
    epochs: int = Field(500, ge=1, description="stop after so many without having settled")
    optimizer: Literal["adam", "sgd", "lars"] = Field("adam", description="lars: SGD with layer-wise rates (timm's)")
    lr: float = Field(5e-4, gt=0, description="learning rate of parameters whose objective sets none of its own")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd and lars")
    nesterov: bool = Field(False, description="of sgd and lars")
    trust: float = Field(1e-3, gt=0, description="of lars: a layer's step in units of its length, at lr 1")
    weight_decay: float = Field(0.0, ge=0, description="added to the gradient, times the parameter")
    schedule: Literal["constant", "cosine"] = Field("constant", description="cosine falls to final_lr at the end")
    final_lr: float = Field(0.0, ge=0, le=1, description="where cosine ends, in units of lr")
    warmup_epochs: float = Field(0.0, ge=0, description="in which the learning rate rises linearly to lr")
    warmup_start: float = Field(0.0, ge=0, le=1, description="where it rises from, in units of lr")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16: autocast in the loss; weights stay float32")
    seed: int = Field(0, ge=0)
    sample_rows: int = Field(65_536, ge=1, description="rows that networks and clusters are started from")
    block_rows: int = Field(16_384, ge=1, description="rows at once in passes between epochs")
    checkpoint_every: int = Field(1, ge=1, description="epochs that a killed run may lose")
    checkpoint_minutes: float | None = Field(
        None, gt=0, description="also save in mid-epoch after so long, at the next step that is logged"
    )
    keep: int = Field(2, ge=2, description="newest checkpoints that stay: one may be damaged")
    keep_every: int | None = Field(None, ge=1, description="checkpoints of every so many epochs stay, too")
    log_every: int = Field(50, ge=1, description="steps between two lines of metrics")
    max_skipped: int = Field(
        10, ge=1, description="steps in a row without a finite loss and gradient, each skipped, after which a run fails"
    )
    workers: int = Field(1, ge=1, description="1 trains in this process; more are a Ray Train worker group")
    min_workers: int | None = Field(
        None, ge=1, description="start with so many where there is no room for all, and grow when there is"
    )
    cpus_per_worker: int = Field(1, ge=1, description="threads of a worker, also of the only one")
    gpus_per_worker: int | None = Field(0, ge=0, le=1, description="1 trains on GPUs; null: where there are any")
    max_failures: int = Field(3, ge=0, description="times that a group which lost a worker is started again")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"accumulate is {self.accumulate} but a step has batch_size = {self.batch_size} rows to share out"
            )
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers is {self.min_workers} but workers, the most there may be, {self.workers}")
        return self

    @property
    def batch_rows(self) -> int:
        """Rows that one loss sees, over all workers."""
        return self.batch_size // self.accumulate

    @property
    def outcome(self) -> dict[str, object]:
        """The settings that a result depends on, for a run's fingerprint; `epochs` too, for cosine falls with them."""
        return self.model_dump(mode="json", exclude=_FREE)
