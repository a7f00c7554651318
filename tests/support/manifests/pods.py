"""Rules for pods: who their processes are, what they may take, what they are told to find."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from manifests.model import EXTERNAL, GIB, Pods, Tree, amount, clusters, get, project, trees

_REFERENCES = {  # a key of a pod's tree: the kind, and the key of the name in it
    "secret": ("secret", "secretName"),
    "configMap": ("configmap", "name"),
    "secretRef": ("secret", "name"),
    "secretKeyRef": ("secret", "name"),
    "configMapRef": ("configmap", "name"),
    "configMapKeyRef": ("configmap", "name"),
    "persistentVolumeClaim": ("claim", "claimName"),
}
_KINDS = {
    "Secret": "secret",
    "ConfigMap": "configmap",
    "PersistentVolumeClaim": "claim",
    "ServiceAccount": "serviceaccount",
}


def pod_problems(pods: Pods, documents: Sequence[Tree]) -> Iterator[str]:
    """Who the processes are, what they may take, and which image they are of."""
    at, spec = f"{pods.at}.spec", pods.spec
    if get(spec, "securityContext.runAsNonRoot") is not True:
        yield f"{at}.securityContext.runAsNonRoot must be true."
    if get(spec, "securityContext.runAsUser") == 0:
        yield f"{at}.securityContext.runAsUser is root."
    if get(spec, "securityContext.seccompProfile.type") != "RuntimeDefault":
        yield f"{at}.securityContext.seccompProfile.type must be RuntimeDefault."
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield f"{at}.{field} must not be set."
    if spec.get("automountServiceAccountToken") is not False and not _account_is_closed(spec, documents):
        yield f"{at}.automountServiceAccountToken must be false: nothing in the pod needs Kubernetes."
    for container in [*spec.get("initContainers", []), *spec.get("containers", [])]:
        yield from container_problems(f"{at}.containers[{container.get('name')}]", container)
        yield from disk_problems(f"{at}.containers[{container.get('name')}]", container, spec)
    yield from environment_problems(f"{at}.containers[{pods.main.get('name')}]", pods)
    yield from volume_problems(at, pods)
    if "nvidia.com/gpu" in get(pods.main, "resources.limits", {}):
        yield from gpu_problems(at, pods)


def _account_is_closed(spec: Tree, documents: Sequence[Tree]) -> bool:
    accounts = [each for each in documents if each["kind"] == "ServiceAccount"]
    named = [each for each in accounts if get(each, "metadata.name") == spec.get("serviceAccountName")]
    return "automountServiceAccountToken" not in spec and any(
        each.get("automountServiceAccountToken") is False for each in named
    )


def container_problems(at: str, container: Tree) -> Iterator[str]:
    """Also of autoscalerOptions, which are the container of the autoscaler."""
    context = container.get("securityContext", {})
    if context.get("allowPrivilegeEscalation") is not False:
        yield f"{at}.securityContext.allowPrivilegeEscalation must be false."
    if get(context, "capabilities.drop") != ["ALL"] or get(context, "capabilities.add"):
        yield f"{at}.securityContext.capabilities.drop must be [ALL], and none added."
    if context.get("privileged") or context.get("runAsUser") == 0:
        yield f"{at}.securityContext makes the container root or privileged."
    if context.get("readOnlyRootFilesystem") is not True:
        yield f"{at}.securityContext.readOnlyRootFilesystem must be true; mount what is written."
    requests, limits = (get(container, f"resources.{key}", {}) for key in ("requests", "limits"))
    if {key: amount(value) for key, value in requests.items()} != {key: amount(value) for key, value in limits.items()}:
        yield f"{at}.resources: requests {requests} must be limits {limits}."
    if not {"cpu", "memory"} <= set(limits):
        yield f"{at}.resources.limits must have cpu and memory."
    if "image" in container:
        yield from image_problems(at, str(container["image"]))


def disk_problems(at: str, container: Tree, spec: Tree, holds: bool = True) -> Iterator[str]:
    """Folders on the machine's disk are asked for, or pods are put where there is no room for them.

    Unless a container `holds` what is in its folders, another one of its pod asks for their size.
    """
    volumes = {each.get("name"): each.get("emptyDir") for each in spec.get("volumes", [])}
    mounted = {each.get("name") for each in container.get("volumeMounts", [])}
    folders = {
        name: folder
        for name in mounted
        if (folder := volumes.get(name)) is not None and folder.get("medium") != "Memory"
    }
    asked = get(container, "resources.limits.ephemeral-storage")
    if folders and asked is None:
        yield f"{at}.resources.limits lacks ephemeral-storage, for {', '.join(sorted(folders))} on the machine's disk."
    for name in sorted(name for name, folder in folders.items() if "sizeLimit" not in folder):
        yield f"{at}: the emptyDir {name} has no sizeLimit, and may fill the disk of its machine."
    needed = sum(amount(folder.get("sizeLimit", 0)) for folder in folders.values())
    if holds and asked is not None and amount(asked) < needed:
        yield f"{at}.resources.limits: ephemeral-storage {asked} is less than its emptyDirs' {needed / GIB:.0f} GiB."


def environment_problems(at: str, pods: Pods) -> Iterator[str]:
    """What processes have to be told where the root is read-only, and what Ray has to be told to look at its disk."""
    variables = {each.get("name"): each.get("value") for each in pods.main.get("env", [])}
    mounts = {each.get("mountPath") for each in pods.main.get("volumeMounts", [])}
    if variables.get("HOME") not in mounts:
        yield f"{at}.env: HOME is {variables.get('HOME')}, where nothing can be written; must be a folder of a volume."
    name = "RAY_DASHBOARD_ENABLE_K8S_DISK_USAGE"
    if pods.role != "submitter" and variables.get(name) != "1":
        yield f"{at}.env: {name} must be '1'; Ray tells of an empty disk in pods otherwise."


def image_problems(at: str, image: str) -> Iterator[str]:
    repository, _, tag = image.partition("@")[0].rpartition(":")
    if not repository or "/" in tag or tag == "latest":
        yield f"{at}.image is {image}; must have a tag, and not latest."
    elif repository.rpartition("/")[2] == "shoal" and tag not in {f"{project()[0]}-{each}" for each in ("cpu", "cuda")}:
        yield f"{at}.image has the tag {tag}; this is shoal {project()[0]}: {project()[0]}-cpu or {project()[0]}-cuda."


def volume_problems(at: str, pods: Pods) -> Iterator[str]:
    volumes = {each.get("name"): each for each in pods.spec.get("volumes", [])}
    for name, volume in volumes.items():
        if "hostPath" in volume:
            yield f"{at}.volumes[{name}].hostPath gives the pod a piece of its machine."
    for container in pods.spec.get("containers", []):
        for mount in container.get("volumeMounts", []):
            if mount.get("name") not in volumes:
                name = container.get("name")
                yield f"{at}.containers[{name}].volumeMounts names {mount.get('name')}, which is no volume of the pod."
    if pods.role == "submitter":
        return
    mounts = {each.get("mountPath"): each.get("name") for each in pods.main.get("volumeMounts", [])}
    shm = get(volumes.get(mounts.get("/dev/shm"), {}), "emptyDir", {})
    memory = amount(get(pods.main, "resources.limits.memory", 0))
    store = get(pods.group, "rayStartParams.object-store-memory")
    least = 0.3 * memory if store is None else float(store)  # Ray takes 30 % of a container for its object store
    if shm.get("medium") != "Memory" or not least <= amount(shm.get("sizeLimit", 0)) <= memory:
        yield (
            f"{at}: /dev/shm must be an emptyDir of medium Memory, whose sizeLimit ({shm.get('sizeLimit')}) is between "
            f"the object store's {least / GIB:.1f} GiB and the container's memory, {memory / GIB:.1f} GiB."
        )


def gpu_problems(at: str, pods: Pods) -> Iterator[str]:
    if not any(each.get("key") == "nvidia.com/gpu" for each in pods.spec.get("tolerations", [])):
        yield f"{at}.tolerations lacks nvidia.com/gpu, with which machines with GPUs are tainted."
    image = str(pods.main.get("image"))
    if re.search(r"(^|/)shoal:[^/]*-cpu", image):
        yield f"{at}.containers: {image} has no CUDA, but nvidia.com/gpu is asked for."


def reference_problems(pods: Pods, documents: Sequence[Tree], external: Sequence[str]) -> Iterator[str]:
    """Names of what is neither in the documents nor declared external."""
    annotation = get(pods.document, "metadata.annotations", {}).get(EXTERNAL, "")
    space = get(pods.document, "metadata.namespace")
    there = {*external, *(each.strip() for each in annotation.split(",")), "configmap/kube-root-ca.crt"}
    for each in documents:
        if each["kind"] in _KINDS and get(each, "metadata.namespace") == space:
            there.add(f"{_KINDS[each['kind']]}/{get(each, 'metadata.name')}")
    for path, wanted in _references(pods):
        if wanted not in there:
            yield f"{pods.at}.{path} names {wanted}, which is neither here nor declared by {EXTERNAL}."


def _references(pods: Pods) -> Iterator[tuple[str, str]]:
    if "serviceAccountName" in pods.spec:
        yield "spec.serviceAccountName", f"serviceaccount/{pods.spec['serviceAccountName']}"
    for each in pods.spec.get("imagePullSecrets", []):
        yield "spec.imagePullSecrets", f"secret/{each['name']}"
    for cluster in clusters([pods.document]) if pods.role == "head" else ():
        if get(cluster.spec, "authOptions.secretName"):
            yield "authOptions.secretName", f"secret/{get(cluster.spec, 'authOptions.secretName')}"
    for path, tree in trees(pods.template):
        for key, (kind, name) in _REFERENCES.items():
            names = {get(tree, f"{key}.{each}") for each in (name, "name")} - {None}
            yield from ((f"{path}.{key}", f"{kind}/{each}") for each in names)
