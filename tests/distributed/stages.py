"""Starting, watching and killing drivers of a training stage and what Ray runs for them (not a test: shared)."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import psutil

from pipeline.training.spec import TrainSpec

FOLDER = Path(__file__).parent
WORKER, CONTROLLER = "ray::RayTrainWorker", "ray::TrainController"


def environment() -> dict[str, str]:
    dropped = ("RAY_", "WANDB_", "PYTHONPATH", "COVERAGE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return kept | {"RAY_AUTH_MODE": "token", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"}


class Driver:
    """A process that runs the stage; ``address`` is the cluster it joins, None starts one of its own."""

    def __init__(self, spec: TrainSpec, folder: Path, address: str | None = None, **environ: str) -> None:
        number = len(list(folder.glob("driver-*.json")))
        path = folder / f"driver-{number:03d}.json"
        path.write_text(json.dumps({"spec": asdict(spec), "address": address, "storage": str(folder)}))
        self.log = path.with_suffix(".log")
        self.process = subprocess.Popen(
            [sys.executable, str(FOLDER / "training_stage.py"), str(path)],
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment() | environ,
        )

    def output(self) -> str:
        return self.log.read_text()

    def running(self) -> bool:
        return self.process.poll() is None

    def finish(self, timeout_s: float = 240.0) -> int:
        """Wait for the end; returns the exit code."""
        try:
            return self.process.wait(timeout_s)
        finally:
            self.kill_all()

    def kill(self) -> None:
        """SIGKILL the driver alone."""
        self.process.kill()
        self.process.wait()

    def kill_all(self) -> None:
        """SIGKILL the driver and all that it started."""
        family = psutil.Process(self.process.pid).children(recursive=True) if self.running() else []
        self.process.kill()
        self.process.wait()
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family, timeout=20)


@contextlib.contextmanager
def two_nodes(cpus: int) -> Iterator[subprocess.Popen[str]]:
    """The process of `two_nodes.py`, with the cluster's address as ``address``."""
    with tempfile.TemporaryDirectory(prefix="ra", dir="/tmp") as short, open(Path(short) / "log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, str(FOLDER / "two_nodes.py"), str(cpus)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment(),
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            answer = process.stdout.readline().split()
            assert answer[:1] == ["address"], (Path(short) / "log").read_text()[-3000:]
            process.address = answer[1]  # type: ignore[attr-defined]
            yield process
        finally:
            family = psutil.Process(process.pid).children(recursive=True)
            with contextlib.suppress(BrokenPipeError, subprocess.TimeoutExpired):
                command(process, "stop")
                process.wait(20)
            process.kill()
            process.wait()
            for member in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()


def command(nodes: subprocess.Popen[str], text: str) -> None:
    """Tell the cluster's process to do something, and wait until it is done."""
    assert nodes.stdin is not None
    assert nodes.stdout is not None
    nodes.stdin.write(text + "\n")
    nodes.stdin.flush()
    nodes.stdout.readline()


def processes(root: int, title: str) -> list[psutil.Process]:
    """Ray's processes of one title below a process, the newest last."""
    found = []
    for child in psutil.Process(root).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if " ".join(child.cmdline()).startswith(title):
                found.append((child.create_time(), child.pid, child))
    return [child for _, _, child in sorted(found)]


def last_step(spec: TrainSpec) -> int:
    """The highest step in the run directory's metrics now; a resume cuts them back to its checkpoint."""
    try:
        lines = (Path(spec.run_dir) / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return 0
    for line in reversed(lines):
        if line.endswith(b"\n") and b'"train"' in line:
            return int(json.loads(line)["step"])
    return 0


def await_step(spec: TrainSpec, step: int, driver: Driver, timeout_s: float = 180.0) -> None:
    """Wait until the metrics reach a step.

    Raises:
        AssertionError: when the driver ends before that, or it takes too long.
    """
    deadline = time.monotonic() + timeout_s
    while last_step(spec) < step:
        assert driver.running(), f"the driver ended before step {step}:\n{driver.output()[-4000:]}"
        assert time.monotonic() < deadline, f"step {step} was not reached:\n{driver.output()[-4000:]}"
        time.sleep(0.02)


def attempts(driver: Driver) -> int:
    """How often this driver has said that it goes on."""
    return driver.output().count(" goes on from ")
