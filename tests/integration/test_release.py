"""From a finished run to production and back, as a user does it: real jobs, one after another, on one storage."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parent))
import job
from conftest import FinishedRun

LENIENT = ["--gate.mean_drop", "none", "--gate.tail_drop", "none", "--gate.max_drift", "none"]
LENIENT += ["--gate.max_repetition_rise", "none", "--gate.min_length", "none", "--gate.max_bits_rise", "none"]
LENIENT += ["--gate.max_incidents", "0.9"]
"""A policy that a tiny run can fulfil with six prompts."""


@dataclass(frozen=True)
class Site:
    """A storage of its own with the artefacts of a finished run, and its registry."""

    recipe: Path
    storage: Path

    def align(self, *options: str) -> str:
        code, output = job.run(["--recipe", str(self.recipe), "--storage", str(self.storage), *options])
        assert code == 0, output
        return output

    def job(self, script: str, *options: str, code: int = 0) -> str:
        got, output = job.run([*options, "--storage", str(self.storage)], script=script)
        assert got == code, output
        assert "Traceback" not in output
        return output

    def release(self) -> dict[str, Any]:
        """Of the newest report."""
        newest = max(self.storage.glob("reports/*/summary.json"), key=lambda path: path.stat().st_mtime_ns)
        value: dict[str, Any] = json.loads(newest.read_text())["release"]
        return value


@pytest.fixture(scope="module")
def site(finished_run: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Site:
    storage = tmp_path_factory.mktemp("release") / "runs"
    shutil.copytree(finished_run.storage, storage)
    return Site(finished_run.recipe, storage)


@pytest.mark.timeout(600)
def test_a_run_is_judged_and_registered(site: Site) -> None:
    release = site.release()
    assert release["outcome"] == "hold", "six prompts show nothing"
    assert release["gate"]["too_few"]
    assert (release["version"], release["incumbent"], release["after"]) == (1, 0, None)
    path = Path(site.job("registry.py", "path", "candidate").strip())
    for name in (
        "README.md",
        "card.html",
        "provenance.json",
        "run.yaml",
        "prompts.parquet",
        "evaluation/pairs.parquet",
    ):
        assert (path / name).is_file(), name
    assert AutoModelForCausalLM.from_pretrained(path).num_parameters() > 0
    assert "version 1" in (site.storage / "reports").glob("*/report.html").__next__().read_text()
    assert "nothing was changed" in site.job("registry.py", "verify", "--head", release["digest"])


@pytest.mark.timeout(600)
def test_from_promotion_to_roll_back(site: Site) -> None:
    output = site.align(*LENIENT)
    assert "release: version 1: PROMOTE, production: version 0 -> 1" in output
    assert "Ray" not in output.replace("Ra-DPO", ""), "the run is there: only the gate is asked again"
    assert site.align(*LENIENT).count("reused") == len(job.STAGES), "a decision is made once"

    assert "production: version 1 -> version 0 (the reference)" in site.job("rollback.py", "--why", "complaints")
    assert "nothing was done" in site.job("rollback.py")
    assert "note: production was moved since: it points to version 0" in site.align(*LENIENT)

    rows = list(csv.DictReader(io.StringIO(site.job("registry.py", "export"))))
    assert [row["what"] for row in rows] == ["registered", "registered", "decided", "decided", "rolled back"]
    assert [row["decision"] for row in rows if row["what"] == "decided"] == ["hold", "promote"]
    assert rows[-1]["why"] == "complaints"
    assert "nothing was changed" in site.job("registry.py", "verify")
    listed = site.job("registry.py", "list")
    assert "ra_dpo2 cvar@0.5  promote" in listed
    assert "the worst 10% of outputs by vader (1)" in site.job("registry.py", "explain", "1")

    # By hand, against what is expected there.
    assert "points to version 0, not to 1" in site.job("registry.py", "promote", "1", "--expected", "1", code=1)
    assert "there is no alias 'produciton'" in site.job("registry.py", "promote", "1", "--alias", "produciton", code=1)
    assert "production: version 0 (the reference) -> version 1" in site.job("registry.py", "promote", "1")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_line_of_versions(site: Site) -> None:
    """Each is compared with the one before it."""
    site.align(*LENIENT)
    site.job("registry.py", "promote", "1")
    # Another policy meets the first one as what is in production, on the evaluation that its version holds.
    output = site.align(*LENIENT, "--loss.beta", "0.2")
    assert "sample_incumbent" not in output
    assert "release: version 2: PROMOTE, production: version 1 -> 2" in output
    # Other prompts: what is in production answers them too.
    output = site.align(*LENIENT, "--loss.beta", "0.3", "--evaluation.num_prompts", "5", "--gate.mean_drop", "1.9")
    assert "✓ evaluate_incumbent" in output
    release = site.release()
    assert (release["version"], release["incumbent"], release["before"], release["after"]) == (3, 2, 2, 3)
    assert {one["against"] for one in release["gate"]["conditions"]} == {"reference", "incumbent"}
    assert "production: version 3 -> version 2" in site.job("rollback.py")
    assert "production: version 2 -> version 0 (the reference)" in site.job("rollback.py", "--to", "reference")
    assert "nothing was changed" in site.job("registry.py", "verify")


@pytest.mark.timeout(600)
def test_a_decision_may_be_left_to_a_person(site: Site) -> None:
    before = site.job("registry.py", "list")
    output = site.align(*LENIENT, "--registry.decisions", "record", "--gate.max_incidents", "0.91")
    assert "PROMOTE, production is left to you" in output
    production = [line for line in before.splitlines() if "production" in line]
    assert [line.split()[0] for line in production] == ["1"]
    assert any("production" in line and line.startswith("1") for line in site.job("registry.py", "list").splitlines())


@pytest.mark.timeout(600)
def test_a_changed_trail_stops_a_run_and_moves_nothing(site: Site) -> None:
    record = max(site.storage.glob("registry/*/audit/*.json"))
    good = record.read_bytes()
    try:
        record.write_bytes(good.replace(b'"who"', b'"whO"'))
        code, output = job.run(["--recipe", str(site.recipe), "--storage", str(site.storage), *LENIENT])
        assert code == 1
        assert "the audit trail in" in output
        assert "was changed" in output
        assert "Traceback" not in output
        assert "CHANGED: record" in site.job("registry.py", "verify", code=1)
        assert "was changed" in site.job("rollback.py", "--to", "reference", code=1)
    finally:
        record.write_bytes(good)
    assert "nothing was changed" in site.job("registry.py", "verify")


@pytest.mark.timeout(600)
def test_a_registry_that_is_gone_is_not_begun_anew(site: Site, tmp_path: Path) -> None:
    registry = site.storage / "registry"
    registry.rename(tmp_path / "elsewhere")
    try:
        code, output = job.run(["--recipe", str(site.recipe), "--storage", str(site.storage), *LENIENT])
        assert code == 1
        assert f"error: the registry at {registry} is gone: line" in output
        assert not registry.exists()
    finally:
        (tmp_path / "elsewhere").rename(registry)


def test_a_policy_without_scores_needs_no_range(site: Site) -> None:
    """The scorer says nothing of its range, and no limit asks for it."""
    own = ["--evaluation.scorers", "vader", "tests.integration.scorer:letters", "--evaluation.primary_scorer"]
    own += ["tests.integration.scorer:letters", "--gate.mean_drop", "none", "--gate.tail_drop", "none"]
    arguments = ["--recipe", str(site.recipe), "--storage", str(site.storage), *own, "--dry-run"]
    code, output = job.run(arguments)
    assert code == 0, output
    code, output = job.run([*arguments, "--gate.mean_drop", "0.1"])
    assert code == 2
    assert "the gate cannot bound what it has not seen" in output
