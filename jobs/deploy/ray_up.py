"""A cluster of Ray's own launcher, on machines of a cloud, for `ray up`: made by hand, and taken down by hand."""

from __future__ import annotations

from jobs.deploy.config import CloudConfig, MachinesConfig
from jobs.deploy.machines import machine_type
from jobs.deploy.order import Order
from jobs.deploy.text import Node, quoted
from jobs.submit.submission import DRIVER

AMI, SOURCE_IMAGE = "<AMI>", "<SOURCE_IMAGE>"
_REGIONS = {"aws": "us-east-1", "gcp": "us-central1"}
_CLIENTS = {"aws": "'boto3>=1.35,<2'", "gcp": "'google-api-python-client>=2,<3'"}  # by which the head asks for machines
_SYSTEM_GIB = 100  # of a disk: the system, and an image of some gigabytes
_SCOPES = ["https://www.googleapis.com/auth/cloud-platform"]
_START = "ray start --metrics-export-port=8080 --disable-usage-stats"
_TOKEN = "/etc/shoal/auth_token"  # noqa: S105  where it is
# As the user who has copied the token to the machine; the image is made for any user of group 0.
_CONFINED = ["--init", "--user $(id -u):0", "--ulimit nofile=65536:65536", "--cap-drop=ALL"]
_CONFINED += ["--security-opt=no-new-privileges"]


def cluster(order: Order) -> Node:
    """The launcher's YAML. Raises ShoalError where no machine type fits, or a project is missing."""
    deploy, cloud = order.deploy, order.deploy.cloud
    groups = {"head": deploy.head, **order.groups}
    return {
        "cluster_name": deploy.name,
        "max_workers": sum(machines.limit for machines in order.groups.values()),
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 5,
        "provider": _provider(cloud),
        "auth": {"ssh_user": "ubuntu"},
        "docker": {
            "image": order.image,
            "container_name": "shoal",
            "pull_before_run": True,
            "run_options": [
                *_CONFINED,
                "-e RAY_AUTH_MODE=token",
                f"-e RAY_AUTH_TOKEN_PATH={_TOKEN}",
                "-e SHOAL_LOG=json",
            ],
        },
        "file_mounts": {_TOKEN: "~/.ray/auth_token"},
        "head_node_type": "head",
        "available_node_types": {name: _node_type(order, name, machines) for name, machines in groups.items()},
        "initialization_commands": _login(order.image),
        "setup_commands": [],
        "head_setup_commands": [f"python -m pip install --user {_CLIENTS[cloud.provider]}"],
        "worker_setup_commands": [],
        "head_start_ray_commands": [
            "ray stop",
            f"{_START} --head --port=6379 --num-cpus=0 --dashboard-host=127.0.0.1 "
            "--autoscaling-config=~/ray_bootstrap_config.yaml",
        ],
        "worker_start_ray_commands": ["ray stop", f"{_START} --address=$RAY_HEAD_IP:6379"],
    }


def instructions(order: Order, file: str) -> list[str]:
    """What is to be typed, for the head of the file."""
    name = quoted([file])
    return [
        "ray get-auth-token --generate   # once: makes ~/.ray/auth_token, which goes to every machine",
        f"ray up {name}",
        f"ray dashboard {name}   # in a terminal of its own: a tunnel to http://127.0.0.1:8265",
        f"RAY_AUTH_MODE=token shoal submit --watch {quoted(order.typed.words)}",
        f"ray down {name}",
    ]


def notes(order: Order) -> list[str]:
    """What a reviewer would ask about, where the settings leave it to Ray."""
    cloud = order.deploy.cloud
    said = []
    if cloud.provider == "aws" and not cloud.security_groups:
        said.append(
            "Ray makes a security group that opens port 22 to the world: name yours, deploy.cloud.security_groups."
        )
    if cloud.machine_image is None:
        said.append(
            "Machines need Docker and, with GPUs, NVIDIA's driver and container toolkit: put the image that has them "
            "into deploy.cloud.machine_image."
        )
    if cloud.head_role is None:
        said.append(
            "Ray makes a role for the head that may do anything with machines: name yours, deploy.cloud.head_role."
        )
    if cloud.role is None:
        said.append("Without deploy.cloud.role, workers have no access to an object store that is not public.")
    return said


def _login(image: str) -> list[str]:
    """By which a machine gets an image of its cloud's own registry."""
    registry = image.partition("/")[0]
    if registry.endswith("-docker.pkg.dev"):
        return [f"gcloud auth configure-docker {quoted([registry])} --quiet"]
    if ".dkr.ecr." in registry:
        region = registry.partition(".dkr.ecr.")[2].partition(".")[0]
        password = f"aws ecr get-login-password --region {quoted([region])}"
        return [f"{password} | docker login --username AWS --password-stdin {quoted([registry])}"]
    return []


def _provider(cloud: CloudConfig) -> Node:
    region = _region(cloud)
    zone = cloud.zone or (f"{region}a" if cloud.provider == "aws" else f"{region}-a")
    project = {"project_id": cloud.project or "<PROJECT>"} if cloud.provider == "gcp" else {}
    return {
        "type": cloud.provider,
        "region": region,
        "availability_zone": zone,
        **project,
        "use_internal_ips": cloud.private,
        "cache_stopped_nodes": False,  # a stopped machine costs its disk
    }


def _region(cloud: CloudConfig) -> str:
    return cloud.region or _REGIONS[cloud.provider]


def _node_type(order: Order, name: str, machines: MachinesConfig) -> Node:
    cloud = order.deploy.cloud
    drives = name == next(iter(order.groups))
    describe = _aws if cloud.provider == "aws" else _gcp
    node = describe(cloud, machine_type(cloud, name, machines), machines, head=name == "head")
    # Not the machine that runs the command: that one's end is the end of the job.
    if cloud.spot and name == "gpu" and not drives:
        node |= _SPOT[cloud.provider]
    if name == "head":
        return {"resources": {"CPU": 0}, "node_config": node}
    amounts = {
        "CPU": machines.cpus,
        **({"GPU": machines.gpus} if machines.gpus else {}),
        **({DRIVER: 1} if drives else {}),
    }
    return {"min_workers": machines.count, "max_workers": machines.limit, "resources": amounts, "node_config": node}


_STAYS_PUT: Node = {"onHostMaintenance": "TERMINATE", "automaticRestart": False}  # a machine with GPUs cannot be moved
_SPOT: dict[str, Node] = {
    "aws": {"InstanceMarketOptions": {"MarketType": "spot"}},
    "gcp": {"scheduling": {**_STAYS_PUT, "provisioningModel": "SPOT", "instanceTerminationAction": "DELETE"}},
}


def _aws(cloud: CloudConfig, type_: str, machines: MachinesConfig, *, head: bool) -> Node:
    disk = {
        "VolumeSize": machines.disk_gib + _SYSTEM_GIB,
        "VolumeType": "gp3",
        "Encrypted": True,
        "DeleteOnTermination": True,
    }
    role = cloud.head_role if head else cloud.role
    return {
        "InstanceType": type_,
        "ImageId": cloud.machine_image or AMI,
        "BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": disk}],
        "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 2},  # 2: from within a container
        **({"IamInstanceProfile": {"Arn" if role.startswith("arn:") else "Name": role}} if role else {}),
        **({"SecurityGroupIds": list(cloud.security_groups)} if cloud.security_groups else {}),
        **({"SubnetIds": [cloud.subnet]} if cloud.subnet else {}),
    }


def _gcp(cloud: CloudConfig, type_: str, machines: MachinesConfig, *, head: bool) -> Node:
    disk = {"diskSizeGb": machines.disk_gib + _SYSTEM_GIB, "sourceImage": cloud.machine_image or SOURCE_IMAGE}
    role = cloud.head_role if head else cloud.role
    outside = {} if cloud.private else {"accessConfigs": [{"name": "External NAT", "type": "ONE_TO_ONE_NAT"}]}
    return {
        "machineType": type_,
        "disks": [{"boot": True, "autoDelete": True, "type": "PERSISTENT", "initializeParams": disk}],
        **({"scheduling": _STAYS_PUT} if machines.gpus else {}),
        **({"serviceAccounts": [{"email": role, "scopes": _SCOPES}]} if role else {}),
        **({"networkInterfaces": [{"subnetwork": cloud.subnet, **outside}]} if cloud.subnet else {}),
    }
