"""The job on a running cluster: two real nodes from the shipped recipe, a token, ``ray job submit``."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import cluster as clusters
import job
from cluster import submit
from conftest import FinishedRun


@pytest.fixture
def cluster() -> Iterator[dict[str, str]]:
    """Environment of a client of a fresh two-node cluster with one CPU each."""
    home = Path(tempfile.mkdtemp(prefix="ra", dir="/tmp"))
    environment = clusters.environment(home)
    try:
        with clusters.two_nodes(home, environment, environment):
            yield environment
    finally:
        shutil.rmtree(home, ignore_errors=True)


@pytest.mark.timeout(600)
def test_submitted_to_a_cluster_of_two_nodes(
    finished_run: FinishedRun, cluster: dict[str, str], tmp_path: Path
) -> None:
    """DPO on your own model: no fine-tuning, one number per response as the reference, alignment on both nodes."""
    storage = tmp_path / "runs"
    (tuned,) = (finished_run.storage / "artifacts" / "sft").iterdir()
    shutil.copytree(tuned / "model", tmp_path / "model")
    ours = (
        *("--recipe", str(finished_run.recipe), "--storage", str(storage)),
        *("--model.path", str(tmp_path / "model"), "--sft.steps", "0"),
        *("--loss.method", "dpo", "--reference.tier", "scalar", "--train.max_steps", "4"),
    )
    code, output = submit(cluster, *ours)
    assert code == 0, output
    assert "joined the Ray cluster" in output
    assert "2 node(s), 2 CPUs" in output
    assert "> sft" not in output
    for stage in ("data", "tokens", "reference", "align", "sample_policy", "evaluate", "report"):
        assert f"✓ {stage}" in output, output
    summary = job.summary(storage)
    assert summary["training"]["first_train"]["loss"] == pytest.approx(0.6931472, abs=1e-5)
    assert summary["evaluation"]["pairs"]["chosen_risk"]["cvar@0.1"]["value"] > 0
    assert not list(storage.glob("artifacts/reference/*/head.safetensors"))
    (directory,) = (storage / "reports").iterdir()
    assert f"report:  {directory / 'report.html'}" in output
    assert "\x1b[" not in output.split("joined the Ray cluster")[1].split("report:")[0], "a log is no terminal"

    code, output = submit(cluster, "--recipe", str(finished_run.recipe), "--risk.level", "7")
    assert code != 0, "a job that fails must say so"
    assert "risk.level" in output
    assert "Traceback" not in output

    code, output = submit(cluster, *ours, "--cluster.num_workers", "3")
    assert code == 0, "everything is committed already, and the number of workers changes no result"
    code, output = submit(cluster, *ours, "--cluster.num_workers", "3", "--loss.beta", "0.3")
    assert code != 0
    assert "cluster.num_workers is 3" in output
