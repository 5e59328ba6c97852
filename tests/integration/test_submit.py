"""The job on a running cluster: two real nodes from the shipped recipe, a token, ``ray job submit``."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import job
from conftest import FinishedRun

SCRIPT = job.ROOT / "clusters" / "two-node.sh"


def free_port() -> int:
    """A free port outside the range in which Ray's workers listen."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port >= 20000:
            return port


@pytest.fixture
def cluster() -> Iterator[dict[str, str]]:
    """Environment of a client of a fresh two-node cluster with one CPU each."""
    # A short path: Ray puts sockets below it, and their names have a limit.
    home = Path(tempfile.mkdtemp(prefix="ra", dir="/tmp"))
    environment = job.environment() | {
        "HOME": str(home),
        "PORT": str(free_port()),
        "DASHBOARD_PORT": str(free_port()),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    nodes = []
    try:
        for name, arguments in (("head", ["head"]), ("worker", ["worker", "127.0.0.1"])):
            log = (home / f"{name}.log").open("w")
            nodes.append(
                subprocess.Popen(
                    [str(SCRIPT), *arguments, "--block", "--num-cpus", "1", "--temp-dir", str(home / name)],
                    env=environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
            deadline = time.monotonic() + 60
            while "--block" not in (home / f"{name}.log").read_text():
                assert time.monotonic() < deadline, (home / f"{name}.log").read_text()
                time.sleep(0.2)
        yield environment
    finally:
        for node in reversed(nodes):
            node.send_signal(signal.SIGTERM)
        for node in nodes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                node.wait(timeout=3)
        # Whatever Ray left of this cluster, known by its own temporary directory.
        for process in psutil.process_iter(["cmdline"]):
            if any(str(home) in part for part in process.info["cmdline"] or []):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        shutil.rmtree(home, ignore_errors=True)


def submit(environment: dict[str, str], *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [str(SCRIPT), "submit", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


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
