"""Which run is chosen, what is refused, and what people and machines are told."""

from __future__ import annotations

import io
import itertools
import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from rich.console import Console

from pipeline.errors import EvaluationError
from pipeline.recipes import described
from pipeline.selection.choose import broken, choose, expected_cost, front, nearest, objective
from pipeline.selection.judged import FIGURES, Figure, Run, Setting, differing, read_run, settings_of
from pipeline.selection.show import as_json, command, show
from pipeline.sweep_config import Tolerance

JUDGED_BY = {"evaluation.seeds": [0], "prompts": "p", "reference": "r"}


def run(name: str = "one", decayed: bool = False, seed: int = 0, **figures: Any) -> Run:
    """Figures by name: a value, or (value, low, high)."""
    known = dict.fromkeys(FIGURES, 0.0) | figures
    made = {name: Figure(*one) if isinstance(one, tuple) else Figure(one, one, one) for name, one in known.items()}
    options = {"risk.level": name, "train.seed": seed}
    return Run(Path(f"reports/{name}-{seed}/summary.json"), options, made, decayed, "validation", JUDGED_BY)


def settings(*runs: Run) -> list[Setting]:
    return settings_of(runs)


def figures() -> st.SearchStrategy[dict[str, float]]:
    number = st.floats(-1, 1).map(lambda value: round(value, 2))
    share = st.floats(0, 1).map(lambda value: round(value, 2))
    return st.fixed_dictionaries(
        {"mean": number, "tail": number, "tail_gain": number, "incidents": share, "drift": share}
    )


MANY = st.lists(st.tuples(figures(), st.booleans()), min_size=1, max_size=12)
TOLERANCES = st.builds(
    Tolerance,
    tail_drop=st.none() | st.floats(0, 1),
    max_drift=st.none() | st.floats(0.001, 1),
    max_incidents=st.none() | st.floats(0, 1),
    cost_per_incident=st.none() | st.floats(0, 100),
    allow_decayed=st.booleans(),
)


def made(many: list[tuple[dict[str, float], bool]]) -> list[Setting]:
    return settings(*(run(str(number), decayed, **one) for number, (one, decayed) in enumerate(many)))


class TestChoice:
    @given(MANY, TOLERANCES)
    def test_it_keeps_every_limit_and_nothing_that_does_is_better(self, many: Any, tolerance: Tolerance) -> None:
        there = made(many)
        choice = choose(there, tolerance)
        keeping = [index for index, setting in enumerate(there) if not broken(setting, tolerance)]
        assert (choice.best is None) == (not keeping)
        assert (choice.runner_up is None) == (len(keeping) < 2)
        if choice.best is None:
            return
        assert choice.best in keeping
        for index in keeping:
            if tolerance.cost_per_incident is None:
                assert there[index].figure("mean").value <= there[choice.best].figure("mean").value
            else:
                cost = tolerance.cost_per_incident
                assert expected_cost(there[index], cost) >= expected_cost(there[choice.best], cost) - 1e-6

    @given(MANY, TOLERANCES, st.randoms())
    def test_the_order_does_not_matter(self, many: Any, tolerance: Tolerance, random: Any) -> None:
        there = made(many)
        turned = random.sample(there, len(there))
        first, second = choose(there, tolerance), choose(turned, tolerance)
        assert (first.best is None) == (second.best is None)
        if first.best is not None and second.best is not None:
            ours, theirs = there[first.best], turned[second.best]
            assert ours.figure("drift") == theirs.figure("drift")
            assert ours.figure("mean") == theirs.figure("mean")
        names = [
            {one.runs[0].path for one in (them[index] for index in choice.front)}
            for them, choice in ((there, first), (turned, second))
        ]
        assert names[0] == names[1]

    def test_a_tie_goes_to_less_drift(self) -> None:
        there = settings(run("far", mean=0.2, drift=3.0), run("near", mean=0.2, drift=1.0), run("low", mean=0.1))
        choice = choose(there, Tolerance())
        assert (choice.best, choice.runner_up) == (1, 0)

    def test_limits_are_the_users(self) -> None:
        """The best average drops the tail by 0.03; it is taken when 0.03 is tolerated, and not at 0.02."""
        there = settings(run("bold", mean=0.3, tail_gain=-0.03), run("careful", mean=0.2, tail_gain=-0.01))
        assert choose(there, Tolerance(tail_drop=0.03)).best == 0
        choice = choose(there, Tolerance(tail_drop=0.02))
        assert choice.best == 1
        assert choice.reasons == (("worst outputs 0.03 below the reference's (tail_drop), at most 0.02",), ())

    def test_costs_decide_when_they_are_given(self) -> None:
        """Incidents at 100 each: 5% of 1,000 outputs cost 5,000."""
        there = settings(run("bold", mean=0.3, incidents=0.05), run("careful", mean=0.2, incidents=0.01))
        assert choose(there, Tolerance(cost_per_incident=100)).best == 1
        assert expected_cost(there[0], 100) == 5000
        assert choose(there, Tolerance(cost_per_incident=0)).best == 0

    def test_whole_intervals(self) -> None:
        there = settings(run(drift=(4.0, 3.0, 6.0), incidents=(0.1, 0.0, 0.3), tail_gain=(0.1, -0.2, 0.3)))
        limits: dict[str, Any] = {"max_drift": 5, "max_incidents": 0.2, "tail_drop": 0.1}
        assert broken(there[0], Tolerance(**limits)) == []
        assert broken(there[0], Tolerance(**limits, whole_interval=True)) == [
            "worst outputs up to 0.2 below the reference's (tail_drop), at most 0.1",
            "drift up to 6 nats (max_drift), at most 5",
            "share of incidents up to 0.3 (max_incidents), at most 0.2",
        ]

    def test_more_seeds_do_not_loosen_it(self) -> None:
        """The prompts are the same for all seeds: their agreement is no evidence about other prompts."""
        one = [run("a", seed=0, drift=(4.0, 2.5, 5.5))]
        two = [*one, run("a", seed=1, drift=(4.1, 2.6, 5.4))]
        for runs in (one, two):
            assert broken(settings(*runs)[0], Tolerance(max_drift=5, whole_interval=True))

    def test_what_has_no_interval_is_not_within_limits(self) -> None:
        there = settings(run(drift=(4.0, None, None)))
        assert broken(there[0], Tolerance(max_drift=5)) == []
        assert "no interval" in broken(there[0], Tolerance(max_drift=5, whole_interval=True))[0]

    @pytest.mark.parametrize(
        ("limits", "message"),
        [
            ({"tail_drop": -0.02}, "tail_drop: must be 0 or more, got -0.02"),
            ({"max_drift": float("nan")}, "max_drift: must be a number, got nan"),
            ({"max_drift": float("inf")}, "max_drift: must be a number, got inf"),
            ({"max_drift": 0.0}, "max_drift: must be above 0, got 0"),
            ({"max_incidents": 5}, "max_incidents: must be 1 or less, got 5"),
        ],
    )
    def test_limits_that_are_none(self, limits: dict[str, float], message: str) -> None:
        with pytest.raises(ValidationError) as caught:
            Tolerance(**limits)  # type: ignore[arg-type]
        assert described(caught.value.errors()[0]).startswith(message)

    def test_decay_is_never_tolerated_silently(self) -> None:
        there = settings(run("decayed", decayed=True, mean=1.0), run("sound", mean=0.0))
        assert choose(there, Tolerance()).best == 1
        assert choose(there, Tolerance(allow_decayed=True)).best == 0

    def test_seeds_are_averaged(self) -> None:
        there = settings(run("a", seed=0, mean=0.1), run("b", mean=0.25), run("a", seed=1, mean=0.3))
        assert [len(setting.runs) for setting in there] == [2, 1]
        assert there[0].figure("mean") == Figure(pytest.approx(0.2), 0.1, 0.3)
        assert choose(there, Tolerance()).best == 1


class TestFront:
    @given(MANY)
    def test_nothing_on_it_is_beaten_and_everything_else_is(self, many: Any) -> None:
        there = made(many)
        points = [(*(s.figure(name).value for name in ("mean", "tail")), -s.figure("drift").value) for s in there]
        on_it = front(there)
        assert on_it
        for index, point in enumerate(points):
            better = [
                other for other in points if other != point and all(a >= b for a, b in zip(other, point, strict=True))
            ]
            assert (index in on_it) == (not better)


INFINITE = {"value": float("inf"), "low": None, "high": None}


def summary(**changes: Any) -> dict[str, Any]:
    """A summary.json with what is read of it; ``a__b`` names a place."""
    one = {"value": 0.1, "low": 0.0, "high": 0.2}
    side, gain = ({"mean": one, "tail_mean": one, "incident_share": one} for _ in range(2))
    found: dict[str, Any] = {
        "evaluation": {
            "primary_scorer": "vader",
            "scorers": {"vader": {"policy": side, "difference": gain}},
            "pairs": {"chosen_risk": {"kl": one | {"low": None, "high": None}}, "reward_accuracy": one},
            "split": "validation",
            "prompt_set": "abc",
            "tail_fraction": 0.1,
            "incident_below": -0.5,
            "verdict": {"degenerate": False},
        },
        "artifacts": {"sample_reference": "k" * 32},
        "config": {
            "risk": {"level": 0.5},
            "train": {"seed": 0, "optim": {"lr": 1e-3}},
            "evaluation": {"temperature": 1.0, "cost_per_incident": None},
            "reference": {"root": None},
            "cluster": {"num_workers": 2},
        },
    }
    for place, value in changes.items():
        node = found
        *sections, leaf = place.split("__")
        for section in sections:
            node = node[section]
        node[leaf] = value
    return found


def write(folder: Path, name: str, **changes: Any) -> Path:
    path = folder / name / "summary.json"
    path.parent.mkdir()
    path.write_text(json.dumps(summary(**changes)))
    return path


class TestReading:
    def test_a_summary(self, tmp_path: Path) -> None:
        found = read_run(write(tmp_path, "a"))
        assert found.options == {
            "risk.level": 0.5,
            "train.seed": 0,
            "train.optim.lr": 1e-3,
            "evaluation.temperature": 1.0,
        }
        assert found.figures["mean"] == Figure(0.1, 0.0, 0.2)
        assert found.figures["drift"] == Figure(0.1, None, None)
        assert set(found.figures) == set(FIGURES)
        assert found.recipe == tmp_path / "a" / "run.yaml"
        assert found.storage is None

    def test_gains_are_the_differences_and_not_the_policys_figures(self, tmp_path: Path) -> None:
        more = {"value": 0.3, "low": 0.2, "high": 0.4}
        names = {"mean": "mean_gain", "tail_mean": "tail_gain", "incident_share": "incidents_gain"}
        for place, name in names.items():
            path = write(tmp_path, name, **{f"evaluation__scorers__vader__difference__{place}": more})
            found = read_run(path).figures
            assert found[name] == Figure(0.3, 0.2, 0.4)
            assert [found[other] for other in ("mean", "tail", "incidents")] == [Figure(0.1, 0.0, 0.2)] * 3

    def test_where_it_was_run(self, tmp_path: Path) -> None:
        (tmp_path / "reports").mkdir()
        assert read_run(write(tmp_path / "reports", "a")).storage == tmp_path

    def test_options_that_differ_are_found(self, tmp_path: Path) -> None:
        paths = [
            write(tmp_path, "a"),
            write(tmp_path, "b", config__risk__level=0.9, config__cluster__num_workers=1),
            write(tmp_path, "c", config__risk__level=0.9, config__train__seed=1),
        ]
        there = settings_of([read_run(path) for path in paths])
        assert [len(setting.runs) for setting in there] == [1, 2]
        assert differing(there) == ["risk.level"]

    @pytest.mark.parametrize(
        ("place", "what"),
        [
            ("evaluation__prompt_set", "prompts"),
            ("config__evaluation__temperature", "evaluation.temperature"),
            ("artifacts__sample_reference", "reference"),
        ],
    )
    def test_what_cannot_be_compared_is_refused(self, tmp_path: Path, place: str, what: str) -> None:
        paths = [write(tmp_path, "a"), write(tmp_path, "b", **{place: "other"})]
        with pytest.raises(EvaluationError, match=f"b/summary.json differs from .*a/summary.json in {what}: "):
            settings_of([read_run(path) for path in paths])

    def test_the_same_run_twice(self, tmp_path: Path) -> None:
        path = write(tmp_path, "a")
        with pytest.raises(EvaluationError, match="are the same run"):
            settings_of([read_run(path), read_run(path)])

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("", "is no summary.json of a run: Expecting value"),
            ("[]", "is no summary.json of a run of this version"),
            ("{}", "of this version .KeyError: 'evaluation'"),
            (json.dumps(summary() | {"artifacts": {}}), "of this version .KeyError: 'sample_reference'"),
            (json.dumps(summary(evaluation__pairs__reward_accuracy=INFINITE)), "a figure is not finite"),
        ],
        ids=["empty", "list", "nothing in it", "another version", "infinite"],
    )
    def test_a_file_that_is_none(self, tmp_path: Path, content: str, message: str) -> None:
        path = tmp_path / "summary.json"
        path.write_text(content)
        with pytest.raises(EvaluationError, match=message):
            read_run(path)

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(EvaluationError, match="cannot be read: No such file or directory"):
            read_run(tmp_path / "summary.json")


class TestShown:
    def shown(self, there: list[Setting], tolerance: Tolerance) -> str:
        stream = io.StringIO()
        show(there, choose(there, tolerance), tolerance, Console(file=stream, width=200))
        return stream.getvalue()

    def test_the_choice_and_what_to_run_next(self) -> None:
        there = settings(run("0.5", mean=0.2, tail_gain=-0.1), run("0.9", mean=0.1))
        tolerance = Tolerance(tail_drop=0.05, cost_per_incident=2)
        text = self.shown(there, tolerance)
        assert "Chosen: 0.9-0" in text
        assert "not 0.5-0: worst outputs 0.1 below the reference's (tail_drop), at most 0.05" in text
        following = command(there[1], 2, tolerance)
        assert following in text
        here = Path().absolute()
        expected = f"--recipe {here}/reports/0.9-0/run.yaml --storage {here} --evaluation.split test"
        assert following.startswith(f"python jobs/align.py {expected} --registry.enabled true --risk.reason")
        reason = "the best of 2 settings by the validation split under tail_drop 0.05, cost_per_incident 2.0"
        assert shlex.split(following)[-1] == reason

    def test_nothing_is_chosen(self) -> None:
        text = self.shown(settings(run(tail_gain=-0.1)), Tolerance(tail_drop=0))
        assert "nothing is chosen" in text
        assert "Chosen:" not in text

    def test_a_choice_by_the_test_split_is_warned_of(self) -> None:
        chosen = run()
        there = settings(replace(chosen, split="test"))
        assert "which flatter it" in self.shown(there, Tolerance())

    def test_json(self) -> None:
        there = settings(run("a", mean=0.2), run("b", drift=0.1))
        found = json.loads(json.dumps(as_json(there, choose(there, Tolerance()), Tolerance(max_drift=1))))
        assert (found["chosen"], found["runner_up"], found["front"]) == (0, 1, [0])
        assert found["tolerance"]["max_drift"] == 1
        assert found["settings"][1]["options"] == {"risk.level": "b"}
        assert found["settings"][1]["figures"]["drift"] == {"value": 0.1, "low": 0.1, "high": 0.1}


class TestObjective:
    @given(MANY, TOLERANCES)
    def test_it_puts_the_chosen_first(self, many: Any, tolerance: Tolerance) -> None:
        """Those that keep every limit before those that do not, and among them by what they are chosen by."""
        there = made(many)
        choice = choose(there, tolerance)
        values = [objective(setting, tolerance) for setting in there]
        keeping = [value for value, why in zip(values, choice.reasons, strict=True) if not why]
        breaking = [value for value, why in zip(values, choice.reasons, strict=True) if why]
        if choice.best is not None:
            assert values[choice.best] == max(keeping)
        assert not keeping or not breaking or min(keeping) > max(breaking)

    def test_less_over_a_limit_is_better(self) -> None:
        there = settings(run("far", drift=9.0, mean=1.0), run("near", drift=6.0), run("within", drift=5.0, mean=-1.0))
        far, near, within = (objective(setting, Tolerance(max_drift=5)) for setting in there)
        assert far < near < within
        decayed = settings(run("decayed", decayed=True, mean=1.0), run("decayed and far", decayed=True, drift=9.0))
        alone, worse = (objective(setting, Tolerance(max_drift=5)) for setting in decayed)
        assert worse <= far < near < alone < within
        assert objective(decayed[0], Tolerance(allow_decayed=True)) == 1.0
        both = settings(run("two", drift=6.0, tail_gain=-0.5), run("one", drift=6.0))
        two, one = (objective(setting, Tolerance(max_drift=5, tail_drop=0.1)) for setting in both)
        assert two < one

    @given(st.lists(st.floats(0.1, 100).map(lambda value: round(value, 3)), min_size=2, max_size=6))
    def test_it_falls_with_every_excess(self, drifts: list[float]) -> None:
        limit = Tolerance(max_drift=5)
        values = [(drift, objective(setting, limit)) for drift in drifts for setting in settings(run(drift=drift))]
        over = sorted((drift, value) for drift, value in values if drift > 5)
        for (less, better), (more, worse) in itertools.pairwise(over):
            assert better > worse if more > less else better == worse

    def test_no_cost_is_so_high_that_a_limit_broken_is_better(self) -> None:
        """Three in five outputs at two million each."""
        costly, decayed = settings(run("costly", incidents=0.6), run("decayed", decayed=True))
        tolerance = Tolerance(cost_per_incident=2e6)
        assert objective(costly, tolerance) == pytest.approx(-1.2e9)
        assert objective(costly, tolerance) > objective(decayed, tolerance)

    def test_whole_intervals(self) -> None:
        inside, unknown = settings(run("a", drift=(4.0, 3.0, 6.0)), run("b", drift=(4.0, None, None)))
        assert objective(inside, Tolerance(max_drift=5)) == objective(unknown, Tolerance(max_drift=5)) == 0
        whole = Tolerance(max_drift=5, whole_interval=True)
        assert objective(unknown, whole) < objective(inside, whole) < -1

    def test_the_nearest_misses_break_the_fewest_limits_by_the_least(self) -> None:
        there = settings(
            run("two", drift=5.1, tail_gain=-0.11),
            run("far", drift=9.0),
            run("kept", drift=1.0),
            run("near", tail_gain=-0.12),
        )
        tolerance = Tolerance(max_drift=5, tail_drop=0.1)
        assert nearest(there, choose(there, tolerance), tolerance) == (3, 1, 0)
