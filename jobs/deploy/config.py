"""Settings of clusters that are yet to be: which machines, which image, which storage. No result depends on them."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from models.config import Config

_NAME = r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$"  # of Kubernetes objects (RFC 1123)


class MachinesConfig(Config):
    """A group of equal machines. All their CPUs, GPUs and memory are Ray's."""

    count: int = Field(0, ge=0, description="machines that there are from the start")
    most: int | None = Field(None, ge=0, description="machines that autoscaling may bring it to; null: count")
    cpus: int = Field(8, ge=1, description="of a machine")
    memory_gib: int = Field(32, ge=1, description="of a machine")
    gpus: int = Field(0, ge=0, description="of a machine")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.most is not None and self.most < self.count:
            raise ValueError(f"most is {self.most} but there are count = {self.count} machines from the start")
        return self

    @property
    def limit(self) -> int:
        """Machines, with all that autoscaling brings."""
        return self.count if self.most is None else self.most


class StorageConfig(Config):
    """Where shards and tables are. Names of what exists; never a credential itself."""

    claim: str | None = Field(
        None, pattern=_NAME, description="PersistentVolumeClaim that exists, read and written by all; null: none"
    )
    mount: str = Field("/data", pattern=r"^/[^\s]*$", description="where every machine has the shared volume")
    secret: str | None = Field(
        None,
        pattern=_NAME,
        description="Secret that exists, with keys such as AWS_ACCESS_KEY_ID; null: the role of the service account",
    )


class SlurmConfig(Config):
    """What a Slurm site wants to know."""

    partition: str | None = Field(None, description="null: the site's default")
    account: str | None = Field(None, description="who pays; null: the user's default")
    hours: float = Field(24, gt=0, description="limit of a job, which is requeued when it is reached")
    environment: str | None = Field(None, description="virtual environment on shared storage; null: PATH has shoal")


class CloudConfig(Config):
    """What Ray's launcher wants to know of a cloud."""

    provider: Literal["aws", "gcp"] = "aws"
    region: str = "us-east-1"
    zone: str | None = Field(None, description="availability zone; null: a of the region")
    project: str | None = Field(None, description="of gcp; needed there")
    head: str | None = Field(None, description="machine type; null: what fits deploy.head")
    cpu: str | None = Field(None, description="machine type; null: what fits deploy.cpu")
    gpu: str | None = Field(None, description="machine type; null: what fits deploy.gpu")
    spot: bool = Field(False, description="workers may be taken away at any time; shoal goes on without them")


class DeployConfig(Config):
    """Where a run is to take place, for `shoal render`. Not part of the digest."""

    input: str | None = Field(None, description="INPUT of `shoal run`, as the machines see it")
    output: str | None = Field(None, description="--output of `shoal run`, as the machines see it")
    name: str = Field("shoal", pattern=_NAME, description="of the job and what belongs to it")
    namespace: str = Field("shoal", pattern=_NAME)
    image: str | None = Field(None, description="container image; null: shoal:VERSION-cpu, or -cuda with GPUs")
    head: MachinesConfig = MachinesConfig(count=1, cpus=4, memory_gib=16)
    cpu: MachinesConfig = Field(
        MachinesConfig(count=1, cpus=8, memory_gib=32), description="machines that decode, fit, and run the command"
    )
    gpu: MachinesConfig = Field(MachinesConfig(cpus=8, memory_gib=64, gpus=1), description="machines with GPUs")
    storage: StorageConfig = StorageConfig()
    service_account: str = Field("shoal", pattern=_NAME)
    queue: str | None = Field(None, pattern=_NAME, description="Kueue's LocalQueue; null: none")
    retries: int = Field(3, ge=0, description="new clusters after the first, each of which continues the run")
    ttl_s: int = Field(3600, ge=0, description="seconds until the cluster of a finished job is taken down")
    slurm: SlurmConfig = SlurmConfig()
    cloud: CloudConfig = CloudConfig()
