"""Every command line of a manifest, parsed by the script that it starts, which runs up to where it would work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from manifests import CLUSTER_OF, EXAMPLES, JOB_OF, ROOT, VARIANTS, Document, at, base, named, optional, parsed, variant

from pipeline.cluster import shortage
from pipeline.config import RunConfig
from pipeline.serving.options import GuardOptions

JOBS = ("align", "sweep", "realign")


def write_recipe(found: list[Document], folder: Path) -> Path:
    path = folder / "run.yaml"
    path.write_text(named(found, "ConfigMap", "ra-dpo-recipe")["data"]["run.yaml"])
    return path


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("job", JOBS)
def test_a_rayjob_gives_options_that_its_job_takes(
    name: str, job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = variant(name)
    rayjob = named(found, "RayJob", f"ra-dpo-{job}")["spec"]
    request = parsed(rayjob["entrypoint"], write_recipe(found, tmp_path), monkeypatch)
    assert request.storage == EXAMPLES["STORAGE"]
    assert request.dry_run is False
    assert (request.run.data.path, request.run.model.path) == (EXAMPLES["DATA"], EXAMPLES["MODEL"])
    assert_it_fits(rayjob["rayClusterSpec"], request.run)


def assert_it_fits(cluster: Document, run: RunConfig) -> None:
    """The worker pods hold what the run needs, and one pod less would not."""
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    nodes: list[dict[str, float]] = [{"CPU": 0.0}]
    for group in cluster["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        nodes += [{"CPU": float(limits["cpu"]), "GPU": float(limits.get("nvidia.com/gpu", 0))}] * group["replicas"]
    config = run.cluster
    actor = {"CPU": max(config.cpus_per_actor, run.reference.threads), "GPU": config.gpus_per_actor}
    assert shortage(config.num_workers, actor, config, nodes) is None
    assert shortage(config.num_workers, actor, config, nodes[:-1]) is not None


def test_the_alternative_schedule_gives_options_that_its_job_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = at(named(optional(), "RayCronJob", "ra-dpo-realign"), JOB_OF["RayCronJob"])
    request = parsed(job["entrypoint"], write_recipe(base(), tmp_path), monkeypatch)
    assert_it_fits(job["rayClusterSpec"], request.run)


@pytest.mark.parametrize("name", VARIANTS)
def test_workers_of_gpus_get_them(name: str) -> None:
    for document in variant(name):
        if document["kind"] in CLUSTER_OF:
            (group,) = at(document, CLUSTER_OF[document["kind"]])["workerGroupSpecs"]
            spec = group["template"]["spec"]
            assert ("nvidia.com/gpu" in spec["containers"][0]["resources"]["limits"]) is name.startswith("gpu")
            assert ("tolerations" in spec) is name.startswith("gpu")


def test_the_recipes_of_both_kinds_of_nodes_differ_in_resources_alone() -> None:
    cpu, gpu = (
        yaml.safe_load(named(variant(name), "ConfigMap", "ra-dpo-recipe")["data"]["run.yaml"])
        for name in ("cpu-s3", "gpu-s3")
    )
    assert cpu.pop("cluster") != gpu.pop("cluster")
    assert cpu["train"].pop("micro_batch_size") < gpu["train"].pop("micro_batch_size")
    assert cpu == gpu


def test_the_watch_gets_options_that_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = named(base(), "Deployment", "ra-dpo-watch")["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    monkeypatch.setenv("RA_DPO_WEBHOOK", "https://hooks.example.com/secret")
    options = parsed(container["command"], tmp_path, monkeypatch)
    options.check()
    assert (options.storage, options.follow, options.roll_back) == (EXAMPLES["STORAGE"], True, False)
    assert options.webhook_from in {variable["name"] for variable in container["env"]}
    assert options.metrics_port in {port["containerPort"] for port in container["ports"]}
    assert str(options.logs) in {mount["mountPath"] for mount in container["volumeMounts"]}
    assert options.cluster.cpus_per_actor * options.cluster.max_actors <= float(container["resources"]["limits"]["cpu"])


def guard(found: list[Document]) -> tuple[Document, Document, GuardOptions]:
    """The guard's container, its Serve configuration, and the options in it."""
    spec = named(found, "RayService", "ra-dpo-guard")["spec"]
    configuration = yaml.safe_load(spec["serveConfigV2"])
    (application,) = configuration["applications"]
    (group,) = spec["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    return container, configuration, GuardOptions(**application["args"])


@pytest.mark.parametrize("name", VARIANTS)
def test_the_guard_gets_options_that_it_takes(name: str) -> None:
    container, configuration, options = guard(variant(name))
    assert options.storage == EXAMPLES["STORAGE"]
    assert options.token_env in {variable["name"] for variable in container["env"]}
    assert options.log in {mount["mountPath"] for mount in container["volumeMounts"]}
    assert configuration["http_options"]["port"] in {port["containerPort"] for port in container["ports"]}
    limits = container["resources"]["limits"]
    assert options.replicas * options.cpus_per_replica <= float(limits["cpu"])
    assert options.replicas * options.gpus_per_replica == float(limits.get("nvidia.com/gpu", 0))


def test_the_guard_writes_where_the_watch_reads() -> None:
    _, _, options = guard(base())
    watch = named(base(), "Deployment", "ra-dpo-watch")["spec"]["template"]["spec"]
    assert watch["containers"][0]["command"][2] == options.log
    for pod in (
        watch,
        named(base(), "RayService", "ra-dpo-guard")["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"][
            "spec"
        ],
    ):
        assert {"name": "logs", "persistentVolumeClaim": {"claimName": "ra-dpo-logs"}} in pod["volumes"]


SERVE = """
import importlib, inspect, json, sys
from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema
for configuration in json.load(sys.stdin):
    # Serve passes over fields that it does not know.
    unknown = set(configuration) - set(ServeDeploySchema.model_fields)
    (application,) = ServeDeploySchema.model_validate(configuration).applications
    unknown |= set(configuration["applications"][0]) - set(ServeApplicationSchema.model_fields)
    module, name = application.import_path.split(":")
    (parameter,) = inspect.signature(getattr(importlib.import_module(module), name)).parameters.values()
    parameter.annotation(**application.args)
    print(sorted(unknown))
"""


def test_ray_serve_takes_the_guards_configuration() -> None:
    given = [guard(variant(name))[1] for name in VARIANTS]
    wrong = given[0] | {"http_option": {"port": 8000}}
    done = subprocess.run(
        [sys.executable, "-c", SERVE],
        input=json.dumps([*given, wrong]),
        env=os.environ | {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[]"] * len(VARIANTS) + ["['http_option']"]
