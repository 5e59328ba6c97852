"""A training under a hundred kills, torn files, a full disk and a lost node: ``make chaos``.

``CHAOS_TABLE`` names a file for the table of faults (Markdown); ``CHAOS_SHARE`` is the share of the kills to do.
"""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

sys.path[:0] = [str(Path(__file__).parents[1] / "distributed"), str(Path(__file__).parents[1])]
import stages
import training_runs as runs
from training_runs import Job, Material

from pipeline.checkpoints.directory import Checkpoint, RunDirectory
from pipeline.training.spec import TrainSpec

SHARE = float(os.environ.get("CHAOS_SHARE", "1"))
STARTING = "train worker, and one of those that start in its place"
ALL_KILLS = {"train worker": 20, STARTING: 10, "Train controller": 15, "driver": 19, "raylet of the second node": 12}
KILLS = {kind: max(1, round(count * SHARE)) for kind, count in ALL_KILLS.items()}
DAMAGE = ("flipped", "short", "missing")
STEPS = 200 + 10 * sum(KILLS.values())


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory, built_model: Path) -> Material:
    return runs.prepare(tmp_path_factory.mktemp("chaos"), built_model)


def same_as_undisturbed(spec: TrainSpec, undisturbed: TrainSpec, material: Material) -> None:
    """Weights to the last bit, metrics to the last byte; every batch once and in order."""
    assert runs.weights_digest(spec) == runs.weights_digest(undisturbed)
    ours, theirs = (Path(one.out_dir) / "metrics.jsonl" for one in (spec, undisturbed))
    assert ours.read_bytes() == theirs.read_bytes()
    rows = [row for row in runs.metrics(spec) if row["split"] == "train"]
    expected = runs.rows_of_steps(material, len(rows), spec.run["train"]["batch_size"])
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert [row["rows"] for row in rows] == [runs.rows_digest(ids) for ids in expected]


class Chaos:
    """One training on two nodes, and what is done to it."""

    def __init__(self, spec: TrainSpec, nodes: subprocess.Popen[str], folder: Path, seed: int) -> None:
        self.spec, self.nodes, self.folder = spec, nodes, folder
        self.rng = random.Random(seed)
        self.driver = self._start()
        self.lost: dict[str, list[float]] = {}
        self.half_written = 0
        self.damaged: dict[str, int] = {}

    def _start(self) -> stages.Driver:
        return stages.Driver(self.spec, self.folder, self.nodes.address)  # type: ignore[attr-defined]

    def kill(self, kind: str, aimed: bool) -> None:
        """One kill after some progress, at a random time or in the middle of a commit; returns when it is made up
        for."""
        stages.await_step(self.spec, stages.last_step(self.spec) + self.rng.randint(2, 6), self.driver)
        workers = stages.processes(self.nodes.pid, stages.WORKER)[-2:]
        controller = stages.processes(self.nodes.pid, stages.CONTROLLER)[-1]
        victim = controller if kind == "Train controller" else self.rng.choice(workers)
        said = stages.attempts(self.driver)
        if aimed:
            self._await_commit()
        else:
            time.sleep(self.rng.random() * 0.3)
        began = time.monotonic()
        if kind == "driver":
            self.driver.kill()
        elif kind == "raylet of the second node":
            stages.command(self.nodes, "kill")
        else:
            victim.kill()
        psutil.wait_procs(workers, timeout=3)
        self.half_written += any((Path(self.spec.run_dir) / ".staging").glob("step-*"))
        if kind == "driver":
            self._await_no_workers()
            self._damage()
            self.driver = self._start()
            said = 0
        elif kind == "raylet of the second node":
            stages.command(self.nodes, "add")
        elif kind == STARTING:
            self._await(lambda: stages.attempts(self.driver) > said, kind)
            self._await(lambda: bool(self._workers_but(workers)), kind)
            time.sleep(self.rng.random() * 6)  # from importing to connecting and loading
            self.rng.choice(self._workers_but(workers)).kill()
            said += 1
        self._await(lambda: stages.attempts(self.driver) > said, kind)
        before = stages.last_step(self.spec)  # the last step of what was killed; the metrics are cut back below it
        self._await(lambda: stages.last_step(self.spec) > before, kind)
        self.lost.setdefault(kind, []).append(time.monotonic() - began)

    def _await(self, reached: Callable[[], bool], kind: str) -> None:
        deadline = time.monotonic() + 240
        while not reached():
            assert self.driver.running(), self.driver.output()[-4000:]
            assert time.monotonic() < deadline, f"{kind}: not made up for\n{self.driver.output()[-4000:]}"
            time.sleep(0.05)

    def _workers_but(self, old: Sequence[psutil.Process]) -> list[psutil.Process]:
        return [one for one in stages.processes(self.nodes.pid, stages.WORKER) if one not in old]

    def _await_commit(self) -> None:
        """Until files of the next checkpoint are being written."""
        deadline = time.monotonic() + 20
        staging = Path(self.spec.run_dir) / ".staging"
        while time.monotonic() < deadline and not any(staging.glob("step-*/*")):
            time.sleep(0.0005)

    def _await_no_workers(self) -> None:
        """Workers outlive their driver for a moment, in which they may commit a checkpoint newer than a damaged one."""
        deadline = time.monotonic() + 60
        while stages.processes(self.nodes.pid, stages.WORKER):
            assert time.monotonic() < deadline, "the workers of a dead driver live on"
            time.sleep(0.05)

    def _damage(self) -> None:
        """Spoil a file of the newest checkpoint, if there is an older one to go on from."""
        directory = RunDirectory(Path(self.spec.run_dir), self.spec.identity)
        found = directory.newest(lambda text: None)
        if found is None or len(directory.steps()) < 2 or sum(self.damaged.values()) >= 12:
            return
        fault = DAMAGE[sum(self.damaged.values()) % len(DAMAGE)]
        path = self.rng.choice(sorted(found.path.iterdir()))
        data = bytearray(path.read_bytes())
        data[self.rng.randrange(len(data))] ^= 1
        path.unlink()
        if fault != "missing":
            path.write_bytes(data if fault == "flipped" else data[: len(data) // 2])
        said: list[str] = []
        assert directory.newest(said.append) != found
        assert path.name in said[0]
        self.damaged[fault] = self.damaged.get(fault, 0) + 1

    def table(self) -> str:
        lines = ["| fault | count | recovered | seconds lost, median | most |", "|---|---|---|---|---|"]
        for kind, lost in self.lost.items():
            lines.append(f"| {kind} | {len(lost)} | {len(lost)} | {statistics.median(lost):.0f} | {max(lost):.0f} |")
        for fault, count in self.damaged.items():
            lines.append(f"| file of the newest checkpoint {fault} | {count} | {count} | | |")
        return "\n".join([*lines, "", f"{self.half_written} of the kills left files of an uncommitted checkpoint."])


@pytest.mark.long
@pytest.mark.timeout(3300)
def test_a_hundred_kills(material: Material, tmp_path: Path) -> None:
    """With the twenty-four of a reference pass (`test_reference_pass`) a hundred."""
    options = {"max_steps": STEPS, "checkpoint": {"every_steps": 4}, "eval_every_steps": 10_000}
    cluster = {"num_workers": 2, "min_workers": 2, "max_failures": 1000}
    spec = material.spec("disturbed", cluster=cluster, **options)
    kinds = [kind for kind, count in KILLS.items() for _ in range(count)]
    random.Random(0).shuffle(kinds)
    with stages.two_nodes(1) as nodes:
        chaos = Chaos(spec, nodes, tmp_path, seed=1)
        try:
            stages.await_step(spec, 10, chaos.driver)
            for number, kind in enumerate(kinds):
                chaos.kill(kind, aimed=number % 3 == 0)
                print(f"{number + 1} {kind}: {chaos.lost[kind][-1]:.1f} s, step {stages.last_step(spec)}", flush=True)
            assert chaos.driver.finish(600) == 0, chaos.driver.output()[-4000:]
        finally:
            chaos.driver.kill_all()
    print(f"\n{chaos.table()}")
    if os.environ.get("CHAOS_TABLE"):
        Path(os.environ["CHAOS_TABLE"]).write_text(chaos.table() + "\n")
    undisturbed = material.spec("undisturbed", **options)
    runs.run_ranks([Job(undisturbed)], 2, material.root)
    same_as_undisturbed(spec, undisturbed, material)
    assert {kind: len(lost) for kind, lost in chaos.lost.items()} == KILLS
    assert chaos.half_written >= max(1, len(kinds) // 20)
    assert set(chaos.damaged) == set(DAMAGE) or SHARE < 1


SHORT = {"max_steps": 120, "checkpoint": {"every_steps": 4}, "eval_every_steps": 10_000}


@pytest.fixture(scope="module")
def short(material: Material) -> TrainSpec:
    """The undisturbed training of the shorter tests."""
    spec = material.spec("short", **SHORT)
    runs.run_ranks([Job(spec)], 2, material.root)
    return spec


def moved(spec: TrainSpec, run_dir: Path) -> TrainSpec:
    return replace(spec, run_dir=str(run_dir))


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_full_disk(material: Material, short: TrainSpec, tmp_path: Path, small_disk: Callable[[str], Path]) -> None:
    """One clear message; nothing that was there is lost; with room again the same command comes to the same end."""
    disk = small_disk("size=24m")
    spec = moved(material.spec("full", **SHORT), disk / "run")
    driver = stages.Driver(spec, tmp_path)
    stages.await_step(spec, 10, driver)
    with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
        while True:  # what is left meanwhile belongs to whoever comes first: the run writes too
            filler.write(bytes(100_000))
    assert driver.finish() == 1
    assert "disk is full; free some space or set --storage" in driver.output()
    assert "Traceback" not in driver.output()
    directory = RunDirectory(Path(spec.run_dir), spec.identity)
    assert isinstance(directory.verify(directory.steps()[-1]), Checkpoint)
    (disk / "filler").unlink()
    driver = stages.Driver(spec, tmp_path)
    assert driver.finish() == 0, driver.output()[-4000:]
    same_as_undisturbed(spec, short, material)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_storage_that_disappears(material: Material, short: TrainSpec, tmp_path: Path) -> None:
    spec = material.spec("gone", **SHORT)
    driver = stages.Driver(spec, tmp_path)
    stages.await_step(spec, 10, driver)
    run, away = Path(spec.run_dir), Path(spec.run_dir).with_name("away")
    run.rename(away)
    assert driver.finish() == 1
    assert "has disappeared" in driver.output()
    assert "Traceback" not in driver.output()
    assert not run.exists()
    away.rename(run)
    driver = stages.Driver(spec, tmp_path)
    assert driver.finish() == 0, driver.output()[-4000:]
    same_as_undisturbed(spec, short, material)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_worker_that_stops(material: Material, short: TrainSpec, tmp_path: Path) -> None:
    spec = material.spec("hangs", cluster={"hang_s": 20}, **SHORT)
    driver = stages.Driver(spec, tmp_path)
    stages.await_step(spec, 10, driver)
    stages.processes(driver.process.pid, stages.WORKER)[-1].suspend()
    assert driver.finish() == 0, driver.output()[-4000:]
    assert stages.attempts(driver) >= 1
    same_as_undisturbed(spec, short, material)


HANGING = """
import os, time
calls = 0
def distortion(mass):
    global calls
    calls += 1
    if calls > 60 and not os.path.exists(os.environ["GO_ON"]):
        time.sleep(3600)
    return mass
"""


@pytest.mark.long
@pytest.mark.timeout(600)
def test_all_workers_hang(material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In code of the user's own, while their processes answer: neither Ray nor a collective notices."""
    (tmp_path / "hanging.py").write_text(HANGING)
    surroundings = {"PYTHONPATH": str(tmp_path), "GO_ON": str(tmp_path / "go on")}
    risk = {"risk": {"measure": "hanging:distortion", "level": 1.0}}
    plain = material.spec("all hang", cluster={"hang_s": 20}, **SHORT)
    spec = replace(plain, run=plain.run | risk)
    driver = stages.Driver(spec, tmp_path, **surroundings)
    deadline = time.monotonic() + 180
    while "(cluster.hang_s); ending them" not in driver.output():
        assert driver.running(), driver.output()[-4000:]
        assert time.monotonic() < deadline, driver.output()[-4000:]
        time.sleep(0.1)
    (tmp_path / "go on").touch()
    assert driver.finish() == 0, driver.output()[-4000:]
    assert stages.attempts(driver) == 1
    for name, value in surroundings.items():
        monkeypatch.setenv(name, value)
    plain = material.spec("does not hang", **SHORT)
    undisturbed = replace(plain, run=plain.run | risk)
    runs.run_ranks([Job(undisturbed)], 2, material.root)
    same_as_undisturbed(spec, undisturbed, material)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_node_lost_for_good(material: Material, short: TrainSpec, tmp_path: Path) -> None:
    """One worker goes on alone: the same batches, losses within rounding."""
    spec = material.spec("shrunk", cluster={"num_workers": 2, "min_workers": 1, "node_wait_s": 5}, **SHORT)
    with stages.two_nodes(1) as nodes:
        driver = stages.Driver(spec, tmp_path, nodes.address)  # type: ignore[attr-defined]
        stages.await_step(spec, 10, driver)
        stages.command(nodes, "kill")
        assert driver.finish(400) == 0, driver.output()[-4000:]
    assert "with 1 worker(s)" in driver.output()
    ours, theirs = ([row for row in runs.metrics(one) if row["split"] == "train"] for one in (spec, short))
    assert [row["rows"] for row in ours] == [row["rows"] for row in theirs]
    worst = max(abs(one["loss"] - other["loss"]) for one, other in zip(ours, theirs, strict=True))
    print(f"\nlargest difference of a loss over {len(ours)} steps: {worst:.2g}")
    assert worst < 1e-3
