from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.artifacts import Store
from pipeline.errors import ArtifactError, DataError
from pipeline.graph import ARTIFACT_FORMAT, Stage, StageContext, execute, plan, up_to

VERSIONS = {"torch": "1"}


class Recorder:
    """Keeps what the graph tells its observer."""

    def __init__(self) -> None:
        self.events: list[tuple[str, ...]] = []

    def of(self, kind: str) -> list[str]:
        return [event[1] for event in self.events if event[0] == kind]

    def stage_started(self, name: str) -> None:
        self.events.append(("started", name))

    def stage_progress(self, name: str, done: float, total: float, note: str = "") -> None:
        self.events.append(("progress", name, f"{done:g}/{total:g} {note}"))

    def stage_finished(self, name: str, seconds: float, note: str = "") -> None:
        self.events.append(("finished", name, note))

    def stage_reused(self, name: str) -> None:
        self.events.append(("reused", name))

    def stage_failed(self, name: str, message: str) -> None:
        self.events.append(("failed", name, message))

    def line(self, text: str) -> None:
        self.events.append(("line", text))


def write(text: str) -> Callable[[StageContext], None]:
    """Work of a stage: its own text after what its inputs hold."""

    def run(context: StageContext) -> None:
        before = "".join((artifact.path / "text").read_text() for artifact in context.inputs.values())
        (context.out_dir / "text").write_text(before + text)

    return run


def diamond(**changes: Any) -> list[Stage]:
    """a -> b, c -> d; ``changes`` replace fields of b."""
    b = dataclasses.replace(Stage("b", 1, write("b"), options={"x": 1}, inputs=("a",), contents={"f": "1"}), **changes)
    return [
        Stage("a", 1, write("a")),
        b,
        Stage("c", 1, write("c"), inputs=("a",)),
        Stage("d", 1, write("d"), inputs=("b", "c")),
    ]


def keys(stages: list[Stage], versions: dict[str, str] = VERSIONS) -> dict[str, str]:
    return {name: item.key for name, item in plan(stages, versions).items()}


def changed(stages: list[Stage]) -> set[str]:
    before, after = keys(diamond()), keys(stages)
    return {name for name in before if before[name] != after[name]}


class TestKeys:
    def test_the_same_description_gives_the_same_keys(self) -> None:
        assert keys(diamond()) == keys(diamond())
        assert len(set(keys(diamond()).values())) == 4

    @pytest.mark.parametrize(
        "change",
        [
            {"options": {"x": 2}},
            {"options": {"x": 1, "y": 0}},
            {"options": {}},
            {"version": 2},
            {"contents": {"f": "2"}},
        ],
    )
    def test_a_change_reaches_the_stage_and_what_follows(self, change: dict[str, Any]) -> None:
        assert changed(diamond(**change)) == {"b", "d"}

    def test_inputs_count(self) -> None:
        assert changed(diamond(inputs=())) == {"b", "d"}
        assert changed(diamond(inputs=("a", "c"))) == {"b", "d"}

    def test_libraries_count_for_every_stage(self) -> None:
        before, after = keys(diamond()), keys(diamond(), {"torch": "2"})
        assert not set(before.values()) & set(after.values())

    def test_what_is_run_does_not_count(self) -> None:
        assert changed(diamond(run=write("other"))) == set()

    def test_the_name_counts(self) -> None:
        assert keys([Stage("a", 1, write(""))])["a"] != keys([Stage("b", 1, write(""))])["b"]

    @given(st.permutations(range(4)))
    def test_the_order_of_stages_does_not_count_and_inputs_come_first(self, order: list[int]) -> None:
        planned = plan([diamond()[i] for i in order], VERSIONS)
        assert {name: item.key for name, item in planned.items()} == keys(diamond())
        names = list(planned)
        assert all(names.index(need) < names.index(name) for name in names for need in planned[name].stage.inputs)

    def test_made_from_says_everything_in_the_key(self) -> None:
        planned = plan(diamond(), VERSIONS)
        assert planned["b"].made_from == {
            "artifact": ARTIFACT_FORMAT,
            "stage": "b",
            "version": 1,
            "options": {"x": 1},
            "libraries": VERSIONS,
            "contents": {"f": "1"},
            "inputs": {"a": planned["a"].key},
        }

    @pytest.mark.parametrize("inputs", [("d",), ("nobody",), ("b",)])
    def test_circular_and_unknown_inputs(self, inputs: tuple[str, ...]) -> None:
        with pytest.raises(ValueError, match="unknown or circular inputs among"):
            plan(diamond(inputs=inputs), VERSIONS)

    def test_a_repeated_name(self) -> None:
        with pytest.raises(ValueError, match="same name"):
            plan([*diamond(), diamond()[0]], VERSIONS)


class TestExecute:
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return Store(str(tmp_path))

    @pytest.fixture
    def seen(self) -> Recorder:
        return Recorder()

    def test_every_stage_sees_its_inputs(self, store: Store, seen: Recorder) -> None:
        result = execute(plan(diamond(), VERSIONS), store, seen)
        assert (result["d"].path / "text").read_text() == "abacd"
        assert sorted(seen.of("finished")) == ["a", "b", "c", "d"]
        assert seen.of("reused") == []

    def test_a_second_run_runs_nothing(self, store: Store, seen: Recorder, tmp_path: Path) -> None:
        first = execute(plan(diamond(), VERSIONS), store, Recorder())
        second = execute(plan(diamond(), VERSIONS), Store(str(tmp_path)), seen)
        assert seen.events == [("reused", name) for name in "abcd"]
        assert first == second

    def test_a_change_runs_what_follows_from_it(self, store: Store, seen: Recorder) -> None:
        execute(plan(diamond(), VERSIONS), store, Recorder())
        result = execute(plan(diamond(version=2, run=write("B")), VERSIONS), store, seen)
        assert (result["d"].path / "text").read_text() == "aBacd"
        assert seen.of("started") == ["b", "d"]
        assert seen.of("reused") == ["a", "c"]

    def test_a_damaged_artefact_is_made_again(self, store: Store, seen: Recorder) -> None:
        first = execute(plan(diamond(), VERSIONS), store, Recorder())
        (first["b"].path / "text").write_text("zz")
        result = execute(plan(diamond(), VERSIONS), store, seen)
        assert (result["b"].path / "text").read_text() == "ab"
        assert seen.of("started") == ["b"]
        assert seen.of("reused") == ["a", "c", "d"]
        [line] = seen.of("line")
        assert line.startswith("b: ")
        assert "text differs from its manifest" in line
        assert "making it again" in line

    def test_independent_stages_overlap(self, store: Store, seen: Recorder) -> None:
        meeting = threading.Barrier(2, timeout=20)  # broken, and so an error, unless both are there at once

        def run(context: StageContext) -> None:
            meeting.wait()

        stages = [Stage(name, 1, run) for name in "bc"]
        assert set(execute(plan(stages, VERSIONS), store, seen)) == {"b", "c"}

    def test_a_stage_waits_for_its_inputs_only(self, store: Store, seen: Recorder) -> None:
        followed = threading.Event()

        def slow(context: StageContext) -> None:
            assert followed.wait(20)

        stages = [
            Stage("slow", 1, slow),
            Stage("quick", 1, write("")),
            Stage("next", 1, lambda context: followed.set(), inputs=("quick",)),
        ]
        execute(plan(stages, VERSIONS), store, seen)
        assert followed.is_set()

    def test_a_failure_commits_nothing_and_stops_what_follows(self, store: Store, seen: Recorder) -> None:
        error = DataError("row 3 is empty")

        def fail(context: StageContext) -> None:
            (context.out_dir / "text").write_text("half")
            raise error

        planned = plan(diamond(run=fail), VERSIONS)
        with pytest.raises(DataError) as caught:
            execute(planned, store, seen)
        assert caught.value is error
        assert ("failed", "b", "row 3 is empty") in seen.events
        assert "d" not in seen.of("started")
        assert not store.exists("b", planned["b"].key)
        assert store.exists("a", planned["a"].key)

    def test_running_again_after_a_failure_goes_on(self, store: Store, seen: Recorder) -> None:
        def fail(context: StageContext) -> None:
            raise DataError("stop")

        with pytest.raises(DataError):
            execute(plan(diamond(run=fail), VERSIONS), store, Recorder())
        result = execute(plan(diamond(), VERSIONS), store, seen)
        assert (result["d"].path / "text").read_text() == "abacd"
        assert "a" in seen.of("reused")

    def test_a_failure_does_not_wait_for_other_stages(self, store: Store, seen: Recorder) -> None:
        end = threading.Event()

        def fail(context: StageContext) -> None:
            raise DataError("stop")

        def long(context: StageContext) -> None:
            end.wait(60)

        try:
            with pytest.raises(DataError):
                execute(plan([Stage("long", 1, long), Stage("fails", 1, fail)], VERSIONS), store, seen)
        finally:
            end.set()

    def test_progress_and_notes_reach_the_observer(self, store: Store, seen: Recorder) -> None:
        def run(context: StageContext) -> None:
            context.progress(1, 2, "rows")
            context.info["note"] = "two rows"

        result = execute(plan([Stage("a", 1, run)], VERSIONS), store, seen)
        assert seen.events == [("started", "a"), ("progress", "a", "1/2 rows"), ("finished", "a", "two rows")]
        assert result["a"].info["note"] == "two rows"

    def test_without_stages(self, store: Store, seen: Recorder) -> None:
        assert execute({}, store, seen) == {}


class TestChecks:
    """b points to something outside the store, which d reads."""

    def planned(self, problem: list[str], read_by: tuple[str, ...] = ("d",), **d: Any) -> Any:
        def check(artifact: Any) -> None:
            assert (artifact.path / "text").read_text() == "ab"
            if problem:
                raise ArtifactError(problem[0])

        a, b, c, last = diamond(check=check, read_by=read_by)
        return plan([a, b, c, dataclasses.replace(last, **d)], VERSIONS)

    def test_what_is_lost_is_made_again_for_who_reads_it(self, tmp_path: Path) -> None:
        store, problem = Store(str(tmp_path)), ["the cache is gone"]
        execute(self.planned([]), store, Recorder())
        seen = Recorder()
        execute(self.planned(problem, version=2), store, seen)
        assert set(seen.of("started")) == {"b", "d"}
        assert any("the cache is gone" in event[1] for event in seen.events if event[0] == "line")

    def test_it_is_not_looked_at_when_its_reader_is_done(self, tmp_path: Path) -> None:
        store = Store(str(tmp_path))
        execute(self.planned([]), store, Recorder())
        seen = Recorder()
        execute(self.planned(["the cache is gone"]), store, seen)
        assert seen.of("started") == []

    def test_it_is_looked_at_when_it_is_what_is_asked_for(self, tmp_path: Path) -> None:
        store = Store(str(tmp_path))
        execute(self.planned([]), store, Recorder())
        seen = Recorder()
        execute(up_to(self.planned(["the cache is gone"]), "b"), store, seen)
        assert seen.of("started") == ["b"]


JOB = """
import sys, time
from pathlib import Path
from pipeline.artifacts import Store
from pipeline.graph import Stage, execute, plan

folder = Path(sys.argv[1])

class Print:
    def __getattr__(self, kind):
        return lambda *what: print(kind, *what, flush=True)

def work(context):
    (folder / "runs").open("a").write("x")
    while not (folder / "go").exists():
        time.sleep(0.01)
    if (folder / "fail").exists():
        (folder / "fail").unlink()
        raise ValueError("once")
    (context.out_dir / "text").write_text("b")

stages = [Stage("a", 1, lambda context: None), Stage("b", 1, work, inputs=("a",))]
execute(plan(stages, {}), Store(str(folder / "store")), Print())
"""


class TestTwoJobs:
    """Two processes need stage b, which takes until there is a file ``go``; the first one has begun it."""

    @pytest.fixture
    def jobs(self, tmp_path: Path) -> Iterator[list[subprocess.Popen[str]]]:
        started: list[subprocess.Popen[str]] = []
        for last in ("stage_started b", "line b: another job computes this"):
            process = subprocess.Popen(
                [sys.executable, "-c", JOB, str(tmp_path)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            started.append(process)
            assert process.stdout is not None
            said = ""
            while not said.startswith(last):
                said = process.stdout.readline()
                assert said, process.communicate()[1]
        assert f"(process {started[0].pid} on " in said
        yield started
        for process in started:
            process.kill()
            process.communicate()

    def finish(self, process: subprocess.Popen[str]) -> list[str]:
        """What it still says; it ends well."""
        said, complaint = process.communicate(timeout=60)
        assert process.returncode == 0, complaint
        return [" ".join(line.split()[:2]) for line in said.splitlines()]

    def test_the_second_takes_what_the_first_makes(self, jobs: list[subprocess.Popen[str]], tmp_path: Path) -> None:
        (tmp_path / "go").touch()
        assert self.finish(jobs[0]) == ["stage_finished b"]
        assert self.finish(jobs[1]) == ["stage_reused b"]
        assert (tmp_path / "runs").read_text() == "x"
        assert list((tmp_path / "store" / "claims").iterdir()) == []

    def test_the_second_goes_on_where_the_first_is_killed(
        self, jobs: list[subprocess.Popen[str]], tmp_path: Path
    ) -> None:
        os.kill(jobs[0].pid, signal.SIGKILL)
        jobs[0].wait()
        deadline = time.monotonic() + 30
        while (tmp_path / "runs").read_text() != "xx":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        (tmp_path / "go").touch()
        assert self.finish(jobs[1]) == ["stage_started b", "stage_finished b"]
        assert list((tmp_path / "store" / "claims").iterdir()) == []

    def test_the_second_goes_on_where_the_first_fails(self, jobs: list[subprocess.Popen[str]], tmp_path: Path) -> None:
        (tmp_path / "fail").touch()
        (tmp_path / "go").touch()
        assert jobs[0].wait(60) == 1
        assert self.finish(jobs[1]) == ["stage_started b", "stage_finished b"]


def test_what_another_job_has_made_meanwhile_is_not_made_again(tmp_path: Path) -> None:
    """Nobody holds it any more when its turn comes: job two looked before job one began."""
    planned, store, seen = plan(diamond(), VERSIONS), Store(str(tmp_path)), Recorder()
    execute(planned, store, Recorder())
    execute(planned, store, seen, have={})
    assert sorted(seen.of("reused")) == ["a", "b", "c", "d"]
    assert seen.of("started") == []


def test_up_to_a_stage_is_it_and_what_it_needs() -> None:
    planned = plan(diamond(), VERSIONS)
    assert list(up_to(planned, "c")) == ["a", "c"]
    assert list(up_to(planned, "a")) == ["a"]
    assert list(up_to(planned, "d")) == list(planned)


def test_a_stage_may_say_a_line(tmp_path: Path) -> None:
    seen = Recorder()
    stage = Stage("a", 1, lambda context: context.say("half of it is there"))
    execute(plan([stage], VERSIONS), Store(str(tmp_path)), seen)
    assert ("line", "a: half of it is there") in seen.events
