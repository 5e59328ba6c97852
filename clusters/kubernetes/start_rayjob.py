"""Start a RayJob from the suspended one that is its template, and wait for its end: what the CronJob's pod runs.

The RayJob is named after the pod's Job, whose name Kubernetes made of the slot: a pod that is started again finds the
RayJob of its slot and waits on. It does not have that very name: KubeRay submits a RayJob by a Job of that name, and
would take the pod's own Job for that one. It belongs to the pod's Job and is removed together with it. Exit code 0
when it succeeded, 3 when it failed; anything else means that Kubernetes could not be asked, which may be tried again.

Needs the rights to get and to create RayJobs in its own namespace, and nothing but Python.
"""

from __future__ import annotations

import argparse
import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where Kubernetes mounts a pod's token, which it renews, the authority of its own server, and the namespace."""

REQUEST_S = 30.0
POLL_S = 20.0
RAYJOB_FAILED = 3
SUFFIX = "-run"


class Kubernetes:
    """The RayJobs of one namespace, over Kubernetes' API.

    Raises:
        urllib.error.HTTPError, OSError: when the server refuses, or cannot be reached.
    """

    def __init__(self, server: str, account: Path) -> None:
        self._account = account
        namespace = (account / "namespace").read_text().strip()
        self._rayjobs = f"{server}/apis/ray.io/v1/namespaces/{namespace}/rayjobs"
        self._tls = ssl.create_default_context(cafile=str(account / "ca.crt")) if server.startswith("https:") else None

    def get(self, name: str) -> dict[str, Any]:
        return self._ask("GET", f"{self._rayjobs}/{name}")

    def create(self, rayjob: Mapping[str, Any]) -> bool:
        """False when one of that name is there already."""
        try:
            self._ask("POST", self._rayjobs, json.dumps(rayjob).encode())
        except urllib.error.HTTPError as error:
            if error.code != 409:
                raise
            return False
        return True

    def _ask(self, method: str, url: str, body: bytes | None = None) -> dict[str, Any]:
        token = (self._account / "token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        request = urllib.request.Request(url, data=body, headers=headers, method=method)
        with urllib.request.urlopen(request, timeout=REQUEST_S, context=self._tls) as answer:
            found: dict[str, Any] = json.load(answer)
            return found


def rayjob_from(template: Mapping[str, Any], job: str, job_uid: str) -> dict[str, Any]:
    """The RayJob to create for a Job: the template's specification, not suspended, owned by the Job."""
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": job, "uid": job_uid}
    labels = template["metadata"].get("labels", {})
    return {
        "apiVersion": template["apiVersion"],
        "kind": template["kind"],
        "metadata": {"name": job + SUFFIX, "labels": labels, "ownerReferences": [owner]},
        "spec": {**template["spec"], "suspend": False},
    }


def outcome(rayjob: Mapping[str, Any]) -> bool | None:
    """Whether a RayJob succeeded; None while it runs or is about to be tried again."""
    status = rayjob.get("status", {})
    if status.get("jobDeploymentStatus") not in ("Complete", "Failed"):
        return None
    return status["jobDeploymentStatus"] == "Complete" and status.get("jobStatus") == "SUCCEEDED"


def run(kubernetes: Kubernetes, template: str, job: str, job_uid: str, poll_s: float) -> int:
    """Start the RayJob of a Job unless it is there, wait for its end, and say how it ended."""
    rayjob = rayjob_from(kubernetes.get(template), job, job_uid)
    name, made = rayjob["metadata"]["name"], kubernetes.create(rayjob)
    print(f"RayJob {name}: {'started' if made else 'is there already'}", flush=True)
    while (succeeded := outcome(rayjob := kubernetes.get(name))) is None:
        time.sleep(poll_s)
    status = rayjob["status"]
    ended = f"{status['jobDeploymentStatus']}, {status.get('jobStatus')} {status.get('message', '')}"
    print(f"RayJob {name}: {ended.rstrip()}", flush=True)
    return 0 if succeeded else RAYJOB_FAILED


def main() -> int:
    parser = argparse.ArgumentParser(description="Start a RayJob from a suspended one, and wait for its end.")
    parser.add_argument("--template", required=True, help="name of the suspended RayJob")
    template = parser.parse_args().template
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    host = f"[{host}]" if ":" in host else host
    kubernetes = Kubernetes(f"https://{host}:{port}", ACCOUNT)
    return run(kubernetes, template, os.environ["JOB_NAME"], os.environ["JOB_UID"], POLL_S)


if __name__ == "__main__":
    sys.exit(main())
