"""The whole analysis on runs whose truth is known, and its files."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import ArtifactError
from pipeline.study.analyse import COMPARED, TESTED, analyse
from pipeline.study.export import as_json
from pipeline.study.measures import MEASURES
from pipeline.study.plots import draw
from pipeline.study.results import Matched, Row, Study
from pipeline.study.runs import StudyRun
from pipeline.study.show import as_markdown, settings_table
from pipeline.study.write import FILES, write

sys.path.insert(0, str(Path(__file__).parent))
import made

FILMS, SAMPLES, SEEDS = 20, 4, 3
MILD, BOLD = 1e-3, 4e-3


def run(gain: float, drift: float, seed: int, method: str = "dpo", **options: Any) -> StudyRun:
    """Scores that films, seeds and luck share between settings, so that differences are the gains but for a little."""
    rng = np.random.default_rng(seed)
    common = np.random.default_rng(99).normal(scale=0.2, size=(FILMS, SAMPLES))
    scores = common + 0.05 * rng.normal(size=(FILMS, SAMPLES)) + gain
    films = 0.05 * np.random.default_rng(98).normal(size=FILMS)
    return made.made_run(scores, drift * np.exp(films + 0.01 * rng.normal()), method, seed=seed, **options)


TRUTH: list[tuple[float, float, str, dict[str, Any]]] = [
    (0.0, 1.0, "dpo", {"lr": BOLD, "beta": 1.0}),
    (0.2, 4.0, "dpo", {"lr": BOLD, "beta": 0.1}),
    (0.3, 16.0, "dpo", {"lr": BOLD, "beta": 0.03}),
    (0.1, 2.0, "dpo", {"lr": MILD}),  # on the front
    (0.2, 2.0, "ra_dpo2", {"lr": BOLD, "level": 0.97}),  # 0.1 above it at the same drift, 2 nats before it at the mean
    (0.2, 2.0, "ra_dpo2", {"lr": MILD, "level": 0.97, "seconds": None}),
    (0.1, 0.1, "ra_dpo2", {"lr": BOLD, "level": 0.5}),  # never so near
    (0.5, 4.0, "ra_dpo2", {"lr": BOLD, "measure": "erm", "level": 5.0}),  # never so good
]


@pytest.fixture(scope="module")
def runs() -> list[StudyRun]:
    return [run(gain, drift, seed, method, **one) for gain, drift, method, one in TRUTH for seed in range(SEEDS)]


@pytest.fixture(scope="module")
def study(runs: list[StudyRun]) -> Study:
    return analyse(runs, resamples=400)


def row(study: Study, label: str, lr: float) -> Row:
    (found,) = [one for one in study.rows if (one.setting.label, one.setting.lr) == (label, lr)]
    return found


def matched(study: Study, axis: Any, label: str, lr: float = BOLD) -> Matched:
    (found,) = [one for one in study.matched[axis] if (one.setting.label, one.setting.lr) == (label, lr)]
    return found


def test_the_table_of_settings(study: Study) -> None:
    found = row(study, "ra_dpo2, cvar 0.97", BOLD)
    assert found.seeds == (0, 1, 2)
    assert found.seconds == 10.0
    assert row(study, "ra_dpo2, cvar 0.97", MILD).seconds is None
    for cell in found.cells.values():
        assert cell.estimate.low is not None
        assert cell.estimate.high is not None
        assert cell.estimate.low - 1e-9 <= cell.estimate.value <= cell.estimate.high + 1e-9
    assert found.cells["drift"].deviation is not None
    assert found.cells["drift"].deviation > 0
    assert found.cells["drift"].estimate.value == pytest.approx(2.0, rel=0.1)
    assert len(study.rows) == len(TRUTH)
    assert set(found.cells) == {one.name for one in MEASURES}


def test_a_value_is_the_mean_over_seeds_and_a_run_keeps_its_own(study: Study) -> None:
    found = row(study, "dpo", BOLD)
    own = [one.values for one in study.runs if one.setting == found.setting]
    for name, cell in found.cells.items():
        values = [one[name] for one in own]
        assert cell.estimate.value == pytest.approx(np.mean(values))
        assert cell.deviation == pytest.approx(np.std(values, ddof=1), abs=1e-12)
    assert len(study.runs) == len(TRUTH) * SEEDS


def test_the_difference_is_from_dpo_at_the_same_rate(study: Study) -> None:
    """Scores of a seed differ by the gains alone: 0 at the bold rate and 0.1 at the mild one, without any chance."""
    for lr, gain in ((BOLD, 0.0), (MILD, 0.1)):
        assert row(study, "dpo", lr).cells["mean"].difference is None
        for name in ("mean", "tail"):
            found = row(study, "ra_dpo2, cvar 0.97", lr).cells[name].difference
            assert found is not None
            assert (found.value, found.low, found.high) == pytest.approx((gain, gain, gain), abs=1e-9)
    found = row(study, "dpo, beta 0.03", BOLD).cells["mean"].difference
    assert found is not None
    assert found.value == pytest.approx(0.1)


def test_at_the_same_drift(study: Study) -> None:
    """dpo has half the way from 0 to 0.2 at 2 nats, so ra_dpo2 is 0.1 better on average and in the tail."""
    found = matched(study, "drift", "ra_dpo2, cvar 0.97")
    assert found.reason is None
    assert found.outside == 0.0
    assert set(found.differences) == set(COMPARED["drift"])
    for name in ("mean", "tail"):
        assert found.differences[name].estimate.value == pytest.approx(0.1, abs=1e-6)
        assert found.differences[name].by_seed == pytest.approx([0.1] * SEEDS, abs=1e-6)
    assert all(one.setting.method != "dpo" for one in study.matched["drift"]), "its settings are the front"
    assert found.differences["bits_per_byte"].estimate.value == 0.0


def test_at_the_same_mean(study: Study) -> None:
    """dpo needs 4 nats for a gain of 0.2, ra_dpo2 2; where all that differs is the mean, the same mean has one tail."""
    found = matched(study, "mean", "ra_dpo2, cvar 0.97")
    assert set(found.differences) == set(COMPARED["mean"])
    assert found.differences["drift"].estimate.value == pytest.approx(-2.0, rel=0.1)
    assert found.differences["tail"].estimate.value == pytest.approx(0.0, abs=1e-6)


def test_settings_that_the_front_never_meets(study: Study) -> None:
    for axis, label in (("drift", "ra_dpo2, cvar 0.5"), ("mean", "ra_dpo2, erm 5")):
        found = matched(study, axis, label)
        assert found.reason is not None
        assert found.reason.startswith(f"{axis} 0.")
        assert found.differences == {}


def test_the_family_is_what_was_fixed(study: Study) -> None:
    """Tail and incidents of the three matched settings that are not dpo; the smallest p is multiplied by six."""
    for axis in COMPARED:
        tested = {
            (one.setting.label, one.setting.lr, name): (difference.p, difference.corrected)
            for one in study.matched[axis]
            for name, difference in one.differences.items()
            if difference.corrected is not None
        }
        labels = {(label, lr) for label, lr, _ in tested}
        other = "ra_dpo2, erm 5" if axis == "drift" else "ra_dpo2, cvar 0.5"
        assert labels == {("ra_dpo2, cvar 0.97", BOLD), ("ra_dpo2, cvar 0.97", MILD), (other, BOLD)}
        assert {name for _, _, name in tested} == set(TESTED)
        smallest = min(tested.values())
        assert smallest[1] == pytest.approx(min(1.0, 6 * smallest[0]))
    assert matched(study, "drift", "ra_dpo2, cvar 0.97").differences["tail"].p == pytest.approx(2 / 401)


def test_how_far_a_straight_line_misses_the_front(study: Study) -> None:
    """The front: gains of 0, 0.1, 0.2 and 0.3 at 1, 2, 4 and 16 nats. 4 is a third of the way from 2 to 16 by
    logarithms, where the line has 0.1 + 0.2 / 3, the point 0.2; at the mean 0.2 the line has 9 nats. 2 is halfway from
    1 to 4, where the line has 0.1 too; at the mean 0.1 it has 2.5 nats. The ends have no neighbours."""
    bends = {axis: {one.setting.lr: one.differences for one in study.bends[axis]} for axis in COMPARED}
    assert set(bends["drift"]) == set(bends["mean"]) == {MILD, BOLD}
    assert bends["drift"][BOLD]["mean"].estimate.value == pytest.approx(0.1 / 3, abs=0.003)
    assert bends["drift"][MILD]["mean"].estimate.value == pytest.approx(0.0, abs=0.003)
    assert bends["mean"][BOLD]["drift"].estimate.value == pytest.approx(4 - 9, rel=0.05)
    assert bends["mean"][MILD]["drift"].estimate.value == pytest.approx(2 - 2.5, rel=0.1)
    assert all(one.corrected is None for one in bends["drift"][BOLD].values())


def test_the_reference(study: Study) -> None:
    assert study.reference["mean"].value == 0.0
    assert study.reference["bits_per_byte"].value == pytest.approx(1.9)


def test_equal_runs_give_equal_figures_in_any_order(runs: list[StudyRun], study: Study) -> None:
    assert analyse(runs[::-1], resamples=400) == study
    assert analyse(runs, resamples=400, seed=1) != study


def test_one_seed_has_no_deviation_and_one_point_is_a_front_at_its_own_drift_only(runs: list[StudyRun]) -> None:
    bold = [one for one in runs if one.options["loss.beta"] == 0.1 and one.options["train.optim.lr"] == BOLD]
    found = analyse([one for one in bold if one.seed == 0], resamples=50)
    assert found.rows[0].cells["mean"].deviation is None
    at = row(found, "dpo", BOLD).cells["drift"].estimate.value
    for one in found.matched["drift"]:
        assert (one.reason is None) == (one.at.value == at)
    as_markdown(found)


def test_the_tables(study: Study) -> None:
    text = as_markdown(study)
    assert "conditional on one reference model and one split" in text
    assert "20 prompts with 4 samples each and 20 pairs of 20 films (test), 3 training seeds" in text
    assert "no match: drift 0.1" in text
    assert "(6 tests)" in text
    assert "| reference |  | " in text
    assert text.count("| bend of the front: dpo | 0.004 | ") == 2
    assert settings_table(study, ["drift"]).splitlines()[0] == "| setting | rate | KL on chosen, nats | seconds |"
    lines = text.splitlines()
    tables = [lines[i - 1 : i + 2] for i, line in enumerate(lines) if line.startswith("| ---")]
    assert len(tables) == 5
    for head, rule, first in tables:
        assert head.count("|") == rule.count("|") == first.count("|")


def test_the_files(study: Study, tmp_path: Path) -> None:
    there = tmp_path / "new" / "study"
    write(study, there)
    assert sorted(path.name for path in there.iterdir()) == sorted(FILES)
    assert json.loads((there / "study.json").read_text()) == json.loads(json.dumps(as_json(study), allow_nan=False))
    with (there / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(study.runs)
    assert rows[0].keys() >= {"loss.method", "train.seed", "drift", "tail", "align_seconds"}
    first = study.runs[0]
    assert float(rows[0]["drift"]) == first.values["drift"]
    assert {one["risk.level"] for one in rows if one["loss.method"] == "dpo"} == {""}
    assert [path.name for path in there.parent.iterdir()] == ["study"]


def test_files_of_an_earlier_study_are_replaced_and_others_stay(study: Study, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "settings.md").write_text("old")
    write(study, tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "settings.md").read_text() == as_markdown(study)


def test_a_study_that_cannot_be_written(study: Study, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot be written"):
        write(study, tmp_path / "file" / "study")


def test_the_figure_is_the_same_again(study: Study) -> None:
    image = draw(study)
    assert image.startswith(b"\x89PNG")
    assert draw(study) == image
    assert draw(replace(study, rows=study.rows[:-1])) != image


def test_nothing_heavy_is_imported() -> None:
    """Reading, analysing and writing a study need neither torch nor a cluster."""
    code = (
        "import sys, pipeline.study.runs, pipeline.study.write; "
        "print(sorted({'torch', 'ray', 'deepspeed', 'transformers'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
