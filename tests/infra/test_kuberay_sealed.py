"""The pods of `overlays/kind/job`, under the restrictions that their manifests ask for, without Kubernetes.

Linux namespaces stand in for pods: a root that is read-only but for /tmp and /dev/shm, uid 1000 of group 0, no
capability, no new privileges, no network but loopback, token authentication. What runs is what KubeRay 1.7 makes of the
manifest (`generateRayStartCommand` in pod.go, `BuildJobSubmitCommand` in job.go). Head and worker share one network
here, so the worker has ports of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TOKEN = "0123456789abcdef0123456789abcdef"  # noqa: S105
PORTS = {
    "dashboard-agent-listen-port": "52366",
    "metrics-export-port": "8081",
    "min-worker-port": "20002",
    "max-worker-port": "29999",
}
QUICK = " --set cluster.reduce.kind=pca --set baseline=false"  # UMAP compiles for a minute
NEEDED = "unshare (util-linux) as root, with the right to mount: docker run --privileged, or a machine"

SEAL = """
set -eu
mount -t tmpfs tmpfs /mnt
count=0
for folder in "$@"; do
    count=$((count + 1))
    mkdir "/mnt/$count"
    mount --bind "$folder" "/mnt/$count"
done
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t tmpfs -o mode=0755 tmpfs /root
count=0
for folder in "$@"; do
    count=$((count + 1))
    mkdir -p "$folder"
    mount --bind "/mnt/$count" "$folder"
    mount -o remount,ro,bind "$folder"
done
mkdir -m 1777 /tmp/data
mount -t tmpfs -o mode=1777,size=1g tmpfs /dev/shm
ip link set lo up
mount -o remount,ro,bind /
mount -o remount,ro /root
cd /
exec setpriv --reuid 1000 --regid 0 --clear-groups --no-new-privs --inh-caps=-all --bounding-set=-all --pdeathsig KILL \
    env --ignore-environment "PATH=$BIN:/usr/bin:/bin" XDG_CACHE_HOME=/tmp/cache \
    MPLCONFIGDIR=/tmp/cache NUMBA_CACHE_DIR=/tmp/cache PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1 $VARIABLES \
    RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token "RAY_AUTH_TOKEN=$TOKEN" timeout 500 bash -c "$RUN"
"""

RUN = """
touch /usr/x 2>/dev/null && echo "the root can be written"
look() { python -c 'import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).status)' "$1" 2>&1; }
wait_for() { for _ in $(seq 90); do "$@" >/dev/null 2>&1 && return; sleep 1; done; tail -n 20 /tmp/*.log; exit 1; }
A=http://127.0.0.1:8265
(%(head)s) >/tmp/head.log 2>&1 &
wait_for ray health-check --address 127.0.0.1:6379
(%(worker)s) >/tmp/worker.log 2>&1 &
export -n RAY_AUTH_TOKEN
wait_for look $A/api/gcs_healthz
wait_for look http://127.0.0.1:52366/api/healthz
echo "probes answer without a token"
look $A/api/jobs/ | tail -n 1
export RAY_AUTH_TOKEN
ray job submit --address $A --no-wait --submission-id sealed --entrypoint-resources %(resources)s -- %(entrypoint)s
ray job logs --address $A --follow sealed >/tmp/job.log 2>&1
ray job status --address $A sealed 2>&1 | grep succeeded || tail -n 30 /tmp/job.log
ls /tmp/data/demo
"""


def start(group: dict[str, Any], **more: str) -> str:
    """The command of a pod, as `generateRayStartCommand` and `convertParamMap` make it."""
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    resources = dict(group.get("resources", {}))
    params = {"num-cpus": resources.pop("CPU", limits["cpu"]), **group["rayStartParams"], **more}
    if resources:
        params["resources"] = f"'{json.dumps({key: float(value) for key, value in resources.items()})}'"
    flags = " ".join(f"--{key}={params[key]}" for key in sorted(params))
    return f"ulimit -n 65536; ray start --block --node-ip-address=127.0.0.1 --object-store-memory=100000000 {flags}"


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or shutil.which("unshare") is None,
    reason=f"NOT SEALED: needs {NEEDED}",
)
def test_the_demo_runs_as_its_pods_would(build: Callable[[str], list[dict[str, Any]]]) -> None:
    unshare = [
        "unshare",
        "--mount",
        "--net",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "--propagation",
        "private",
    ]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip(f"NOT SEALED: needs {NEEDED}")
    (spec,) = [each["spec"] for each in build("kind/job") if each["kind"] == "RayJob"]
    cluster = spec["rayClusterSpec"]
    head = {**cluster["headGroupSpec"], "rayStartParams": {}}  # its object store is given by `start`
    worker = cluster["workerGroupSpecs"][0]
    variables = {each["name"]: each["value"] for each in worker["template"]["spec"]["containers"][0]["env"]}
    assert {"HOME", "SHOAL_LOG"} <= variables.keys()
    run = RUN % {
        "head": start(head, head="true", **{"dashboard-host": "0.0.0.0"}).replace("--head=true", "--head"),  # noqa: S104
        "worker": start(worker, address="127.0.0.1:6379", **PORTS),
        "resources": json.dumps(spec["entrypointResources"]),
        "entrypoint": spec["entrypoint"].replace("/data/", "/tmp/data/") + QUICK,
    }
    folders = sorted({str(ROOT), sys.prefix, sys.base_prefix})
    done = subprocess.run(
        [*unshare, "bash", "-c", SEAL, "seal", *folders],
        env={
            **os.environ,
            "RUN": run,
            "BIN": str(Path(sys.executable).parent),
            "TOKEN": TOKEN,
            "VARIABLES": " ".join(f"{name}={value}" for name, value in variables.items()),  # no value has a space
        },
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert "the root can be written" not in done.stdout
    assert "probes answer without a token" in done.stdout, done.stderr
    assert "401" in done.stdout  # and nothing else does
    assert "Job 'sealed' succeeded" in done.stdout, done.stdout
    assert {"report.html", "status.json", "table"} <= set(done.stdout.split())
