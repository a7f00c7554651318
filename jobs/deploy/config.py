"""Settings of clusters that are yet to be: which machines, which image, which storage. No result depends on them."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from models.config import Config

_JOB = r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$"  # KubeRay takes 47 characters, and what belongs to a job adds to its name
_NAMESPACE = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"  # RFC 1123
_NAME = r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$"  # of other Kubernetes objects
_LINE = r"^[A-Za-z0-9][A-Za-z0-9_.,@:+/-]*$"  # has a line of a script to itself: no blanks, quotes or line ends
_WORD = r"^\S+$"


class MachinesConfig(Config):
    """A group of equal machines. All their CPUs, GPUs and memory are Ray's."""

    count: int = Field(0, ge=0, description="machines that there are from the start")
    most: int | None = Field(None, ge=0, description="machines that autoscaling may bring it to; null: count")
    cpus: int = Field(8, ge=1, description="of a machine")
    memory_gib: int = Field(32, ge=1, description="of a machine")
    gpus: int = Field(0, ge=0, description="of a machine")
    disk_gib: int = Field(
        50,
        ge=1,
        description="of a machine for what is temporary; a pod is given 10 more, for its logs",
    )
    selector: dict[str, str] = Field(
        {}, description="labels of the Kubernetes nodes it may be on, such as cloud.google.com/gke-accelerator"
    )

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
    mount: str = Field("/data", pattern=r"^/[A-Za-z0-9][\w./-]*$", description="where every machine has the volume")
    secret: str | None = Field(
        None,
        pattern=_NAME,
        description="Secret that exists, with keys such as AWS_ACCESS_KEY_ID; null: the role of the service account",
    )


class SlurmConfig(Config):
    """What a Slurm site wants to know."""

    partition: str | None = Field(None, pattern=_LINE, description="null: the site's default")
    account: str | None = Field(None, pattern=_LINE, description="who pays; null: the user's default")
    hours: float = Field(24, gt=0, description="limit of a job, which is requeued when it is reached")
    environment: str | None = Field(None, description="virtual environment on shared storage; null: PATH has shoal")
    restarts: int = Field(
        50, ge=0, description="times that a job is requeued: by its time limit it is, as a matter of course"
    )


class CloudConfig(Config):
    """What Ray's launcher wants to know of a cloud."""

    provider: Literal["aws", "gcp"] = "aws"
    region: str | None = Field(None, pattern=_WORD, description="null: us-east-1 of aws, us-central1 of gcp")
    zone: str | None = Field(None, pattern=_WORD, description="availability zone; null: a of the region")
    project: str | None = Field(None, description="of gcp; needed there")
    head: str | None = Field(None, pattern=_WORD, description="machine type; null: what fits deploy.head")
    cpu: str | None = Field(None, pattern=_WORD, description="machine type; null: what fits deploy.cpu")
    gpu: str | None = Field(None, pattern=_WORD, description="machine type; null: what fits deploy.gpu")
    machine_image: str | None = Field(
        None, description="AMI or source image, with Docker and, for GPUs, NVIDIA's driver and container toolkit"
    )
    head_role: str | None = Field(
        None, description="instance profile (aws) or service account (gcp) by which the head starts and ends machines"
    )
    role: str | None = Field(
        None, description="instance profile (aws) or service account (gcp) by which workers read and write storage"
    )
    security_groups: tuple[str, ...] = Field(
        (), description="of aws, which exist; none: Ray makes one, and ssh is open to the world"
    )
    subnet: str | None = Field(None, description="that exists; null: what Ray finds")
    private: bool = Field(False, description="no public addresses; reached through a VPN or a bastion host")
    spot: bool = Field(False, description="GPU machines may be taken away at any time; shoal goes on without them")


class DeployConfig(Config):
    """Where a run is to take place, for `shoal render`. Not part of the digest."""

    input: str | None = Field(None, description="INPUT of `shoal run`, as the machines see it")
    output: str | None = Field(None, description="--output of `shoal run`, as the machines see it")
    name: str = Field("shoal", pattern=_JOB, description="of the job and what belongs to it")
    namespace: str = Field("shoal", pattern=_NAMESPACE, description="that exists")
    image: str | None = Field(
        None, pattern=_WORD, description="container image; null: shoal:VERSION-cpu, or -cuda with GPUs"
    )
    pull_secret: str | None = Field(
        None, pattern=_NAME, description="Secret that exists, by which Kubernetes gets the image; null: none is needed"
    )
    head: MachinesConfig = MachinesConfig(count=1, cpus=4, memory_gib=16, disk_gib=20)
    cpu: MachinesConfig = Field(
        MachinesConfig(count=1, cpus=8, memory_gib=32), description="machines that decode, fit, and run the command"
    )
    gpu: MachinesConfig = Field(MachinesConfig(cpus=8, memory_gib=64, gpus=1), description="machines with GPUs")
    storage: StorageConfig = StorageConfig()
    service_account: str = Field("shoal", pattern=_NAME, description="of Kubernetes; rendered")
    role_annotations: dict[str, str] = Field(
        {}, description="annotations of the service account that give it a cloud role: eks.amazonaws.com/role-arn"
    )
    role_labels: dict[str, str] = Field(
        {}, description="labels of the workers' pods that give them one, beside it: azure.workload.identity/use"
    )
    egress_ports: tuple[int, ...] = Field((443,), description="TCP, to object stores and to hubs of model weights")
    operator_namespace: str | None = Field(
        None, pattern=_NAMESPACE, description="of KubeRay's operator; null: whichever namespace it is in"
    )
    monitoring_namespace: str = Field("monitoring", pattern=_NAMESPACE, description="may read metrics")
    queue: str | None = Field(None, pattern=_NAME, description="Kueue's LocalQueue, without elastic jobs; null: none")
    retries: int = Field(3, ge=0, description="of Kubernetes: new clusters after the first, which continue the run")
    ttl_s: int = Field(3600, ge=0, description="seconds until the cluster of a finished job is taken down")
    deadline_s: int | None = Field(None, ge=1, description="seconds after which a job is ended, whatever it does")
    slurm: SlurmConfig = SlurmConfig()
    cloud: CloudConfig = CloudConfig()
