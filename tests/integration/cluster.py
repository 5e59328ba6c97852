"""A real Ray cluster of two nodes on this machine, started by the shipped script. Not a test: shared by the tests of
this folder."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import job
import psutil

SCRIPT = job.ROOT / "clusters" / "two-node.sh"


def free_port() -> int:
    """A free port outside the range in which Ray's workers listen."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port >= 20000:
            return port


def environment(home: Path) -> dict[str, str]:
    """Of the client of a cluster whose head node lives in ``home``."""
    ours = job.environment()
    return ours | {
        "HOME": str(home),
        "PORT": str(free_port()),
        "DASHBOARD_PORT": str(free_port()),
        "PATH": f"{Path(sys.executable).parent}:{ours['PATH']}",
    }


@contextlib.contextmanager
def two_nodes(base: Path, head: Mapping[str, str], worker: Mapping[str, str], hidden: bool = False) -> Iterator[None]:
    """Two nodes with one CPU each, whose environments are given.

    Args:
        base: a short path, below which all of them lie: Ray puts sockets there, and their names have a limit.
        hidden: let neither node see the other's HOME, where this process may do that.
    """
    nodes = []
    try:
        for name, own, other, arguments in (
            ("head", head, worker, ["head"]),
            ("worker", worker, head, ["worker", "127.0.0.1"]),
        ):
            log = base / f"{name}.log"
            # A port of its own: without it, another cluster's node on this machine may have the agent's.
            options = {"num-cpus": 1, "temp-dir": base / f"ray-{name}", "dashboard-agent-listen-port": free_port()}
            command = [str(SCRIPT), *arguments, "--block", *(f"--{key}={value}" for key, value in options.items())]
            if hidden and can_hide():
                # In a namespace of its own for mounts, an empty file system lies over what is the other node's.
                mount = f"mount -t tmpfs none {shlex.quote(other['HOME'])}"
                command = ["unshare", "--mount", "sh", "-c", f"{mount} && exec {shlex.join(command)}"]
            with log.open("w") as output:
                nodes.append(
                    subprocess.Popen(
                        command, env=dict(own), stdout=output, stderr=subprocess.STDOUT, start_new_session=True
                    )
                )
            deadline = time.monotonic() + 60
            while "--block" not in log.read_text():
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            if name == "head" and worker["HOME"] != head["HOME"]:  # as a person copies it to every other machine
                (Path(worker["HOME"]) / ".ray").mkdir(exist_ok=True)
                shutil.copy(Path(head["HOME"]) / ".ray" / "auth_token", Path(worker["HOME"]) / ".ray")
        yield
    finally:
        for node in reversed(nodes):
            node.send_signal(signal.SIGTERM)
        for node in nodes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                node.wait(timeout=3)
        # Whatever Ray left of this cluster, known by its own temporary directory.
        for process in psutil.process_iter(["cmdline"]):
            if any(str(base) in part for part in process.info["cmdline"] or []):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()


def can_hide() -> bool:
    """Whether a process may have mounts of its own."""
    return shutil.which("unshare") is not None and not subprocess.run(["unshare", "--mount", "true"]).returncode


def submit(environment: Mapping[str, str], *arguments: str, timeout_s: float = 280.0) -> tuple[int, str]:
    """Submit a job by the script; returns its exit code and output."""
    done = subprocess.run(
        [str(SCRIPT), "submit", *arguments],
        env=dict(environment),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr
