"""The schedule's job, as a schedule calls it: real processes on one storage, one after another or at once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))
import job
import year
from conftest import FinishedRun

from pipeline.realign.records import Entry, Records
from pipeline.release.line import Line
from pipeline.release.registry import open_registry
from pipeline.storage import open_storage

LENIENT = ["--gate.mean_drop", "none", "--gate.tail_drop", "none", "--gate.max_drift", "none"]
LENIENT += ["--gate.max_repetition_rise", "none", "--gate.min_length", "none", "--gate.max_bits_rise", "none"]
LENIENT += ["--gate.max_incidents", "0.9"]
"""A policy that a tiny run can fulfil with six prompts."""


@dataclass(frozen=True)
class Site:
    """A storage of its own with the artefacts and the registry of a finished run, and data that may grow."""

    recipe: Path
    data: Path
    storage: Path

    def arguments(self, now: str, *options: str) -> list[str]:
        return ["--recipe", str(self.recipe), "--storage", str(self.storage), "--now", now, *LENIENT, *options]

    def call(self, now: str, *options: str, code: int = 0, timeout_s: float = 280.0) -> str:
        got, output = job.run(self.arguments(now, *options), timeout_s, "realign.py")
        assert got == code, output
        assert "Traceback" not in output
        return output

    def line(self) -> Line:
        return open_registry(str(self.storage / "registry")).line()

    def entries(self) -> list[Entry]:
        return Records(open_storage(str(self.storage)).place("realign", self.line().name, "records")).entries()

    def grow(self, groups: int, swapped: int = 0) -> None:
        """So many groups of four pairs, and more of them with confused columns."""
        job.write_pairs(self.data, groups + swapped)
        rows: list[dict[str, Any]] = [json.loads(line) for line in self.data.read_text().splitlines()]
        for row in rows[4 * groups :]:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
        self.data.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def site(finished_run: FinishedRun, tmp_path: Path) -> Site:
    storage, data = tmp_path / "runs", tmp_path / "pairs.jsonl"
    shutil.copytree(finished_run.storage, storage)
    values = yaml.safe_load(finished_run.recipe.read_text())
    shutil.copyfile(values["data"]["path"], data)
    values["data"]["path"] = str(data)
    recipe = tmp_path / finished_run.recipe.name
    recipe.write_text(yaml.safe_dump(values))
    return Site(recipe, data, storage)


@pytest.mark.timeout(300)
def test_the_first_call_takes_what_is_there_and_the_next_finds_nothing_to_do(site: Site) -> None:
    assert "no call of jobs/realign.py has left a record yet" in site.call("2026-01-05", "--list")
    assert "the first one would be made" in site.call("2026-01-05", "--dry-run")
    output = site.call("2026-01-05")
    assert "record 1: first alignment" in output
    assert "version 1: PROMOTE, production: version 0 -> 1" in output
    assert "Ray on this machine" not in output, "what jobs/align.py made is there"
    output = site.call("2026-01-12")
    assert "record 2: nothing to do" in output
    assert "Ray on this machine" not in output
    first, second = site.entries()
    assert first.end is not None
    assert first.end["release"]["version"] == 1
    assert second.first["now"] == "2026-01-12T00:00:00+00:00"
    trail = site.line().trail
    assert [trail.read(number).event.fence for number in trail.numbers()[-2:]] == [1, 2]

    # Looking changes nothing.
    site.grow(50)
    preview = site.call("2026-01-19", "--dry-run")
    assert "200 pairs in the data, 40 of them new, 0 held" in preview
    assert "would first measure the accuracy of version 1 on 40 new pairs" in preview
    few = site.call("2026-01-19", "--realign.min_batch_pairs", "50")
    assert "40 new pair(s) wait for 100" in few
    assert "record 3: nothing to do" in few
    listed = site.call("2026-01-19", "--list")
    assert listed.count("nothing to do") == 2
    assert "first alignment" in listed

    # On an empty mount point no other line begins, whatever has become of the data.
    (site.storage / "registry").rename(site.storage / "elsewhere")
    assert "mount or restore the registry" in site.call("2026-01-26", code=1)
    assert not (site.storage / "registry").exists()


@pytest.mark.timeout(120)
def test_what_is_wrong_is_said_once_and_recorded(site: Site) -> None:
    assert "--now: 'monday' is no time" in site.call("monday", code=2)
    assert "registry.enabled is false" in site.call("2026-01-05", "--registry.enabled", "false", code=2)
    site.call("2026-01-05")
    assert "--accept: 'abc' names no single held batch; held are: none" in site.call(
        "2026-01-12", "--accept", "abc", code=2
    )
    good = site.data.read_bytes()
    site.data.write_bytes(b"")
    assert "holds no rows" in site.call("2026-01-12", code=1)
    assert "there is no line" in site.call("2026-01-12", "--registry.line", "0123abcd", code=1).replace(
        "are no", "is no"
    )
    site.data.write_bytes(good)
    assert "record 4: nothing to do" in site.call("2026-01-12")
    assert [entry.outcome for entry in site.entries()] == ["first alignment", "failed", "failed", "nothing to do"]
    assert "holds no rows" in str((site.entries()[2].end or {})["error"])


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_swapped_batch_is_held_accepted_and_used(site: Site) -> None:
    site.call("2026-01-05")
    site.grow(45)
    assert "record 2: nothing to do" in site.call("2026-01-12")
    site.grow(45, swapped=10)
    output = site.call("2026-01-19")
    assert "!! HELD: 40 pairs (batch " in output
    assert "measured 60 new pairs, held 40 pairs" in output
    digest = output.partition("(batch ")[2].partition(",")[0]
    output = site.call("2026-03-01")
    assert "!! HELD" in output, "said until a person does something"
    assert "record 4: evaluated" in output
    assert "Keep: what is in production does not demonstrably break the policy." in output
    output = site.call("2026-03-02", "--accept", digest[:6], "--realign.min_new_pairs", "60")
    assert "was accepted by a person" in output
    assert "record 5: re-aligned" in output
    assert "taken over" in output, "only new pairs pass the reference"
    assert "!! HELD" not in output
    assert "nothing to do" in site.call("2026-03-03")
    assert job.run(["verify", "--storage", str(site.storage)], script="registry.py")[0] == 0


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_holder_that_was_suspended_changes_nothing(site: Site, tmp_path: Path) -> None:
    """It sleeps longer than its lease lasts, another call does the work, and it wakes up: its token is too old."""
    site.call("2026-01-05")
    site.grow(70)
    log = tmp_path / "suspended.log"
    sleeper = job.start(site.arguments("2026-01-12"), log, "realign.py")
    try:
        deadline = time.monotonic() + 240
        while "> align  started" not in log.read_text():
            assert sleeper.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        os.killpg(sleeper.pid, signal.SIGSTOP)
        before = site.line().alias("production")
        output = site.call("2026-01-13", "--loss.beta", "0.3")
        assert "it was interrupted" in output
        assert "re-aligned" in output
        after = site.line().alias("production")
        assert after != before
        records = len(site.line().trail.numbers())
    finally:
        os.killpg(sleeper.pid, signal.SIGCONT)
        code = sleeper.wait(timeout=300)
    assert code == 1, log.read_text()
    assert "taken over" in log.read_text()
    assert site.line().alias("production") == after
    decided = [site.line().trail.read(number).event.kind for number in site.line().trail.numbers()[records:]]
    assert "decided" not in decided, "at most the version is registered"
    first, overtaken, other = site.entries()
    assert (first.outcome, overtaken.outcome) == ("first alignment", "interrupted")
    assert overtaken.late is not None
    assert overtaken.late["outcome"] == "failed"
    assert other.outcome.endswith("re-aligned")


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_the_setting_is_chosen_anew_before_a_realignment(site: Site) -> None:
    site.call("2026-01-05")
    site.grow(70)
    space = "[{loss.method: [dpo, tdpo2]}]"
    options = ["--realign.pilot", "0.5", "--sweep.space", space, "--sweep.tolerance.allow_decayed", "true"]
    output = site.call("2026-01-12", *options, timeout_s=900)
    assert "pilot: everything on 50% of the training groups" in output
    assert "chosen anew under sweep.tolerance: loss.method" in output
    assert "re-aligned" in output
    chosen = output.partition("chosen anew under sweep.tolerance: loss.method ")[2].split()[0]
    newest = site.line().versions.manifest(site.line().state().versions - 1)
    assert newest.provenance["method"] == chosen
    assert newest.provenance["parents"] == [0]


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_url_is_as_good_as_a_directory(finished_run: FinishedRun, s3_url: str, tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    values = yaml.safe_load(finished_run.recipe.read_text())
    values["data"]["path"] = str(data)
    recipe = tmp_path / finished_run.recipe.name
    recipe.write_text(yaml.safe_dump(values))

    def call(now: str, *options: str) -> str:
        arguments = ["--recipe", str(recipe), "--storage", s3_url, "--now", now, *LENIENT, *options]
        code, output = job.run(arguments, timeout_s=600, script="realign.py")
        assert code == 0, output
        return output

    job.write_pairs(data)
    assert "record 1: first alignment" in call("2026-01-05")
    assert "record 2: nothing to do" in call("2026-01-12")
    job.write_pairs(data, groups=50)
    assert "record 3: measured 40 new pairs, re-aligned" in call("2026-01-19", "--realign.min_new_pairs", "40")
    assert "re-aligned" in call("2026-01-26", "--list")


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_year(tmp_path: Path) -> None:
    assert year.Year(tmp_path).run() == 0
