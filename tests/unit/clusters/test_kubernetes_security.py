from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from manifests import CLUSTER_OF, VARIANTS, Document, PodTemplate, at, base, optional, pods, variant

ENTITLED = {"scheduler"}
"""Roles of pods that talk to Kubernetes itself."""


@pytest.fixture(params=[*VARIANTS, "without kustomize"])
def found(request: pytest.FixtureRequest) -> list[Document]:
    return base() + optional() if request.param == "without kustomize" else variant(request.param)


def policies(found: list[Document]) -> list[Document]:
    return [document for document in found if document["kind"] == "NetworkPolicy"]


def chosen(selector: Document, labels: dict[str, str]) -> bool:
    """Whether a label selector of Kubernetes chooses a pod with these labels."""
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    for rule in selector.get("matchExpressions", []):
        assert rule["operator"] == "In"
        if labels.get(rule["key"]) not in rule["values"]:
            return False
    return True


def test_no_pod_has_more_rights_than_it_needs(found: list[Document]) -> None:
    seen = list(pods(found))
    assert seen
    for pod in seen:
        security = pod.spec["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] == security["runAsGroup"] == security["fsGroup"] == 10001
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod.container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers", "ephemeralContainers"} & set(pod.spec)
        assert not [volume for volume in pod.spec.get("volumes", []) if "hostPath" in volume]


def test_the_namespace_refuses_pods_with_more(found: list[Document]) -> None:
    (namespace,) = [document for document in found if document["kind"] == "Namespace"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_a_pod_can_write_where_it_has_to(found: list[Document]) -> None:
    for pod in pods(found):
        if pod.labels["ra-dpo/role"] != "scheduler":
            writable = {m["mountPath"] for m in pod.container["volumeMounts"] if not m.get("readOnly")}
            assert {"/tmp", "/home/ra-dpo"} <= writable


def test_only_the_scheduler_holds_a_token_of_kubernetes(found: list[Document]) -> None:
    for pod in pods(found):
        entitled = pod.labels["ra-dpo/role"] in ENTITLED
        assert pod.spec["automountServiceAccountToken"] is entitled
        assert ("serviceAccountName" in pod.spec) is entitled


def test_the_scheduler_may_start_and_see_rayjobs_and_nothing_else(found: list[Document]) -> None:
    roles = [document for document in found if document["kind"] in ("Role", "ClusterRole")]
    assert [role["kind"] for role in roles] == ["Role"]
    assert roles[0]["rules"] == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["get", "create"]}]
    (binding,) = [document for document in found if document["kind"] in ("RoleBinding", "ClusterRoleBinding")]
    assert binding["kind"] == "RoleBinding"
    (subject,) = binding["subjects"]
    (account,) = [document for document in found if document["kind"] == "ServiceAccount"]
    assert (subject["name"], subject["namespace"]) == (account["metadata"]["name"], account["metadata"]["namespace"])
    assert account["automountServiceAccountToken"] is False
    users = {pod.spec.get("serviceAccountName") for pod in pods(found)} - {None}
    assert users == {account["metadata"]["name"]}


def test_resources_are_bounded_and_images_named_by_version(found: list[Document]) -> None:
    for pod in pods(found):
        resources = pod.container["resources"]
        for kind in ("cpu", "memory"):
            assert resources["requests"][kind]
            assert resources["limits"][kind]
        _, _, tag = pod.container["image"].rpartition(":")
        assert tag
        assert tag != "latest"


def test_secrets_come_by_reference(found: list[Document]) -> None:
    assert not [document for document in found if document["kind"] == "Secret"]
    secret = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|WEBHOOK")
    referenced = set()
    for pod in pods(found):
        for variable in pod.container.get("env", []):
            if secret.search(variable["name"]):
                assert set(variable) == {"name", "valueFrom"}
                reference = variable["valueFrom"]["secretKeyRef"]
                assert reference["key"] == variable["name"]
                referenced.add((reference["name"], reference["key"]))
    keys = {"HF_TOKEN", "WANDB_API_KEY", "RA_DPO_AUDIT_KEY", "RA_DPO_GUARD_TOKEN", "RA_DPO_WEBHOOK"}
    assert referenced == {("ra-dpo-keys", key) for key in keys}


def test_every_cluster_asks_for_a_token(found: list[Document]) -> None:
    clusters = [at(document, CLUSTER_OF[d]) for document in found if (d := document["kind"]) in CLUSTER_OF]
    assert len(clusters) >= 5
    for cluster in clusters:
        assert cluster["authOptions"] == {"mode": "token"}


def test_nothing_is_open_that_no_policy_names(found: list[Document]) -> None:
    (everything,) = [policy for policy in policies(found) if policy["metadata"]["name"] == "deny-all"]
    assert everything["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for policy in policies(found):
        for rule in [*policy["spec"].get("ingress", []), *policy["spec"].get("egress", [])]:
            assert rule.get("from") or rule.get("to"), "a rule without peers is open to everybody"
            for peer in rule.get("from", []) + rule.get("to", []):
                assert peer not in ({}, {"namespaceSelector": {}}, {"podSelector": {}})


def test_every_policy_opens_ports_that_the_pods_have(found: list[Document]) -> None:
    made = list(pods(found))
    for policy in policies(found):
        selector = policy["spec"]["podSelector"]
        subjects = [pod for pod in made if chosen(selector, pod.labels)]
        assert subjects or not selector, f"{policy['metadata']['name']} chooses no pod"
        for rule in policy["spec"].get("ingress", []):
            for port in rule.get("ports", []):
                assert [pod for pod in subjects if port["port"] in ports(pod)], port
        for rule in policy["spec"].get("egress", []):
            inside = [p["podSelector"] for p in rule["to"] if set(p) == {"podSelector"}]
            for peer in inside:
                reached = [pod for pod in made if chosen(peer, pod.labels)]
                assert reached
                for port in rule.get("ports", []):
                    assert all(port["port"] in ports(pod) for pod in reached)


def ports(pod: PodTemplate) -> set[int]:
    return {port["containerPort"] for port in pod.container.get("ports", [])}


def opened(found: list[Document], pod: PodTemplate) -> dict[int | None, list[Document]]:
    """Who may reach a pod, by port; None is every port."""
    by_port: dict[int | None, list[Document]] = {}
    for policy in policies(found):
        if chosen(policy["spec"]["podSelector"], pod.labels):
            for rule in policy["spec"].get("ingress", []):
                for port in rule.get("ports", [{"port": None}]):
                    by_port.setdefault(port["port"], []).extend(rule["from"])
    return by_port


def test_the_dashboard_is_reached_by_submitters_and_the_operator_alone(found: list[Document]) -> None:
    for pod in pods(found):
        if pod.labels["ra-dpo/role"] == "head":
            by_port = opened(found, pod)
            submitter, operator = by_port[8265]
            assert submitter == {"podSelector": {"matchLabels": {"ra-dpo/role": "submitter"}}}
            assert operator["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "kuberay-operator"}
            assert 6379 not in by_port, "the other nodes come by the rule between Ray's nodes"
            for peer in by_port[None]:
                assert set(peer) == {"podSelector"}
                assert {
                    other.labels["ra-dpo/role"] for other in pods(found) if chosen(peer["podSelector"], other.labels)
                } == {
                    "head",
                    "worker",
                }


def test_the_guard_is_reached_from_labelled_namespaces(found: list[Document]) -> None:
    (worker,) = [p for p in pods(found) if p.owner == "RayService ra-dpo-guard" and p.labels["ra-dpo/role"] == "worker"]
    clients, operator = opened(found, worker)[8000]
    assert clients == {"namespaceSelector": {"matchLabels": {"ra-dpo/guard": "allowed"}}}
    assert operator["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "kuberay-operator"}
    (service,) = [document for document in found if document["kind"] == "RayService"]
    assert service["spec"]["excludeHeadPodFromServeSvc"] is True


def test_the_way_out_leaves_the_cloud_credentials_of_the_node_alone(found: list[Document]) -> None:
    (out,) = [policy for policy in policies(found) if policy["metadata"]["name"] == "out"]
    (rule,) = out["spec"]["egress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": 443}]
    assert rule["to"][0]["ipBlock"]["except"] == ["169.254.169.254/32"]
