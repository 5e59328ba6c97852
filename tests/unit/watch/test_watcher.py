"""What a watch makes of lines: baseline, alarms, counts; and that a commit is all or nothing."""

import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from watching import NOW, line, logged, rows, score, subject, watcher

from pipeline.errors import ArtifactError
from pipeline.places import Place
from pipeline.watch import state as states
from pipeline.watch.comparison import Comparison, riskiest
from pipeline.watch.days import DAYS, SAMPLE, Day, forget, risky

RNG = np.random.default_rng(0)
CALM = RNG.normal(5, 1, 400).tolist()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(str(tmp_path / "watch"))


def test_the_first_outputs_are_the_baseline_and_a_drift_after_it_is_found_once(place: Place) -> None:
    said: list[str] = []
    watch = watcher(place, said)
    assert watch.watch(subject())
    watch.take(rows(CALM[:60]), score)
    assert watch.state.epoch is not None
    assert watch.state.epoch.thresholds is None
    watch.commit()
    watch = watcher(place, said)
    assert not watch.watch(subject()), "the baseline goes on after a restart"
    watch.take(rows(CALM[60:120], 61), score)
    assert watch.state.epoch is not None
    assert set(watch.state.epoch.thresholds or ()) == {"risk-up", "vader-down", "risk-tail", "vader-tail"}
    assert watch.baseline_values()["risk"] == tuple(CALM[:100])
    watch.commit()
    watch = watcher(place, said)
    watch.watch(subject())
    watch.take(rows([9.0] * 30 + CALM[120:140] + [9.0] * 50, 121), score)
    alerts = [one.alert for one in watch.state.pending]
    assert [one.rule for one in alerts if one.rule == "risk-up"] == ["risk-up"]
    [alert] = [one for one in alerts if one.rule == "risk-up"]
    assert alert.message.startswith("production (version 1): risk is higher than in the baseline: mean ")
    assert 121 <= int(alert.figures["where"].rpartition(":")[2]) <= 150
    assert alert.figures["id"] == f"r{alert.figures['outputs'] + 100}"
    assert alert.figures["mean_since"] > 7
    assert alert.figures["statistic"] > alert.figures["threshold"]
    assert [row["use"] for row in logged(place)] == ["baseline"] * 100 + ["watched"] * 20
    watch.commit()
    assert [row["output"] for row in logged(place)] == list(range(1, 221))


def test_another_version_begins_another_baseline_and_so_does_a_reason(place: Place) -> None:
    said: list[str] = []
    watch = watcher(place, said)
    watch.watch(subject())
    watch.take(rows(CALM[:120]), score)
    watch.commit()
    assert watch.watch(subject(2))
    assert watch.state.epoch is not None
    assert (watch.state.epoch.number, watch.state.epoch.thresholds, watch.baseline_values()) == (2, None, {})
    watch.commit()
    watch = watcher(place, said, rebaseline="new prompts since Monday")
    assert watch.watch(subject(2))
    watch.commit()
    watch = watcher(place, said, rebaseline="new prompts since Monday")
    assert not watch.watch(subject(2)), "said again it does nothing"


def test_rows_that_are_not_scored_are_counted_by_reason_with_the_first_places(place: Place) -> None:
    watch = watcher(place, [])
    watch.watch(subject())
    lines = [
        *(line(number, "no json") for number in range(1, 6)),
        line(6, None),
        *rows([1.0], 7, version=2),
        *rows([1.0], 8, line="another"),
        *rows([1.0], 9, version=1, line="0123456789abcdef"),
        line(10, '{"prompt": "p", "output": ""}'),
        line(11, '{"prompt": "p", "output": "x", "time": "yesterday"}'),
    ]
    watch.take(lines, score)
    found = {reason: (one.count, one.examples) for reason, one in watch.state.skipped.items()}
    assert found == {
        "malformed: not JSON": (5, ["app.jsonl:1", "app.jsonl:2", "app.jsonl:3"]),
        "longer than 1 MiB": (1, ["app.jsonl:6"]),
        "of another version": (1, ["app.jsonl:7"]),
        "of another line": (1, ["app.jsonl:8"]),
        "output without tokens": (1, ["app.jsonl:10"]),
        "malformed: time is not ISO 8601": (1, ["app.jsonl:11"]),
    }
    assert watch.state.outputs == 1
    assert watch.state.days["2026-11-27"].skipped["malformed: not JSON"] == 5


def test_only_some_outputs_are_tested_when_asked(place: Place) -> None:
    watch = watcher(place, [], every=3)
    watch.watch(subject())
    watch.take(rows(CALM[:9]), score)
    watch.commit()
    assert [row["use"] for row in logged(place)] == ["logged", "logged", "baseline"] * 3


@pytest.mark.parametrize("dies", ["before the part", "between part and state", "after the state"])
def test_a_kill_loses_no_output_and_doubles_none(place: Place, monkeypatch: pytest.MonkeyPatch, dies: str) -> None:
    watch = watcher(place, [])
    watch.watch(subject())
    watch.take(rows(CALM[:30]), score)
    watch.commit()
    watch.take(rows(CALM[30:50], 31), score)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if dies == "between part and state":
            patched.setattr(states, "save", killed)
        if dies != "before the part":
            if dies == "between part and state":
                with pytest.raises(KeyboardInterrupt):
                    watch.commit()
            else:
                watch.commit()
    done = 50 if dies == "after the state" else 30
    watch = watcher(place, [])
    assert watch.state.outputs == done
    watch.watch(subject())
    watch.take(rows(CALM[done:60], done + 1), score)
    watch.commit()
    assert [row["id"] for row in logged(place)] == [f"r{number}" for number in range(1, 61)]
    assert watch.state.gathered["risk"] == CALM[:60]


def test_a_second_watch_is_found_before_anything_is_undone(place: Place) -> None:
    first, second = watcher(place, []), watcher(place, [])
    for one in (first, second):
        one.watch(subject())
        one.take(rows(CALM[:5]), score)
    first.commit()
    with pytest.raises(ArtifactError, match="another watch writes to"):
        second.commit()


def test_a_damaged_state_is_not_begun_anew(place: Place) -> None:
    watcher(place, []).commit()
    data = place.read("state.json")
    place.write("state.json", data.replace(b'"outputs": 0', b'"outputs": 7'))
    with pytest.raises(ArtifactError, match=r"state\.json is damaged: its content differs from its own digest"):
        watcher(place, [])


def test_a_baseline_of_a_log_of_its_own(place: Place) -> None:
    watch = watcher(place, [])
    watch.watch(subject())
    watch.take_baseline(rows(CALM[:150]), score)
    assert watch.baseline_values()["vader"] == tuple(value / 2 for value in CALM[:100])
    watch.take(rows(CALM[150:155]), score)
    watch.commit()
    assert [row["use"] for row in logged(place)] == ["watched"] * 5


def test_parts_are_bounded_and_old_ones_removed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.watch.comparison._PART_BYTES", 300)
    log, today, commits = Comparison(place, "", 0), NOW.date(), []
    for number in range(12):
        log.append({"output": number, "text": "x" * 60})
        commits.append(log.write(today + timedelta(days=number // 6)))
        log.turn(today + timedelta(days=number // 6))
    names = place.names()
    assert [name[:8] for name in names] == ["20261127", "20261127", "20261128", "20261128"]
    assert all((place.size(name) or 0) <= 400 for name in names)
    assert commits[-1][0] == names[-1]
    assert log.forget(today + timedelta(days=3), keep_days=2) == 2
    assert [name[:8] for name in place.names()] == ["20261128"] * 2


def test_a_part_that_lacks_committed_rows_is_refused(place: Place) -> None:
    place.write("20261127-00000001.jsonl", b"{}\n")
    with pytest.raises(ArtifactError, match="lacks rows that were committed"):
        Comparison(place, "20261127-00000001.jsonl", 2)


def test_days_stay_small() -> None:
    day = Day()
    for number in range(3 * SAMPLE):
        day.add({"risk": float(number)}, number / (3 * SAMPLE))
        if day.is_risky(float(number)):
            day.show(risky("a:1", None, 1, "p", ["t"], [float(number)], {"risk": float(number)}))
    assert day.outputs == 3 * SAMPLE
    assert sorted(values["risk"] for _, values in day.sample) == [float(n) for n in range(2 * SAMPLE, 3 * SAMPLE)]
    assert [one.measures["risk"] for one in day.riskiest] == [3 * SAMPLE - 1.0, 3 * SAMPLE - 2.0, 3 * SAMPLE - 3.0]
    assert Day.from_dict(day.as_dict()) == day
    days = {f"2026-11-{number:02d}": Day() for number in range(1, 29)}
    forget(days)
    assert sorted(days) == [f"2026-11-{number:02d}" for number in range(29 - DAYS, 29)]


def test_a_long_output_is_shown_around_its_riskiest_token() -> None:
    risks = [0.0] * 1000
    risks[700] = 3.0
    shown = risky("a:1", None, 1, "x" * 5000, [str(i) for i in range(1000)], risks, {"risk": 3.0})
    assert shown.tokens[0] == "550"
    assert (len(shown.tokens), shown.left_out, len(shown.prompt)) == (300, (550, 150), 600)
    assert riskiest(["a", "b", "c"], [0.0, 2.0, 1.0]) == [(1, "b", 2.0), (2, "c", 1.0)]
