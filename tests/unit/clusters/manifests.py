"""The manifests as a user applies them: rendered by kustomize, the example values in their places.

Not a test: shared by the tests of this folder.
"""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
CLUSTERS = ROOT / "clusters"
KUBERNETES = CLUSTERS / "kubernetes"
RECIPE = "/etc/ra-dpo/run.yaml"
VARIANTS = ("cpu-s3", "cpu-volume", "gpu-s3", "gpu-volume")
CLUSTER_OF = {
    "RayCluster": ("spec",),
    "RayJob": ("spec", "rayClusterSpec"),
    "RayService": ("spec", "rayClusterConfig"),
    "RayCronJob": ("spec", "jobTemplate", "rayClusterSpec"),
}
JOB_OF = {"RayJob": ("spec",), "RayCronJob": ("spec", "jobTemplate")}

Document = dict[str, Any]


def script(path: Path) -> ModuleType:
    """A file of Python below clusters/, which is no package, as a module."""
    loader = importlib.machinery.SourceFileLoader(path.stem, str(path))
    spec = importlib.util.spec_from_loader(path.stem, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


FILL = script(CLUSTERS / "fill")
EXAMPLES: dict[str, str] = FILL.read_values((CLUSTERS / "values.example.env").read_text(encoding="utf-8"))


def documents(text: str) -> list[Document]:
    return [document for document in yaml.safe_load_all(FILL.fill(text, EXAMPLES)) if document]


@functools.cache
def _rendered(name: str) -> str:
    command = ["kubectl", "kustomize", str(KUBERNETES / name)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def variant(name: str) -> list[Document]:
    """All documents of a variant; skips the test where there is no kubectl to render it."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl, which renders the variants, is not installed")
    return documents(_rendered(name))


def base() -> list[Document]:
    """The base's own files, which are manifests as they stand."""
    listed = yaml.safe_load((KUBERNETES / "base" / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]
    return [d for name in listed for d in documents((KUBERNETES / "base" / name).read_text(encoding="utf-8"))]


def optional() -> list[Document]:
    """What is applied apart from the variants."""
    return [
        document
        for path in sorted((KUBERNETES / "optional").glob("*.yaml"))
        for document in documents(path.read_text(encoding="utf-8"))
    ]


@dataclass(frozen=True)
class PodTemplate:
    """One pod that a document makes: of which document, its labels and its specification."""

    owner: str
    labels: dict[str, str]
    spec: Document

    @property
    def container(self) -> Document:
        (container,) = self.spec["containers"]
        found: Document = container
        return found


def at(document: Document, path: tuple[str, ...]) -> Any:
    return functools.reduce(lambda node, name: node[name], path, document)


def pods(found: list[Document]) -> Iterator[PodTemplate]:
    """Every pod that the documents make, whatever makes it."""
    for document in found:
        kind, owner = document["kind"], f"{document['kind']} {document['metadata']['name']}"
        templates = []
        if kind in CLUSTER_OF:
            cluster = at(document, CLUSTER_OF[kind])
            templates += [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
        if kind in JOB_OF:
            templates.append(at(document, JOB_OF[kind])["submitterPodTemplate"])
        if kind == "Deployment":
            templates.append(document["spec"]["template"])
        if kind == "CronJob":
            templates.append(document["spec"]["jobTemplate"]["spec"]["template"])
        for template in templates:
            yield PodTemplate(owner, template["metadata"]["labels"], template["spec"])


def named(found: list[Document], kind: str, name: str) -> Document:
    (document,) = [d for d in found if (d["kind"], d["metadata"]["name"]) == (kind, name)]
    return document


def parsed(command: str | list[str], recipe: Path | None, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the script of a command makes of its arguments; it runs up to where it would work. ``recipe`` stands for the
    one that pods mount."""
    program, path, *arguments = shlex.split(command) if isinstance(command, str) else command
    assert program == "python"
    stopped: list[Any] = []
    monkeypatch.setattr("pipeline.cli.run_job", stopped.append)
    monkeypatch.setattr(sys, "argv", [path, *(str(recipe) if a == RECIPE else a for a in arguments)])
    found = runpy.run_path(str(ROOT / path), run_name="__main__")
    assert len(stopped) == 1
    return found.get("request") or found["options"]
