"""Settings of training by gradient; none of them belongs to one algorithm."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from models.config import Config


class TrainConfig(Config):
    """How an objective is trained. The number of workers changes a result by rounding only."""

    batch_size: int = Field(128, ge=1, description="rows of a batch, over all workers; batches are equal up to one row")
    epochs: int = Field(500, ge=1, description="stop after so many without having settled")
    optimizer: Literal["adam", "sgd"] = "adam"
    lr: float = Field(5e-4, gt=0, description="learning rate of parameters whose objective sets none of its own")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    weight_decay: float = Field(0.0, ge=0, description="added to the gradient, times the parameter")
    schedule: Literal["constant", "cosine"] = Field("constant", description="cosine falls to 0 at the last epoch")
    warmup_epochs: float = Field(0.0, ge=0, description="in which the learning rate rises linearly from 0")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16: autocast in the loss; weights stay float32")
    seed: int = Field(0, ge=0)
    sample_rows: int = Field(65_536, ge=1, description="rows that networks and clusters are started from")
    block_rows: int = Field(16_384, ge=1, description="rows at once in passes between epochs")
    checkpoint_every: int = Field(1, ge=1, description="epochs that a killed run may lose")
    workers: int = Field(1, ge=1, description="1 trains in this process; more are a Ray Train worker group")
    cpus_per_worker: int = Field(1, ge=1, description="threads of a worker, also of the only one")
    gpus_per_worker: int = Field(0, ge=0, le=1, description="1 trains on GPUs")
    max_failures: int = Field(3, ge=0, description="times that a group which lost a worker is started again")

    @property
    def outcome(self) -> dict[str, object]:
        """The settings that a result depends on, for a run's fingerprint; `epochs` too, for cosine falls with them."""
        free = {"checkpoint_every", "workers", "cpus_per_worker", "gpus_per_worker", "max_failures"}
        return self.model_dump(mode="json", exclude=free)
