from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import kuberay
import manifests
from manifests import CLUSTER_OF, JOB_OF, VARIANTS, Document, PodTemplate, at, base, named, optional, pods, variant

KUBERNETES = "1.31"
OPERATORS = {"PrometheusRule", "PodMonitor"}
"""Kinds of the Prometheus operator, whose tests are those of the rules."""


def everything() -> list[Document]:
    return base() + optional()


def faults(document: Document) -> list[str]:
    """What is wrong with a document and with the pods that it makes."""
    if document["kind"] in OPERATORS:
        return []
    found = kuberay.faults(document) if document["kind"] in kuberay.SPECS else core_faults(document)
    for pod in pods([document]):
        found += core_faults({"apiVersion": "v1", "kind": "Pod", "metadata": {"labels": pod.labels}, "spec": pod.spec})
    return found


def core_faults(document: Document) -> list[str]:
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{'/'.join(map(str, error.path))}: {error.message}"]
    return []


@pytest.mark.parametrize("name", VARIANTS)
def test_every_document_of_a_variant_is_valid_with_the_example_values(name: str) -> None:
    found = variant(name)
    assert {"RayCluster", "RayJob", "RayService", "CronJob", "Deployment", "NetworkPolicy"} <= {
        d["kind"] for d in found
    }
    assert [fault for document in found for fault in faults(document)] == []


def test_what_is_applied_without_kustomize_is_valid() -> None:
    assert [fault for document in everything() for fault in faults(document)] == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "entrypont"), "python jobs/align.py"),
        (("spec", "rayClusterSpec", "authOptions", "mode"), "disabled"),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "runAsNonRoot"), True),
        (("spec", "submitterPodTemplate", "spec", "containers"), [{"name": "submitter", "imagePolicy": "Always"}]),
    ],
)
def test_a_wrong_field_is_found(path: tuple[str, ...], value: Any) -> None:
    document = copy.deepcopy(named(base(), "RayJob", "ra-dpo-align"))
    assert faults(document) == []
    at(document, path[:-1])[path[-1]] = value
    assert len(faults(document)) == 1


def test_the_variant_without_components_is_the_base() -> None:
    def by_name(found: list[Document]) -> list[Document]:
        return sorted(found, key=lambda document: (document["kind"], document["metadata"]["name"]))

    assert by_name(variant("cpu-s3")) == by_name(base())


@pytest.mark.parametrize("name", VARIANTS)
def test_every_document_belongs_to_a_part_that_can_be_applied_alone(name: str) -> None:
    found = variant(name)
    parts = {document["metadata"]["labels"]["ra-dpo/part"] for document in found}
    assert parts == {"foundation", "align", "sweep", "realign", "cluster", "guard", "watch"}
    for document in found:
        if document["kind"] != "Namespace":
            assert document["metadata"]["namespace"] == "ra-dpo"
    for pod in pods(found):
        needed = (
            {v["persistentVolumeClaim"]["claimName"] for v in pod.spec["volumes"] if "persistentVolumeClaim" in v}
            if "volumes" in pod.spec
            else set()
        )
        there = {d["metadata"]["name"] for d in found if d["kind"] == "PersistentVolumeClaim"}
        assert needed <= there


def mounts(pod: PodTemplate) -> dict[str, str]:
    """Name of a volume by the directory at which a pod mounts it."""
    return {mount["mountPath"]: mount["name"] for mount in pod.container.get("volumeMounts", [])}


@pytest.mark.parametrize("name", VARIANTS)
def test_pods_see_the_storage(name: str) -> None:
    for pod in pods(variant(name)):
        if pod.labels["ra-dpo/role"] in ("head", "worker", "watch"):
            assert pod.container["envFrom"] == [{"secretRef": {"name": "ra-dpo-s3", "optional": True}}]
            claims = {v["name"]: v.get("persistentVolumeClaim") for v in pod.spec["volumes"]}
            claim = claims.get(mounts(pod).get("/storage", ""))
            assert claim == ({"claimName": "ra-dpo"} if name.endswith("volume") else None)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_volume_is_mounted_and_every_mount_has_its_volume(name: str) -> None:
    for pod in pods(variant(name)):
        assert set(mounts(pod).values()) == {volume["name"] for volume in pod.spec.get("volumes", [])}


def test_clusters_run_the_ray_that_is_pinned() -> None:
    pins = (manifests.ROOT / "constraints.txt").read_text(encoding="utf-8")
    clusters = [at(document, CLUSTER_OF[d]) for document in everything() if (d := document["kind"]) in CLUSTER_OF]
    assert len(clusters) == 6
    for cluster in clusters:
        assert f"\nray=={cluster['rayVersion']}\n" in pins


def test_state_outlives_a_retry_and_a_lost_client() -> None:
    jobs = [at(document, JOB_OF[d]) for document in everything() if (d := document["kind"]) in JOB_OF]
    assert len(jobs) == 4
    for job in jobs:
        assert job["submissionMode"] == "K8sJobMode"
        assert job["backoffLimit"] > 0
        assert job["shutdownAfterJobFinishes"] is True


def test_the_schedule_starts_copies_of_the_suspended_rayjob() -> None:
    cron = named(base(), "CronJob", "ra-dpo-realign")["spec"]
    template = named(base(), "RayJob", "ra-dpo-realign")["spec"]
    assert cron["concurrencyPolicy"] == "Forbid"
    assert template["suspend"] is True
    (container,) = cron["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["python", "clusters/kubernetes/start_rayjob.py", "--template", "ra-dpo-realign"]
    (rule,) = cron["jobTemplate"]["spec"]["podFailurePolicy"]["rules"]
    starter = manifests.script(manifests.KUBERNETES / "start_rayjob.py")
    assert rule["onExitCodes"] == {"containerName": "scheduler", "operator": "In", "values": [starter.RAYJOB_FAILED]}
    names = {variable["name"] for variable in container["env"]}
    assert names == {"JOB_NAME", "JOB_UID"}


def test_the_alternative_schedule_runs_the_same_job() -> None:
    mine = copy.deepcopy(named(base(), "RayJob", "ra-dpo-realign")["spec"])
    assert mine.pop("suspend")
    assert named(optional(), "RayCronJob", "ra-dpo-realign")["spec"]["jobTemplate"] == mine


def test_the_watch_never_runs_twice_at_once() -> None:
    spec = named(base(), "Deployment", "ra-dpo-watch")["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
