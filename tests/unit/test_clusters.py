from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.cli import JobRequest, parse_job
from pipeline.cluster import shortage

ROOT = Path(__file__).resolve().parents[2]
CLUSTERS = ROOT / "clusters"
PINS = (ROOT / "constraints.txt").read_text(encoding="utf-8")


def manifest() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((CLUSTERS / "rayjob.yaml").read_text(encoding="utf-8"))
    return document


def request() -> JobRequest:
    program, script, *arguments = shlex.split(manifest()["spec"]["entrypoint"])
    assert (program, script) == ("python", "jobs/align.py")
    return parse_job(script, "Align a model.", arguments)


def pods() -> list[dict[str, Any]]:
    cluster = manifest()["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


@pytest.mark.parametrize("path", sorted(CLUSTERS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_manifest_is_yaml_of_a_kind(path: Path) -> None:
    for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
        assert {"apiVersion", "kind", "metadata"} <= set(document)


def test_the_rayjob_keeps_the_run_outside_the_cluster() -> None:
    document = manifest()
    assert (document["apiVersion"], document["kind"]) == ("ray.io/v1", "RayJob")
    assert document["spec"]["submissionMode"] == "K8sJobMode"
    assert document["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    storage = request().storage
    assert storage is not None
    for pod in pods():
        (container,) = pod["containers"]
        claims = {volume["name"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume}
        mounts = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] in claims]
        assert [path for path in mounts if Path(storage).is_relative_to(path)], "the storage must be on the volume"


def test_the_rayjob_runs_the_ray_that_is_pinned() -> None:
    assert f"ray=={manifest()['spec']['rayClusterSpec']['rayVersion']}\n" in PINS


def test_the_worker_pods_hold_what_the_recipe_needs() -> None:
    cluster = manifest()["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    nodes: list[dict[str, float]] = [{"CPU": 0.0}]
    for group in cluster["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        nodes += [{"CPU": float(limits["cpu"]), "GPU": float(limits.get("nvidia.com/gpu", 0))}] * group["replicas"]
    config = request().run.cluster
    actor = {"CPU": config.cpus_per_actor, "GPU": config.gpus_per_actor}
    assert shortage(config.num_workers, actor, config, list(nodes)) is None
    assert shortage(config.num_workers, actor, config, list(nodes[:-1])) is not None, "a worker less must not be enough"


def test_every_placeholder_is_in_the_table_of_the_readme() -> None:
    text = (CLUSTERS / "rayjob.yaml").read_text(encoding="utf-8")
    used = set(re.findall(r"(?:image|claimName): ([A-Z_]+)", text))
    table = set(re.findall(r"^\| `([A-Z_]+)` \|", (CLUSTERS / "README.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert used == table == {"IMAGE", "RUNS_CLAIM"}


def test_the_readme_submits_options_that_exist() -> None:
    lines = (CLUSTERS / "README.md").read_text(encoding="utf-8").splitlines()
    given = [
        line.split(mark, 1)[1]
        for line in lines
        for mark in ("two-node.sh submit ", "-- python jobs/align.py ")
        if mark in line
    ]
    assert len(given) == 2
    for arguments in given:
        assert parse_job("align", "Align a model.", shlex.split(arguments)).storage == "/shared/ra-dpo"


@pytest.mark.parametrize("arguments", [[], ["tail"], ["worker"]])
def test_the_script_explains_itself(arguments: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", CLUSTERS / "two-node.sh", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        env=os.environ | {"HOME": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("usage: clusters/two-node.sh head")
