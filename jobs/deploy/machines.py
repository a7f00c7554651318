"""Machine types of clouds, so that a config need not name one: the smallest that has what is asked for."""

from __future__ import annotations

from jobs.deploy.config import CloudConfig, MachinesConfig
from models.errors import ShoalError

Type = tuple[str, int, int, int]  # name, CPUs, GiB of memory, GPUs


def _aws() -> list[Type]:
    sizes = {2: "large", 4: "xlarge"} | {cpus: f"{cpus // 4}xlarge" for cpus in (8, 16, 32, 48, 64, 96)}
    families = {2: "c7i", 4: "m7i", 8: "r7i"}  # GiB for each CPU
    plain = [(f"{name}.{size}", cpus, cpus * gib, 0) for gib, name in families.items() for cpus, size in sizes.items()]
    one = [(f"g6.{sizes[cpus]}", cpus, cpus * 4, 1) for cpus in (4, 8, 16, 32, 64)]  # NVIDIA L4
    return [*plain, *one, ("g6.12xlarge", 48, 192, 4), ("g6.24xlarge", 96, 384, 4), ("g6.48xlarge", 192, 768, 8)]


def _gcp() -> list[Type]:
    families = {"n2-standard": 4, "n2-highmem": 8}
    sizes = (2, 4, 8, 16, 32, 48, 64, 80)
    plain = [(f"{name}-{cpus}", cpus, cpus * gib, 0) for name, gib in families.items() for cpus in sizes]
    gpus = {4: 1, 8: 1, 12: 1, 16: 1, 24: 2, 32: 1, 48: 4, 96: 8}  # NVIDIA L4
    return [*plain, *((f"g2-standard-{cpus}", cpus, cpus * 4, count) for cpus, count in gpus.items())]


_TYPES = {"aws": _aws(), "gcp": _gcp()}


def machine_type(cloud: CloudConfig, group: str, machines: MachinesConfig) -> str:
    """Of a group (head, cpu, gpu): what the settings say, or the smallest that will do. Raises ShoalError for none."""
    if named := getattr(cloud, group):
        return str(named)
    fit = [
        (gpus, cpus, memory, name)
        for name, cpus, memory, gpus in _TYPES[cloud.provider]
        if cpus >= machines.cpus
        and memory >= machines.memory_gib
        and (gpus >= machines.gpus > 0 or gpus == machines.gpus)
    ]
    if not fit:
        raise ShoalError(
            f"No machine type of {cloud.provider} is known here with {machines.cpus} CPUs, {machines.memory_gib} GiB "
            f"and {machines.gpus} GPUs; name one with --set deploy.cloud.{group}=TYPE."
        )
    return min(fit)[3]
