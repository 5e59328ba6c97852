"""A training stage under Ray: what dies is started again, what is wrong is not."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
import stages
import training_runs as runs
from training_runs import Job, Material

STEPS = {"max_steps": 40, "checkpoint": {"every_steps": 5}, "eval_every_steps": 1000}


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory, built_model: Path) -> Material:
    return runs.prepare(tmp_path_factory.mktemp("stage"), built_model)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_killed_worker_changes_no_byte(material: Material, tmp_path: Path) -> None:
    """In one training; a torn snapshot of Ray Train and a stale lock of an extension's build lie in its way."""
    spec = material.spec("killed", **STEPS)
    torn = tmp_path / "ray_train" / spec.name / "checkpoint_manager_snapshot.json"
    torn.parent.mkdir(parents=True)
    torn.write_text('{"checkpoint_resu')
    lock = tmp_path / "extensions" / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir(parents=True)
    lock.write_text("")
    surroundings = {"TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions")}
    driver = stages.Driver(spec, tmp_path, **surroundings)
    try:
        stages.await_step(spec, 12, driver)
        stages.processes(driver.process.pid, stages.WORKER)[-1].kill()
        assert driver.finish() == 0, driver.output()[-4000:]
        assert stages.attempts(driver) == 1
    finally:
        driver.kill_all()
    undisturbed = material.spec("undisturbed", **STEPS)
    runs.run_ranks([Job(undisturbed)], 2, material.root)
    assert runs.weights_digest(spec) == runs.weights_digest(undisturbed)
    ours, theirs = (Path(one.out_dir) / "metrics.jsonl" for one in (spec, undisturbed))
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.long
@pytest.mark.timeout(200)
def test_what_would_only_fail_again_is_not_tried_again(material: Material, tmp_path: Path) -> None:
    """A table of tokens that cannot be read."""
    spec = material.spec("faulty", **STEPS)
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    (tokens / "train.parquet").write_bytes(b"no parquet")
    driver = stages.Driver(replace(spec, tokens_dir=str(tokens)), tmp_path)
    assert driver.finish() != 0
    assert stages.attempts(driver) == 0, driver.output()
    assert "trying again" not in driver.output()
    assert "train.parquet" in driver.output() or "Parquet" in driver.output(), driver.output()[-3000:]
