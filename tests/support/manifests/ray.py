"""Rules for Ray clusters and jobs: what KubeRay 1.7 refuses or silently does otherwise, and what a run needs."""

from __future__ import annotations

import json
import re
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jobs.config import resolve
from jobs.submit.parse import parse_command
from manifests.model import Cluster, Pods, Tree, amount, get, pods_of, project, title
from manifests.pods import container_problems, disk_problems
from manifests.traffic import Party, matches
from models.errors import ShoalError

DRIVER = "shoal_driver"  # the resource of machines that run the command
ENTRIES = (("python", "-m", "jobs.submit.entry", "--"), ("shoal",))


def cluster_problems(cluster: Cluster) -> Iterator[str]:
    """Versions, authentication, sizes."""
    spec, head = cluster.spec, cluster.spec.get("headGroupSpec", {})
    ray = str(spec.get("rayVersion"))
    _, wanted, pinned = project()
    if ray not in wanted or (pinned and ray not in pinned):
        yield f"{cluster.field('rayVersion')} is {ray}; pyproject takes {wanted}, the images have {sorted(pinned)}."
    if get(spec, "authOptions.mode") != "token":
        yield f"{cluster.field('authOptions.mode')} is {get(spec, 'authOptions.mode')}; must be token."
    if "networkPolicy" in spec:
        yield f"{cluster.field('networkPolicy')} needs an alpha gate of the operator; give a NetworkPolicy object."
    if (
        head.get("serviceType", "ClusterIP") != "ClusterIP"
        or get(head, "headService.spec.type", "ClusterIP") != "ClusterIP"
    ):
        yield f"{cluster.field('headGroupSpec.serviceType')} must be ClusterIP: the dashboard runs anybody's code."
    if head.get("enableIngress"):
        yield f"{cluster.field('headGroupSpec.enableIngress')} is true; the dashboard must not be exposed."
    cpus = get(head, "resources.CPU", get(head, "rayStartParams.num-cpus"))
    if str(cpus) != "0":
        yield f"{cluster.field('headGroupSpec')} gives Ray {cpus} CPUs; resources.CPU or num-cpus must be '0'."
    for at, group in groups(cluster):
        yield from group_problems(at, group)
    yield from autoscaling_problems(cluster)


def groups(cluster: Cluster) -> Iterator[tuple[str, Tree]]:
    yield cluster.field("headGroupSpec"), cluster.spec.get("headGroupSpec", {})
    for group in cluster.spec.get("workerGroupSpecs", []):
        yield cluster.field(f"workerGroupSpecs[{group.get('groupName')}]"), group


def group_problems(at: str, group: Tree) -> Iterator[str]:
    params = group.get("rayStartParams", {})
    if group.get("resources") and {"num-cpus", "num-gpus", "memory", "resources"} & set(params):
        yield f"{at}.rayStartParams gives resources, and {at}.resources does; KubeRay takes one of them."
    if offered(group) is None:
        yield (
            f"{at}.rayStartParams.resources is {params['resources']}, which bash, KubeRay and Ray's autoscaler do not "
            'all read as JSON; write "\'{\\"name\\": 1}\'", or use resources of the group.'
        )
    if "groupName" in group:
        least, now, most = (group.get(key) for key in ("minReplicas", "replicas", "maxReplicas"))
        if least is None or most is None or not least <= (least if now is None else now) <= most:
            yield f"{at}: minReplicas {least} <= replicas {now} <= maxReplicas {most} must hold, all of them given."


def offered(group: Tree) -> dict[str, Any] | None:
    """Ray's custom resources of a group, as bash, the operator and the autoscaler all read them; None: they do not."""
    if group.get("resources"):
        return {key: amount(value) for key, value in group["resources"].items()}
    text = get(group, "rayStartParams.resources", "'{}'")
    try:  # what ray start gets from bash; controllers/ray/common/pod.go; autoscaling_config.py
        shell, operator, autoscaler = shlex.split(text)[0], text.strip("'\"` "), text[1:-1].replace("\\", "")
        read: list[dict[str, Any]] = [json.loads(each) for each in (shell, operator, autoscaler)]
    except (ValueError, IndexError):
        return None
    return read[0] if read[0] == read[1] == read[2] else None


def autoscaling_problems(cluster: Cluster) -> Iterator[str]:
    spec = cluster.spec
    groups = spec.get("workerGroupSpecs", [])
    grows = [each["groupName"] for each in groups if each.get("maxReplicas", 0) > each.get("minReplicas", 0)]
    at = cluster.field("enableInTreeAutoscaling")
    if not spec.get("enableInTreeAutoscaling"):
        if grows:
            yield f"{at} is off, but maxReplicas > minReplicas in {', '.join(grows)}."
        return
    marks = {**get(cluster.document, "metadata.labels", {}), **get(cluster.document, "metadata.annotations", {})}
    if "kueue.x-k8s.io/queue-name" in marks and "kueue.x-k8s.io/elastic-job" not in marks:
        yield f"{at} is on, which Kueue does not admit; fix the replicas."
    options = spec.get("autoscalerOptions", {})
    at = cluster.field("autoscalerOptions")
    yield from container_problems(at, options)
    pod = get(spec, "headGroupSpec.template.spec", {})
    yield from disk_problems(at, options, pod, holds=False)
    tokens = {each["name"] for each in pod.get("volumes", []) if "serviceAccountToken" in json.dumps(each)}
    mounted = {each["name"]: each["mountPath"] for each in options.get("volumeMounts", [])}
    if pod.get("automountServiceAccountToken") is not True and not tokens & set(mounted):
        yield f"{at}.volumeMounts has no serviceAccountToken, without which the autoscaler cannot reach Kubernetes."


def eviction_problems(pods: Pods, documents: Sequence[Tree]) -> Iterator[str]:
    """A drain of a machine must not take the head along, or the pod that runs the command.

    A budget has to give minAvailable: for maxUnavailable Kubernetes asks a pod's owner how many there are, which a
    RayCluster cannot say. A pod of two budgets cannot be evicted by anybody, and says so as an error.
    """
    if pods.role != "head" and DRIVER not in (offered(pods.group) or {}):
        return
    budgets = [each for each in documents if each["kind"] == "PodDisruptionBudget" and _is_of(each, pods)]
    if len(budgets) != 1:
        yield f"{pods.at}: {len(budgets)} PodDisruptionBudgets select these pods; one must, or a drain ends the run."
    for budget in budgets:
        alike = [each for each in pods_of([pods.document]) if _is_of(budget, each)]
        most = sum(1 if each.role == "head" else each.group.get("maxReplicas", 1) for each in alike)
        least = get(budget, "spec.minAvailable")
        if not isinstance(least, int) or least < most:
            yield (
                f"{title(budget)}: spec.minAvailable is {least}, and there may be {most} of these pods: "
                f"one could be evicted of {pods.at}."
            )


def _is_of(budget: Tree, pods: Pods) -> bool:
    party = Party(pods.at, pods.role, pods.document, pods.labels).end
    same = get(budget, "metadata.namespace") == get(pods.document, "metadata.namespace")
    return same and matches(get(budget, "spec.selector", {}), party.labels)


def job_problems(job: Tree, documents: Sequence[Tree]) -> Iterator[str]:
    """What a RayJob runs, and what becomes of it."""
    name, spec, at = str(get(job, "metadata.name")), job["spec"], title(job)
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?", name):
        yield f"{at}: metadata.name must be a DNS label that begins with a letter, of at most 47 characters."
    if spec.get("submissionMode", "K8sJobMode") != "K8sJobMode":
        yield f"{at}: spec.submissionMode is {spec['submissionMode']}; must be K8sJobMode, whose logs outlive the head."
    if not spec.get("backoffLimit"):
        yield f"{at}: spec.backoffLimit is {spec.get('backoffLimit')}; without one a lost head ends the run."
    if not spec.get("shutdownAfterJobFinishes"):
        yield f"{at}: spec.shutdownAfterJobFinishes must be true: an idle cluster costs as much as a busy one."
    if "ttlSecondsAfterFinished" not in spec:
        yield f"{at}: spec.ttlSecondsAfterFinished is missing."
    if "submitterPodTemplate" not in spec:
        yield f"{at}: spec.submitterPodTemplate is missing; KubeRay's own has no security context."
    elif get(spec, "submitterPodTemplate.spec.restartPolicy") not in {"Never", "OnFailure"}:
        yield f"{at}: spec.submitterPodTemplate.spec.restartPolicy must be Never."
    yield from driver_problems(job)
    yield from entrypoint_problems(job, documents)


def driver_problems(job: Tree) -> Iterator[str]:
    """The command runs where fits have CPUs and memory, never on the head."""
    text, at = get(job, "spec.entrypointResources", ""), f"{title(job)}: spec.entrypointResources"
    try:
        wanted = json.loads(text)
    except ValueError:
        yield f"{at} is {text!r}; must be JSON that names {DRIVER}, or the command runs on the head."
        return
    if DRIVER not in wanted:
        yield f"{at} does not name {DRIVER}: the command would run on the head."
    workers = get(job, "spec.rayClusterSpec.workerGroupSpecs", [])
    for name, value in wanted.items():
        if not any((offered(each) or {}).get(name, 0) >= value for each in workers):
            yield f"{at} asks for {name}, which no worker group offers; the command would wait for ever."


def entrypoint_problems(job: Tree, documents: Sequence[Tree]) -> Iterator[str]:
    """The entrypoint as Kubernetes, bash and `shoal` read it."""
    at, line = f"{title(job)}: spec.entrypoint", str(get(job, "spec.entrypoint", ""))
    bare = re.sub(r"'[^']*'|\"[^\"$`\\]*\"", "", line)
    if re.search(r"[;&|<>()`$\n*?]", bare.strip()):
        yield f"{at} holds what a shell would act on: {line!r}; quote it."
        return
    if re.search(r"(?<!\$)(\$\$)*\$(?!\$)", line):
        yield f"{at} holds a single $, which Kubernetes may replace; double it."
    words = tuple(shlex.split(line.replace("$$", "$")))
    start = next((each for each in ENTRIES if words[: len(each)] == each), None)
    if start is None:
        yield f"{at} begins with {words[:1]}; must begin with `shoal` or `{shlex.join(ENTRIES[0])}`."
        return
    refusal = _refusal(words[len(start) :], tuple(_mounted(job, documents)))
    if refusal:
        yield f"{at}: {refusal}"


def _mounted(job: Tree, documents: Sequence[Tree]) -> Iterator[tuple[str, str]]:
    """Files of ConfigMaps, as machines that run the command have them: path and text."""
    texts = {get(each, "metadata.name"): each.get("data", {}) for each in documents if each["kind"] == "ConfigMap"}
    for group in get(job, "spec.rayClusterSpec.workerGroupSpecs", []):
        pod = get(group, "template.spec", {})
        names = {each["name"]: get(each, "configMap.name") for each in pod.get("volumes", [])}
        mounts = pod["containers"][0].get("volumeMounts", []) if DRIVER in (offered(group) or {}) else []
        for mount in mounts:
            for name, text in texts.get(names.get(mount["name"]), {}).items():
                yield f"{mount['mountPath']}/{name}", text


@cache
def _refusal(words: tuple[str, ...], files: tuple[tuple[str, str], ...]) -> str:
    """What `shoal` says to the command, its settings perhaps among the files; empty if it takes them."""
    try:
        parsed = parse_command(words)
        with tempfile.TemporaryDirectory() as folder:
            config = parsed.config
            if str(config) in dict(files):
                config = Path(folder, "config.yaml")
                config.write_text(dict(files)[str(parsed.config)])
            resolve(config, parsed.sets)
    except (ShoalError, OSError) as error:
        return str(error)
    return ""
