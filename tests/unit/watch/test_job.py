"""Turns of the watch's loop: what is committed when, which lines are read. Registry and logs are real."""

import contextlib
import dataclasses
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from watching import logged, rows, score, settings, subject

from pipeline.console import Console
from pipeline.errors import ArtifactError, EvaluationError
from pipeline.release.line import Line
from pipeline.release.registry import open_registry
from pipeline.storage import open_storage
from pipeline.traffic import LogRow
from pipeline.watch import job, logs
from pipeline.watch.scored import Scored
from tests.unit.release import lines

Score = Callable[[Sequence[LogRow]], list[Scored | str]]


class Site:
    """A registry whose production points to version 2, and a log beside it."""

    def __init__(self, folder: Path) -> None:
        lines.begin_with_history(str(folder / "registry"), folder / "made")
        self.storage, self.log = open_storage(str(folder)), folder / "app.jsonl"
        self.log.touch()
        self.said = io.StringIO()

    def line(self) -> Line:
        return open_registry(self.storage.at("registry")).line()

    def write(self, *values: float, start: int = 1) -> None:
        with self.log.open("ab") as file:
            file.writelines(each.text + b"\n" for each in rows(values, start) if each.text is not None)

    @contextlib.contextmanager
    def watching(self, scored: Score, **changes: Any) -> Iterator[job._Job]:
        """A watch that is told to go as far as its test wants; what it did not commit is lost, as by a kill."""
        told = settings(logs=self.log, storage=self.storage.root, **changes)
        with contextlib.ExitStack() as stack:
            console = stack.enter_context(Console(stream=self.said))
            made = job._Job(told, self.storage, self.line(), logs.Logs(self.log), console, stack)
            made._score = scored  # type: ignore[method-assign]
            yield made

    def compared(self) -> list[dict[str, Any]]:
        return logged(self.storage.place("watch", lines.NAME))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    def load(line: Line, version: int, *_: Any) -> Any:
        return subject(version, line=line.name)

    monkeypatch.setattr(job, "load_subject", load)
    return Site(tmp_path)


def killed(rows: Sequence[LogRow]) -> list[Scored | str]:
    if rows:
        raise KeyboardInterrupt
    return []


def test_a_kill_while_the_first_lines_of_a_new_version_are_scored_loses_none(site: Site) -> None:
    """The new baseline is committed at once: lines that were read with it, and not scored, must not count as read."""
    site.write(*[5.0] * 20)

    def moved(rows: Sequence[LogRow]) -> list[Scored | str]:
        # Between two turns: production moves while the first lines are scored, and more are written.
        site.line().roll_back("production", why="by hand")
        site.write(*[5.0] * 20, start=21)
        made._score = killed  # type: ignore[method-assign]
        return score(rows)

    with site.watching(moved) as made, pytest.raises(KeyboardInterrupt):
        made.run()
    assert "watching version 1" in site.said.getvalue()
    with site.watching(score) as made:
        made.run()
    assert [row["id"] for row in site.compared()] == [f"r{number}" for number in range(1, 41)]
    assert [row["version"] for row in site.compared()] == [2] * 20 + [1] * 20


def test_a_line_of_any_length_does_not_end_the_reading(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_MAX_BATCH_BYTES", 1 << 20)
    with site.log.open("ab") as file:
        file.write(b"x" * (5 << 20) + b"\n")
    site.write(1.0, 2.0)
    with site.watching(score) as made:
        made.run()
    assert [row["where"].rpartition(":")[2] for row in site.compared()] == ["2", "3"]


def test_a_baseline_from_a_log_may_be_longer_than_what_is_read_at_once(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "_LINES", 30)
    path = tmp_path / "baseline.jsonl"
    path.write_text("".join(json.dumps({"prompt": "p", "output": str(n % 7)}) + "\n" for n in range(150)))
    site.write(*[3.0] * 5)
    with site.watching(score, baseline=path) as made:
        made.run()
        assert made._watcher.baseline_values()["risk"] == tuple(float(n % 7) for n in range(100))
    assert [row["use"] for row in site.compared()] == ["watched"] * 5


def test_a_slow_model_is_given_less_at_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "_TURN_S", 0.0)
    sizes: list[int] = []

    def counted(rows: Sequence[LogRow]) -> list[Scored | str]:
        sizes.append(len(rows))
        return score(rows)

    site.write(*[1.0, 2.0] * 350)
    with site.watching(counted) as made:
        made.run()
    assert sizes == [512, 64, 64, 60]


def test_a_watch_with_nothing_to_do_writes_nothing(site: Site) -> None:
    site.write(1.0)
    with site.watching(score) as made:
        made.run()
        commit = made._watcher.state.commit
        made._commit()
        assert made._watcher.state.commit == commit


def test_options_that_wait_for_the_next_baseline_are_said(site: Site) -> None:
    with site.watching(score) as made:
        made.run()
    assert "begun with" not in site.said.getvalue()
    with site.watching(score, per_outputs=70) as made:
        made.run()
    assert "baseline 1 was begun with --per_outputs 50, and keeps it" in site.said.getvalue()
    assert dataclasses.asdict(made._watcher.state)["epoch"]["window"] == 50


def test_a_version_that_cannot_be_scored_lets_the_logs_wait(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(line: Line, version: int, *_: Any) -> Any:
        if version == 1:
            raise EvaluationError("its scorer is not installed here")
        return subject(version, line=line.name)

    monkeypatch.setattr(job, "load_subject", load)

    def moved(rows: Sequence[LogRow]) -> list[Scored | str]:
        site.line().roll_back("production", why="by hand")
        site.write(*[6.0] * 5, start=100)
        return score(rows)

    site.write(*[5.0] * 20)
    with site.watching(moved) as watched:
        watched.run()
    assert len(site.compared()) == 20
    assert "its scorer is not installed here; the logs wait" in site.said.getvalue()
    assert "20 outputs scored, 0 rows skipped" in site.said.getvalue()


def test_a_damaged_alert_stops_no_turn(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page is due with every turn, and cannot be made; what was read is scored and committed all the same."""
    monkeypatch.setattr(job, "_PAGE_S", 0.0)
    site.write(*[5.0] * 20)

    def damaged(rows: Sequence[LogRow]) -> list[Scored | str]:
        if rows:
            site.storage.place("watch", lines.NAME, "alerts").write("1-risk-up.json", b"{")
        return score(rows)

    with site.watching(damaged) as watched, pytest.raises(ArtifactError, match=r"1-risk-up\.json .* is damaged"):
        watched.run()
    assert len(site.compared()) == 20
