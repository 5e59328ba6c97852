"""Choosing by the command line, from what a real job has left."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import job
from conftest import FinishedRun


def choose(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, str(job.ROOT / "jobs" / "choose.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=job.environment(),
    )
    return done.returncode, done.stdout + done.stderr


def test_a_finished_run(finished_run: FinishedRun, tmp_path: Path) -> None:
    [summary] = finished_run.storage.glob("reports/*/summary.json")
    output = tmp_path / "choice.json"
    code, said = choose(str(summary), "--split", "test", "--allow_decayed", "--output", str(output))
    assert code == 0, said
    assert f"Chosen: {summary.parent.name}" in said
    found = json.loads(output.read_text())
    evaluation = job.summary(finished_run.storage)["evaluation"]
    mean = found["settings"][0]["figures"]["mean"]
    assert mean == evaluation["scorers"][evaluation["primary_scorer"]]["policy"]["mean"]


def test_a_limit_that_nothing_keeps(finished_run: FinishedRun) -> None:
    [summary] = finished_run.storage.glob("reports/*/summary.json")
    code, said = choose(str(summary), "--split", "test", "--max_drift", "1e-9")
    assert code == 3
    assert "nothing is chosen" in said
    assert "drift " in said


def test_no_run_of_the_split(finished_run: FinishedRun) -> None:
    [summary] = finished_run.storage.glob("reports/*/summary.json")
    code, said = choose(str(summary))
    assert code == 1
    assert said.startswith("error: none of the 1 run(s) was judged by the validation split: run them with --eval")


def test_a_limit_that_is_none() -> None:
    code, said = choose("summary.json", "--max_incidents", "5")
    assert code == 2
    assert said.startswith("error: --max_incidents: must be 1 or less, got 5")


def test_no_summary(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{}")
    code, said = choose(str(tmp_path / "summary.json"))
    assert code == 1
    assert said.startswith("error: ")
    assert "Traceback" not in said
