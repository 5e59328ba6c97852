"""Sweeps of the real job: trials that fail, sweeps that are killed, runs that are ended early, a pilot."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import job
from conftest import FinishedRun

ONE_WORKER = ("--cluster.num_workers", "1", "--cluster.max_actors", "1")
DIVERGES = "{loss.method: [dpo], train.optim.lr: [1.0e+30], train.guard.max_skipped_steps: [0]}"
DPO = "{loss.method: [dpo]}"
TWO = f"{DPO}, {{loss.method: [ra_dpo2], risk.level: [0.5]}}"


def arguments(finished: FinishedRun, storage: Path, space: str, *more: str) -> list[str]:
    """A sweep of the tiny recipe in a storage that has its shared stages."""
    if not storage.exists():
        shutil.copytree(finished.storage, storage)
        for gone in (*(f"artifacts/{stage}" for stage in ("align", "sample_policy", "evaluate", "report")), "reports"):
            shutil.rmtree(storage / gone)
    return [
        *("--recipe", str(finished.recipe), "--storage", str(storage), *ONE_WORKER),
        *("--sweep.space", f"[{space}]", *more),
    ]


def kill(given: list[str], log: Path, when: Any) -> None:
    """Start a sweep and kill it with SIGKILL when ``when()`` is true; its trials must end with it."""
    process = job.start(given, log, "sweep.py")
    try:
        deadline = time.monotonic() + 240
        while not when():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    deadline = time.monotonic() + 20
    while left := [one for one in trial_processes() if str(given[3]) in " ".join(one.info["cmdline"])]:
        assert time.monotonic() < deadline, f"{len(left)} trial(s) outlive their sweep"
        time.sleep(0.1)


def trial_processes() -> list[psutil.Process]:
    return [one for one in psutil.process_iter(["cmdline"]) if "pipeline.sweep.leash" in (one.info["cmdline"] or [])]


def table(storage: Path, split: str) -> dict[str, Any]:
    """What the one sweep judged by a split says, without its times and where it lies."""
    found = [json.loads(path.read_text()) for path in storage.glob("sweeps/*/sweep.json")]
    (sweep,) = [one for one in found if one["split"] == split and one["trials"]]
    text = json.dumps(
        {
            "settings": [{k: v for k, v in one.items() if "seconds" not in k} for one in sweep["settings"]],
            "trials": [[one["options"], one["seed"], one["state"]] for one in sweep["trials"]],
            "test": [[one["setting"], one["role"], one["figures"], one["verdict"]] for one in sweep["test"]],
            "chosen": [sweep["chosen"], sweep["runner_up"]],
            "reference": sweep["reference"],
        }
    )
    kept: dict[str, Any] = json.loads(text.replace(str(storage), ""))
    return kept


@pytest.mark.long
@pytest.mark.timeout(500)
def test_killed_and_run_again_with_a_trial_that_fails(finished_run: FinishedRun, tmp_path: Path) -> None:
    storage = tmp_path / "runs"
    given = arguments(finished_run, storage, f"{DPO}, {DIVERGES}", "--sweep.split", "test")
    kill(given, tmp_path / "killed.log", lambda: list(storage.glob("artifacts/align/*/metrics.jsonl")))
    assert not list(storage.glob("sweeps/*/sweep.json"))
    aligned = {path: path.stat().st_mtime_ns for path in storage.glob("artifacts/align/*/artifact.json")}

    code, output = job.run(given, script="sweep.py")
    assert code == 0, output
    assert "Traceback" not in output
    assert "1 trial(s) failed" in output
    (path,) = storage.glob("sweeps/*/sweep.json")
    sweep = json.loads(path.read_text())
    states = {f"{one['options']['loss.method']}{len(one['options'])}": one for one in sweep["trials"]}
    assert [states[name]["state"] for name in ("dpo1", "dpo3")] == ["finished", "failed"]
    assert "not finite" in states["dpo3"]["reason"]
    assert sweep["shared"]["reference_passes"] == 1
    assert len(list(storage.glob("references/*"))) == len(list(finished_run.storage.glob("references/*")))
    assert all(path.stat().st_mtime_ns == when for path, when in aligned.items()), "a finished training ran again"
    assert (path.parent / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert len(sweep["settings"]) == 1


def test_more_at_once_than_there_is_room_for(finished_run: FinishedRun, tmp_path: Path) -> None:
    given = arguments(finished_run, tmp_path / "runs", TWO, "--sweep.trials_at_once", "500")
    code, output = job.run(given, script="sweep.py")
    assert code == 1
    assert "error: sweep.trials_at_once is 500, but the cluster of 1 node(s) has room for" in output
    assert "started" not in output.split("started Ray")[1], "nothing may run before that is found"
    assert "Traceback" not in output


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_killed_twice_at_random(finished_run: FinishedRun, tmp_path: Path) -> None:
    """The table of a sweep that was killed twice is that of one that was left alone."""
    space, more = f"{TWO}, {{loss.method: [tdpo2]}}", ("--sweep.seeds", "0", "1")
    quiet = arguments(finished_run, tmp_path / "quiet", space, *more)
    code, output = job.run(quiet, 900, "sweep.py")
    assert code == 0, output
    storage = tmp_path / "killed"
    given = arguments(finished_run, storage, space, *more)
    rng = random.Random()
    for number in range(2):
        delay = rng.uniform(15, 70)
        due = time.monotonic() + delay
        print(f"kill {number + 1} after {delay:.1f} s")
        kill(given, tmp_path / f"killed-{number}.log", lambda due=due: time.monotonic() > due)
    code, output = job.run(given, 900, "sweep.py")
    assert code == 0, output
    assert table(storage, "validation") == table(tmp_path / "quiet", "validation")


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_ended_early(finished_run: FinishedRun, tmp_path: Path) -> None:
    """A rate at which nothing is learned is behind; its run is ended, and not begun again."""
    storage = tmp_path / "runs"
    space = "{loss.method: [ra_dpo2], train.optim.lr: [4.0e-3, 1.0e-7], train.eval_every_steps: [1]}"
    more = ("--sweep.early_stop", "asha", "--sweep.trials_at_once", "1", "--sweep.tolerance.allow_decayed", "true")
    given = arguments(finished_run, storage, space, "--train.max_steps", "40", "--train.epochs", "9", *more)
    code, output = job.run(given, 900, "sweep.py")
    assert code == 0, output
    assert "stopped early: worst_reward_margin" in output
    assert not list(storage.glob("checkpoints/align-*")), "what was ended early leaves no checkpoint"
    code, output = job.run(given, 900, "sweep.py")
    assert code == 0, output
    assert "= 2 of 2 trials reused" in output


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_pilot(finished_run: FinishedRun, tmp_path: Path) -> None:
    """A fifth of the groups first; two of three settings go on; chosen ones are judged by the test split. Half a CPU is
    enough for each of them."""
    storage = tmp_path / "runs"
    space = f"{TWO}, {{loss.method: [tdpo2]}}"
    halves = ("--cluster.cpus_per_worker", "0.5", "--cluster.cpus_per_actor", "0.5", "--sweep.trials_at_once", "3")
    given = arguments(finished_run, storage, space, "--pilot", "0.2", "--sweep.tolerance.max_drift", "50", *halves)
    code, output = job.run(given, 1500, "sweep.py")
    assert code == 0, output
    assert "pilot: 2 of 3 settings go on" in output
    assert "3 trials, 3 at once" in output
    (sweep,) = [json.loads(path.read_text()) for path in storage.glob("sweeps/*/sweep.json")]
    assert sweep["pilot"]["fraction"] == 0.2
    assert 0 < sweep["pilot"]["pairs"] < 60
    assert len(sweep["pilot"]["dropped"]) == 1
    assert len(sweep["settings"]) == 2
    assert [one["role"] for one in sweep["test"]] == ["chosen", "runner-up"]
    assert sweep["shared"]["reference_passes"] == 1
    assert len(list(storage.glob("artifacts/reference/*"))) == 1
