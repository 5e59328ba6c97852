"""One trial under Ray Tune: a process that runs the alignment job, watched.

Tune's actor holds no CPU: what a trial needs is asked of Ray by the stages of its own job, one kind at a time
(train workers, or actors), so that trials cannot wait for each other's resources for ever.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray import tune

from pipeline.errors import ArtifactError
from pipeline.places import Place
from pipeline.refusals import STORAGE
from pipeline.storage import folder_at
from pipeline.sweep.outcomes import LOG

DONE_PERCENT = "done_percent"
"""How far a training is, by which trials of different lengths are compared."""
_POLL_S = 0.2
_REMOTE_POLL_S = 2.0
"""Where every look is a request of a store."""
_END_S = 10.0
NEEDS = {"memory": 1e6}
"""What Tune reserves for a trial's actor; an empty reservation is refused by Ray."""


class TrialProcess(tune.Trainable):
    """Reports a row for every validation, and at the end the exit code.

    Its config: ``folder`` (where the trial's files are, a directory or a URL), ``recipe`` (the run's YAML file in it),
    ``storage``, ``metrics`` (where its training shows its metrics, or None when nobody asks for them), ``steps``
    (optimiser steps of the training, about) and ``cwd`` (the sweep's own directory, which the run's relative paths
    start from).
    """

    _job: subprocess.Popen[bytes]
    _began: float

    def setup(self, config: dict[str, Any]) -> None:
        """Start the job."""
        self._start_job(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Start another one in this actor."""
        self._end_job()
        self._start_job(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Wait for the next validation, or for the job's end."""
        while (code := self._job.poll()) is None:
            for row in self._validations():
                self._seen = row["step"]
                return row | {DONE_PERCENT: 100 * row["step"] / self._steps}
            time.sleep(_POLL_S if self._folder.url is None else _REMOTE_POLL_S)
        self._folder.send(LOG)
        return {"done": True, "exit_code": code, "seconds": time.monotonic() - self._began}

    def cleanup(self) -> None:
        """End the job, when Tune ends the trial."""
        self._end_job()
        with contextlib.suppress(ArtifactError, FileNotFoundError):
            self._folder.send(LOG)

    def _start_job(self, config: dict[str, Any]) -> None:
        self._folder = folder_at(config["folder"])
        self._metrics: str | None = config["metrics"]
        self._steps: int = config["steps"]
        self._seen = 0
        self._began = time.monotonic()
        job = [sys.executable, "-m", "pipeline.sweep.leash", "--recipe", str(self._folder.fetch(config["recipe"]))]
        with (self._folder.path / LOG).open("ab") as log:
            self._job = subprocess.Popen(
                [*job, "--storage", config["storage"]],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                # On a node where it is not, the actor is in the job's working directory.
                cwd=config["cwd"] if os.path.isdir(config["cwd"]) else None,
                env=_environment(),
            )

    def _end_job(self) -> None:
        if self._job.poll() is None:
            self._job.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._job.wait(_END_S)
        if self._job.stdin is not None:
            self._job.stdin.close()

    def _validations(self) -> Iterator[dict[str, Any]]:
        """Rows of validations that have not been reported; the file begins anew whenever the training does."""
        if self._metrics is None:
            return
        directory, _, name = self._metrics.rpartition("/")
        with contextlib.suppress(FileNotFoundError):
            for line in Place(directory, STORAGE).read(name).splitlines(keepends=True):
                row = json.loads(line) if line.endswith(b"\n") else {}
                if row.get("split") == "validation" and row["step"] > self._seen:
                    yield row


def _environment() -> dict[str, str]:
    """For a driver of its own, started from inside an actor."""
    import ray

    context = ray.get_runtime_context()
    # Ray hides GPUs from an actor that has none; the job's own workers get theirs from Ray.
    kept = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    repository = str(Path(__file__).resolve().parent.parent.parent)
    found = kept | {
        "RAY_ADDRESS": context.gcs_address,
        "PYTHONPATH": os.pathsep.join(filter(None, (repository, kept.get("PYTHONPATH")))),
    }
    if context.runtime_env:
        # As `ray job submit` hands it to a driver: the trial's workers find the same working directory.
        found["RAY_JOB_CONFIG_JSON_ENV_VAR"] = json.dumps({"runtime_env": dict(context.runtime_env)})
    return found
