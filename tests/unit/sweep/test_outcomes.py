from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from sweep_files import base_run

from pipeline.recipes import load_recipe, resolve
from pipeline.storage import Folder, folder_at
from pipeline.sweep.outcomes import Outcome, TrialFiles, last_error, settled


def test_the_run_is_a_recipe_for_itself(tmp_path: Path) -> None:
    files, run = TrialFiles(Folder(tmp_path), "made", 7), base_run(loss={"beta": 0.3})
    files.prepare(run)
    assert resolve(load_recipe(str(files.recipe)), {}) == run
    assert "sweep" not in files.recipe.read_text()


def test_an_outcome_is_kept_whole_or_not_at_all(tmp_path: Path) -> None:
    files = TrialFiles(Folder(tmp_path), "made", 0)
    assert files.outcome() is None
    files.prepare(base_run())
    summary = tmp_path / "summary.json"
    summary.write_text("{}")
    done = Outcome("finished", None, 3.5, str(summary))
    files.put(done)
    assert TrialFiles(Folder(tmp_path), "made", 0).outcome() == done
    whole = (files.folder / "outcome.json").read_text()
    for length in range(len(whole)):
        (files.folder / "outcome.json").write_text(whole[:length])
        assert files.outcome() is None


def test_a_kill_while_an_outcome_is_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, before = TrialFiles(Folder(tmp_path), "made", 0), Outcome("stopped early", "behind", 3.5, None)
    files.prepare(base_run())
    files.put(before)
    written = Path.write_text

    def killed(path: Path, text: str, **options: Any) -> int:
        written(path, text[: len(text) // 2], **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        files.put(Outcome("failed", "another", 1.0, None))
    monkeypatch.undo()
    assert files.outcome() == before
    files.put(Outcome("failed", "another", 1.0, None))
    assert files.outcome() == Outcome("failed", "another", 1.0, None)
    assert sorted(path.name for path in files.folder.iterdir()) == ["made.yaml", "outcome.json"]


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"null", b"3", b'"finished"', b"{}", b'{"state": "finished"}', b"\xff", b'{"state": "x", "y": 1}'],
)
def test_a_file_that_is_no_outcome(tmp_path: Path, content: bytes) -> None:
    files = TrialFiles(Folder(tmp_path), "made", 0)
    files.prepare(base_run())
    (files.folder / "outcome.json").write_bytes(content)
    assert files.outcome() is None
    assert settled([files]) == [None]


@settings(deadline=None)
@given(st.text(), st.floats(0, 1e9))
def test_any_reason_comes_back(tmp_path_factory: pytest.TempPathFactory, reason: str, seconds: float) -> None:
    files = TrialFiles(Folder(tmp_path_factory.mktemp("sweep")), "made", 12345)
    files.prepare(base_run())
    files.put(Outcome("failed", reason, seconds, None))
    assert files.outcome() == Outcome("failed", reason, seconds, None)
    assert json.loads((files.folder / "outcome.json").read_text(encoding="utf-8"))["state"] == "failed"


def test_a_result_that_is_gone_is_no_outcome(tmp_path: Path) -> None:
    files = TrialFiles(Folder(tmp_path), "made", 0)
    files.prepare(base_run())
    files.put(Outcome("finished", None, 3.5, str(tmp_path / "gone.json")))
    assert files.outcome() is None


def test_what_failed_is_tried_again_and_what_was_ended_early_is_not(tmp_path: Path) -> None:
    files = [TrialFiles(Folder(tmp_path), "made", number) for number in range(3)]
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
    log.write_bytes(b"\xff\xfe error: \xff is no text\n")
    assert last_error(log) == "\ufffd is no text"
    log.write_text("error: too long ago\n" + "noise\n" * 9_000)
    assert last_error(log) == f"it ended without a word; its output is {log}"
    log.write_text("Killed\n")
    assert last_error(log) == f"it ended without a word; its output is {log}"


def test_an_outcome_reaches_another_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial's process may be on any node, and the next call of the sweep too."""
    where = f"memory://{tmp_path.name}/sweeps/made"
    monkeypatch.setenv("RA_DPO_SCRATCH", str(tmp_path / "driver"))
    files, run = TrialFiles(folder_at(where), "made", 7), base_run(loss={"beta": 0.3})
    files.prepare(run)
    monkeypatch.setenv("RA_DPO_SCRATCH", str(tmp_path / "other"))
    there = folder_at(files.where)
    assert resolve(load_recipe(str(there.fetch("made.yaml"))), {}).loss.beta == 0.3
    (there.path / "output.log").write_text("error: the loss is not finite\n")
    there.send("output.log")
    assert files.last_error() == "the loss is not finite"
    files.put(Outcome("failed", files.last_error(), 1.0, None))
    assert TrialFiles(folder_at(where), "made", 7).outcome() == Outcome("failed", "the loss is not finite", 1.0, None)
    gone = TrialFiles(folder_at(where), "made", 8)
    gone.folder.mkdir(parents=True)
    gone.put(Outcome("finished", None, 1.0, f"{where}/gone.json"))
    assert gone.outcome() is None, "its result is not there"
    assert files.log == f"{where}/trials/0007/output.log"
