"""What is wrong with Kubernetes manifests, in sentences that name the object and the field.

`problems(documents)` judges whatever shoal gives to a cluster: infra/kuberay as kustomize builds it, and what `shoal
render kubernetes` writes. The rules are those of KubeRay 1.7 (its schema, what its operator refuses, and what it
silently does otherwise) and the project's own: nothing secret, nothing exposed, nobody is root, what dies is continued.
"""

from __future__ import annotations

from collections.abc import Sequence

from manifests.model import Tree, clusters, pods_of
from manifests.pods import pod_problems, reference_problems
from manifests.ray import cluster_problems, eviction_problems, job_problems
from manifests.text import NO_SCHEMAS, SCHEMAS, exposure_problems, schema_problems, secret_problems
from manifests.traffic import Party, traffic_problems

__all__ = ["NO_SCHEMAS", "SCHEMAS", "problems"]


def problems(documents: Sequence[Tree], external: Sequence[str] = ()) -> list[str]:
    """What is wrong, one sentence each; nothing is left out because something else is wrong.

    `external` names what exists in the cluster already (`secret/NAME`, `claim/NAME`, `configmap/NAME`,
    `serviceaccount/NAME`), as the annotation shoal.dev/external of a RayJob or RayCluster does. Where KubeRay's
    schemas are absent there is a warning, and the other rules hold.
    """
    found: list[str] = []
    for document in documents:
        found += [*schema_problems(document), *exposure_problems(document), *secret_problems(document)]
    for cluster in clusters(documents):
        found += cluster_problems(cluster)
    for document in documents:
        if document["kind"] == "RayJob":
            found += job_problems(document, documents)
    for pods in pods_of(documents):
        found += [*pod_problems(pods, documents), *reference_problems(pods, documents, external)]
        found += eviction_problems(pods, documents)
    parties = [Party(each.at, each.role, each.document, each.labels) for each in pods_of(documents)]
    return [*found, *traffic_problems(documents, parties)]
