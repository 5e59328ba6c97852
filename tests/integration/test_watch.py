"""The watch by its command line: a version that a real job has made, logs of its production, and what goes wrong."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import job
from conftest import FinishedRun

from pipeline.digests import unseal
from pipeline.release.line import Line
from pipeline.release.registry import open_registry
from pipeline.storage import open_storage
from pipeline.watch.alerts import Alert, read_alerts

RNG = random.Random(0)


class Site:
    """A registry whose version 1 is in production, and a directory of logs."""

    def __init__(self, finished: FinishedRun, folder: Path) -> None:
        self.folder, self.storage, self.logs = folder, folder / "runs", folder / "logs"
        shutil.copytree(finished.storage / "registry", self.storage / "registry")
        self.logs.mkdir()
        if self.line().alias("production").version == 0:
            self.line().promote("production", 1, expected=0, why="for a test")

    def line(self) -> Line:
        return open_registry(str(self.storage / "registry")).line()

    @property
    def place(self) -> Path:
        return self.storage / "watch" / self.line().name

    def arguments(self, *options: str) -> list[str]:
        return [str(self.logs), "--storage", str(self.storage), *options]

    def watch(self, *options: str, code: int = 0) -> str:
        got, said = job.run(self.arguments(*options), script="watch.py")
        assert got == code, said
        assert "Traceback" not in said
        return said

    def start(self, log: Path, *options: str) -> subprocess.Popen[str]:
        return job.start(self.arguments(*options), log, script="watch.py")

    def state(self) -> dict[str, Any]:
        try:
            return unseal((self.place / "state.json").read_bytes())
        except FileNotFoundError:
            return {"outputs": 0, "epoch": None}

    def compared(self) -> list[dict[str, Any]]:
        parts = sorted((self.place / "comparison").glob("*.jsonl"))
        return [json.loads(row) for part in parts for row in part.read_text().splitlines()]

    def alerts(self) -> list[Alert]:
        return read_alerts(open_storage(str(self.storage)), self.line().name)


@pytest.fixture
def site(finished_run: FinishedRun, tmp_path: Path) -> Site:
    return Site(finished_run, tmp_path)


def rows(count: int, start: int = 0, drifted: bool = False) -> str:
    """Sentences as the version was trained on; drifted: letters without sense."""

    def sentence() -> str:
        words = job.GOOD + job.BAD
        things = [RNG.choice(job.THINGS) for _ in range(2)]
        return f"The {things[0]} is {RNG.choice(words)} and the {things[1]} is {RNG.choice(words)}."

    def row(number: int) -> dict[str, Any]:
        text = "".join(RNG.choices("qxzjv#@%", k=40)) if drifted else sentence()
        return {"prompt": f"What about film {number % 40}?\n", "output": text, "id": f"r{number}"}

    return "".join(json.dumps(row(number)) + "\n" for number in range(start, start + count))


@pytest.fixture
def hook() -> Iterator[tuple[str, list[Any]]]:
    """A webhook and what it was sent."""
    seen: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/hook", seen
    server.shutdown()
    server.server_close()


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str], log: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def test_a_drift_is_found_production_goes_back_and_people_are_told(site: Site, hook: tuple[str, list[Any]]) -> None:
    url, seen = hook
    log = rows(1000) + rows(120, 1000, drifted=True)
    (site.logs / "app.jsonl").write_text(log + 'no json\n{"prompt": "p"}\n{"prompt": "half')
    said = site.watch("--roll_back", "--webhook", url)
    assert "baseline 1 is complete: 10 rules" in said
    assert "ALARM production (version 1): risk is higher than in the baseline" in said
    [alert] = [one for one in site.alerts() if one.rule == "risk-up"]
    assert alert.figures["outputs"] <= 100
    line = site.line()
    assert line.alias("production").version == 0
    record = line.trail.read(line.alias("production").moved_by)
    [first] = [one for one in site.alerts() if one.record is not None]
    assert first.record == record.number
    assert first.id in record.why
    assert alert.action in ("rolled back", "moved already"), "the tail rule may have been faster"
    assert sorted(one["id"] for one in seen) == sorted(one.id for one in site.alerts())
    assert [row["id"] for row in site.compared()] == [f"r{number}" for number in range(1120)]
    assert {name: one["count"] for name, one in site.state()["skipped"].items()} == {
        "malformed: not JSON": 1,
        "malformed: no output": 1,
    }
    page = (site.place / "report.html").read_text()
    assert "Version 1 had raised an alarm and was rolled back" in page
    assert 'ra_dpo_watch_outputs_total{line="' in (site.place / "metrics.prom").read_text()

    again = site.watch()
    assert "Ray" not in again.replace("Ra-DPO", ""), "there is nothing to score"
    assert len(site.compared()) == 1120
    assert len(site.alerts()) == len(seen)


def test_what_cannot_be_watched(site: Site, tmp_path: Path) -> None:
    for arguments, code, said in (
        ([str(tmp_path / "none")], 1, "none is not there; give a JSONL file"),
        ([str(site.logs), "--version", "7"], 1, "there is no version 7"),
        ([str(site.logs), "--alias", "canary"], 1, "there is no version or alias 'canary'"),
        ([str(site.logs), "--roll_back_on", "rsk-up"], 2, "has no rule 'rsk-up'; it has"),
    ):
        got, told = job.run([*arguments, "--storage", str(site.storage)], script="watch.py")
        assert (got, "Traceback" in told) == (code, False), told
        assert said in told


@pytest.mark.long
@pytest.mark.timeout(900)
def test_killed_at_any_moment_it_scores_every_output_once(site: Site, tmp_path: Path) -> None:
    count = 20_000
    (site.logs / "app.jsonl").write_text(rows(count))
    killed = 0
    for number in range(12):
        log, before = tmp_path / f"log-{number}", site.state()["outputs"]
        process = site.start(log)
        try:
            while process.poll() is None and site.state()["outputs"] == before:
                time.sleep(0.05)
            time.sleep(RNG.uniform(0, 3))
            killed += process.poll() is None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if site.state()["outputs"] == count:
            break
    site.watch()
    assert killed >= 2
    assert [row["id"] for row in site.compared()] == [f"r{number}" for number in range(count)]
    assert [row["output"] for row in site.compared()] == list(range(1, count + 1))
    assert site.state()["outputs"] == count


@pytest.mark.long
@pytest.mark.timeout(900)
def test_it_follows_through_rotation_a_lost_registry_and_a_moved_alias(site: Site, tmp_path: Path) -> None:
    path, log = site.logs / "app.jsonl", tmp_path / "log"
    path.write_text(rows(50))
    port = str(20_000 + os.getpid() % 10_000)
    process = site.start(log, "--follow", "--poll_s", "0.2", "--metrics_port", port)

    def outputs(number: int) -> None:
        wait_for(lambda: site.state()["outputs"] == number, process, log)

    try:
        outputs(50)
        path.rename(site.logs / "app.jsonl.1")
        with (site.logs / "app.jsonl.1").open("a") as file:
            file.write(rows(10, 50))
        path.write_text(rows(10, 60))
        outputs(70)

        name, registry = site.place, site.storage / "registry"
        registry.rename(tmp_path / "away")
        wait_for(lambda: "note: the registry: there is no registry" in log.read_text(), process, log)
        with path.open("a") as file:
            file.write(rows(10, 70))
        state = name / "state.json"
        wait_for(lambda: unseal(state.read_bytes())["outputs"] == 80, process, log)
        (tmp_path / "away").rename(registry)

        site.line().roll_back("production", "reference", why="by hand")
        wait_for(lambda: site.state()["epoch"]["version"] == 0, process, log)
        with path.open("a") as file:
            file.write(rows(10, 80))
        outputs(90)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        assert "ra_dpo_watch_registry_failures_total" in text
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert "told to end" in log.read_text()
    assert sorted(row["id"] for row in site.compared()) == sorted(f"r{number}" for number in range(90))
    assert {row["epoch"]: row["version"] for row in site.compared()} == {1: 1, 2: 0}
