"""A cluster of two nodes that share nothing but the URL of an object store: home, scratch and temporary directories are
each node's own, and neither sees the other's."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import cluster as clusters
import job
from cluster import submit

from pipeline.places import Place
from tests.s3 import S3Server

RUN = ("--train.max_steps", "6", "--train.eval_every_steps", "2", "--sft.steps", "4")


@dataclass(frozen=True)
class Nodes:
    base: Path
    client: dict[str, str]
    """Environment."""
    recipe: Path
    """In the head node's home."""

    def scratch(self, node: str) -> set[str]:
        """Stages of which the node has copies of artefacts."""
        return {path.name for path in (self.base / node / ".cache" / "ra-dpo").glob("*/artifacts/*")} - {".fetching"}


@pytest.fixture(scope="module")
def nodes(s3_server: S3Server) -> Iterator[Nodes]:
    base = Path(tempfile.mkdtemp(prefix="ra", dir="/tmp"))
    for node in ("head", "worker"):
        (base / node / "tmp").mkdir(parents=True)
    ours = clusters.environment(base / "head")
    # Ray's own processes speak HTTP to this machine's other addresses.
    direct = ",".join(filter(None, (ours.get("NO_PROXY"), "127.0.0.1")))
    head = ours | s3_server.environment() | {"NO_PROXY": direct, "TMPDIR": str(base / "head" / "tmp")}
    worker = head | {"HOME": str(base / "worker"), "TMPDIR": str(base / "worker" / "tmp")}
    try:
        with clusters.two_nodes(base, head, worker, hidden=True):
            yield Nodes(base, head, job.write_recipe(base / "head"))
    finally:
        shutil.rmtree(base, ignore_errors=True)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_an_alignment_and_a_sweep(nodes: Nodes, s3_url: str) -> None:
    """A model directory of the head node's own, aligned by workers on both nodes; then a sweep over its result."""
    ours = ("--recipe", str(nodes.recipe), "--storage", s3_url, *RUN)
    code, output = submit(nodes.client, *ours)
    assert code == 0, output
    assert "2 node(s), 2 CPUs" in output
    for stage in job.STAGES:
        assert f"✓ {stage}" in output, output
    assert {"base", "tokens", "sft"} <= nodes.scratch("worker"), "the other node has fetched what it was given to read"
    if clusters.can_hide():
        assert not (nodes.base / "worker" / ".cache" / "ra-dpo").samefile(nodes.base / "head" / ".cache" / "ra-dpo")
    reports = Place(f"{s3_url}/reports")
    [published] = reports.folders()
    summary = json.loads(reports.below(published).read("summary.json"))
    assert summary["training"]["first_train"]["loss"] == pytest.approx(0.6931472, abs=1e-5)
    assert f"report:  {s3_url}/reports/" in output
    assert not Place(f"{s3_url}/checkpoints").sizes(), "of a training whose result is committed none are kept"

    code, output = submit(nodes.client, *ours)
    assert code == 0, output
    assert "> " not in output.split("Ra-DPO")[1], "nothing is run again"

    space = "[{loss.beta: [0.05, 0.3]}]"
    swept = ("jobs/sweep.py", *ours, "--sweep.space", space, "--sweep.seeds", "0", "--sweep.early_stop", "asha")
    code, output = submit(nodes.client, *swept, timeout_s=500)
    assert code in (0, 3), output
    assert "> sft" not in output
    assert output.count("✓") - output.count("✓ sample_reference") >= 2, output
    [report] = [line.split()[1] for line in output.splitlines() if line.startswith("report:  ")]
    sweep = Place(report.removesuffix("/report.html"))
    assert sweep.root.startswith(f"{s3_url}/sweeps/")
    assert sweep.names() == ["report.html", "sweep.json"]
    for trial in ("0000", "0001"):
        assert "✓ align" in sweep.below("trials", trial).read("output.log").decode()
    code, again = submit(nodes.client, *swept)
    assert code in (0, 3)
    assert "= 2 of 2 trials reused" in again, again


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_schedule(nodes: Nodes, s3_url: str) -> None:
    """The first alignment, which a person promotes; then another one on grown data, judged beside what is in
    production, with what the nodes have no directory in common for."""
    ours = ("jobs/realign.py", "--recipe", str(nodes.recipe), "--storage", s3_url, *RUN)
    code, output = submit(nodes.client, *ours)
    assert code == 0, output
    assert "record 1: first alignment" in output
    promoted = [sys.executable, str(job.ROOT / "jobs" / "registry.py"), "promote", "1", "--storage", s3_url]
    done = subprocess.run(promoted, env=nodes.client, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr

    job.write_pairs(nodes.recipe.parent / "pairs.jsonl", groups=60)
    code, output = submit(nodes.client, *ours, "--realign.min_new_pairs", "40")
    assert code == 0, output
    assert "2 node(s), 2 CPUs" in output
    assert "record 2: measured 80 new pairs, re-aligned" in output
    for stage in ("reference", "align", "sample_incumbent", "evaluate_incumbent", "gate", "register"):
        assert f"✓ {stage}" in output, output
    assert "144 taken over" in output

    code, output = submit(nodes.client, *ours, "--realign.min_new_pairs", "40")
    assert code == 0, output
    assert "record 3: nothing to do" in output
