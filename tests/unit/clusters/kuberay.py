"""What these manifests use of KubeRay's API (ray.io/v1), as JSON Schema in which no other field is allowed.

Not a test. Pod templates are checked apart, as the pods of Kubernetes that they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jsonschema import Draft202012Validator

TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 0}
FLAG = {"type": "boolean"}


def record(needed: Mapping[str, Any], allowed: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Schema of a mapping with exactly these fields, the first of which have to be there."""
    return {
        "type": "object",
        "properties": {**needed, **(allowed or {})},
        "required": list(needed),
        "additionalProperties": False,
    }


METADATA = record({"name": TEXT, "namespace": TEXT, "labels": {"type": "object", "additionalProperties": TEXT}})
TEMPLATE = record({"spec": {"type": "object"}, "metadata": record({"labels": {"type": "object"}})})
# Options of `ray start`, which are text in YAML.
START = {"type": "object", "additionalProperties": {"type": "string"}}
CLUSTER = record(
    {
        "rayVersion": TEXT,
        "authOptions": record({"mode": {"const": "token"}}),
        "headGroupSpec": record({"rayStartParams": START, "template": TEMPLATE}),
        "workerGroupSpecs": {
            "type": "array",
            "minItems": 1,
            "items": record(
                {
                    "groupName": TEXT,
                    "replicas": COUNT,
                    "minReplicas": COUNT,
                    "maxReplicas": COUNT,
                    "rayStartParams": START,
                    "template": TEMPLATE,
                }
            ),
        },
    }
)
JOB = record(
    {
        "entrypoint": TEXT,
        "submissionMode": {"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        "submitterPodTemplate": TEMPLATE,
        "backoffLimit": COUNT,
        "shutdownAfterJobFinishes": FLAG,
        "ttlSecondsAfterFinished": COUNT,
        "rayClusterSpec": CLUSTER,
    },
    {"suspend": FLAG, "activeDeadlineSeconds": COUNT},
)
SERVICE = record({"serveConfigV2": TEXT, "rayClusterConfig": CLUSTER}, {"excludeHeadPodFromServeSvc": FLAG})
CRON_JOB = record({"schedule": TEXT, "jobTemplate": JOB}, {"timeZone": TEXT})
SPECS = {"RayCluster": CLUSTER, "RayJob": JOB, "RayService": SERVICE, "RayCronJob": CRON_JOB}


def faults(document: Mapping[str, Any]) -> list[str]:
    """What is wrong with a document of KubeRay's, one line each."""
    kind = document["kind"]
    schema = record(
        {"apiVersion": {"const": "ray.io/v1"}, "kind": {"const": kind}, "metadata": METADATA, "spec": SPECS[kind]}
    )
    errors = Draft202012Validator(schema).iter_errors(document)
    return [f"{'/'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]
