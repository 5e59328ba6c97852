from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from sweep_files import base_run

from pipeline.recipes import load_recipe, resolve
from pipeline.sweep.outcomes import Outcome, TrialFiles, last_error, settled


def test_the_run_is_a_recipe_for_itself(tmp_path: Path) -> None:
    files, run = TrialFiles(tmp_path, "made", 7), base_run(loss={"beta": 0.3})
    files.prepare(run)
    assert resolve(load_recipe(str(files.recipe)), {}) == run
    assert "sweep" not in files.recipe.read_text()


def test_an_outcome_is_kept_whole_or_not_at_all(tmp_path: Path) -> None:
    files = TrialFiles(tmp_path, "made", 0)
    assert files.outcome() is None
    files.prepare(base_run())
    summary = tmp_path / "summary.json"
    summary.write_text("{}")
    done = Outcome("finished", None, 3.5, str(summary))
    files.put(done)
    assert TrialFiles(tmp_path, "made", 0).outcome() == done
    torn = (files.folder / "outcome.json").read_text()[:-9]
    (files.folder / "outcome.json").write_text(torn)
    assert files.outcome() is None


def test_a_result_that_is_gone_is_no_outcome(tmp_path: Path) -> None:
    files = TrialFiles(tmp_path, "made", 0)
    files.prepare(base_run())
    files.put(Outcome("finished", None, 3.5, str(tmp_path / "gone.json")))
    assert files.outcome() is None


def test_what_failed_is_tried_again_and_what_was_ended_early_is_not(tmp_path: Path) -> None:
    files = [TrialFiles(tmp_path, "made", number) for number in range(3)]
    early = Outcome("stopped early", "behind", 3.5, None)
    for one, outcome in zip(files, (Outcome("failed", "why", 1.0, None), early), strict=False):
        one.prepare(base_run())
        one.put(outcome)
    assert settled(files) == [None, early, None]


def test_the_last_error_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "output.log"
    assert "cannot be read" in last_error(log)
    log.write_text("> align started\nerror: the first\n" + "noise\n" * 9_000 + "error: the loss\nis not finite\n")
    assert last_error(log) == "the loss\nis not finite"
    log.write_text("Killed\n")
    assert last_error(log) == f"it ended without a word; its output is {log}"
