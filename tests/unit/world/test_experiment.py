"""What the README says a level buys, with its exact numbers, and the job from its options to its files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.risk.measures import Measure
from pipeline.world import experiment
from pipeline.world.config import WorldExperiment
from pipeline.world.draw import draw_world
from pipeline.world.evidence import drawn_pairs, every_pair
from pipeline.world.experiment import beside, fronts_of
from pipeline.world.fronts import Compared
from pipeline.world.job import world_experiment
from pipeline.world.learning import Objective, Problem, Schedule

ROOT = Path(__file__).resolve().parents[3]
WORLDS = [draw_world(seed) for seed in range(20)]
STEPS = Schedule(200)

Measured = Callable[[Objective], dict[str, Compared]]


@pytest.fixture(scope="module")
def on_little_data() -> Measured:
    """The figures of a method at a drift of 0.1 nats beside dpo's, in twenty worlds with 200 pairs each."""
    return _measured(Problem(WORLDS, [drawn_pairs(world, 200, seed) for seed, world in enumerate(WORLDS)]))


def _measured(problem: Problem) -> Measured:
    dpo = fronts_of(WORLDS, problem, Objective("dpo"), STEPS)

    def measured(objective: Objective) -> dict[str, Compared]:
        here = beside(fronts_of(WORLDS, problem, objective, STEPS), dpo)["drift 0.1"]
        assert here is not None
        return here

    return measured


def clearly(figure: Compared) -> float:
    """Difference from dpo in standard errors."""
    return figure.difference / figure.standard_error


def test_a_moderate_level_buys_the_tail(on_little_data: Measured) -> None:
    """ra_dpo2 at level 0.7, alpha 0.5: the worst tenth is better by 0.103 (standard error 0.029), the mean no worse."""
    here = on_little_data(Objective("ra_dpo2", Measure("cvar", 0.7), 0.5))
    assert here["cvar_10"].difference == pytest.approx(0.103, abs=0.005)
    assert clearly(here["cvar_10"]) > 2
    assert here["mean"].difference > 0


def test_the_neutral_level_buys_the_mean_and_pays_in_catastrophes(on_little_data: Measured) -> None:
    """tdpo2, alpha 0.5: mean +0.031 (0.009), catastrophes 3.10 in 1,000 responses where dpo has 2.33."""
    here = on_little_data(Objective("tdpo2", alpha=0.5))
    assert here["mean"].difference == pytest.approx(0.031, abs=0.002)
    assert clearly(here["mean"]) > 2
    assert here["catastrophe"].value == pytest.approx(0.00310, abs=1e-4)
    assert clearly(here["catastrophe"]) > 2
    assert abs(clearly(here["cvar_10"])) < 1


def test_too_averse_a_level_is_worse_than_none(on_little_data: Measured) -> None:
    """ra_dpo2 at level 0.3, alpha 0.2: it holds on to what the reference says, catastrophes included, 3.65 in 1,000."""
    here = on_little_data(Objective("ra_dpo2", Measure("cvar", 0.3), 0.2))
    assert here["catastrophe"].value == pytest.approx(0.00365, abs=2e-4)
    assert clearly(here["catastrophe"]) > 2
    assert clearly(here["cvar_10"]) < -2


def test_ra_dpo1_pays_the_mean_and_gains_nothing_clear(on_little_data: Measured) -> None:
    here = on_little_data(Objective("ra_dpo1", Measure("cvar", 0.3)))
    assert clearly(here["mean"]) < -2
    assert abs(clearly(here["cvar_10"])) < 1


def test_with_every_pair_known_the_tail_is_paid_for_with_the_mean() -> None:
    """dpo has the largest mean at its drift; ra_dpo2 at level 0.7 gives up 0.037 of it for 0.097 in the worst tenth
    and has fewer catastrophes, 0.16 in 1,000 beside 0.37."""
    measured = _measured(Problem(WORLDS, [every_pair(world) for world in WORLDS]))
    here = measured(Objective("ra_dpo2", Measure("cvar", 0.7), 0.5))
    assert here["mean"].difference == pytest.approx(-0.037, abs=0.002)
    assert here["cvar_10"].difference == pytest.approx(0.097, abs=0.004)
    assert clearly(here["mean"]) < -2
    assert clearly(here["cvar_10"]) > 2
    assert clearly(here["catastrophe"]) < -2


# ---- The job.


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two levels of one family at three betas."""
    monkeypatch.setattr(experiment, "LEVELS", (1.0, 0.7))
    monkeypatch.setattr(experiment, "FAMILIES", experiment.FAMILIES[1:2])
    monkeypatch.setattr(experiment, "BETAS", (25.6, 1.6, 0.1))


def test_the_job_leaves_a_table_a_figure_and_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small(monkeypatch)
    files = {"figure": str(tmp_path / "new" / "world.png"), "output": str(tmp_path / "numbers" / "world.json")}
    config = WorldExperiment(worlds=2, pairs=300, steps=60, **files)
    assert world_experiment(config) == 0
    shown = capsys.readouterr().out
    assert "every pair known" in shown
    assert "300 pairs drawn" in shown
    assert Path(config.figure).read_bytes().startswith(b"\x89PNG")
    numbers = json.loads(Path(config.output).read_text())
    assert numbers["reference"]["worst"] == -8.0
    rows = numbers["rows"]["every pair known"]
    assert [row["method"] for row in rows] == ["dpo", "tdpo2", "ra_dpo2 cvar@0.7"]
    assert rows[0]["at"]["drift 0.1"]["mean"]["difference"] == 0.0
    assert rows[2]["at"]["drift 0.05"]["mean"]["value"] > numbers["reference"]["mean"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"figure": "{tmp}"}, "--figure: .* is not a file that ends in .png"),
        ({"figure": "{tmp}/world.jpeg"}, "--figure: .* is not a file that ends in .png"),
        ({"figure": "{tmp}/file/world.png"}, "--figure: cannot write to"),
        ({"output": "{tmp}"}, "--output: .* is a directory; give a file"),
    ],
)
def test_places_that_cannot_be_written(options: dict[str, str], message: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    here = {"figure": f"{tmp_path}/world.png", "output": f"{tmp_path}/world.json"}
    given = here | {name: value.format(tmp=tmp_path) for name, value in options.items()}
    with pytest.raises(ConfigError, match=message):
        world_experiment(WorldExperiment(**given))


def test_help_names_every_option_and_imports_nothing_heavy() -> None:
    script = (
        "import runpy, sys; sys.argv = ['world.py', '--help']\n"
        "try: runpy.run_path('jobs/world.py', run_name='__main__')\n"
        "except SystemExit: print({'torch', 'numpy', 'matplotlib', 'ray'} & set(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(f"--{name}" in shown for name in WorldExperiment.model_fields)
    assert shown.rstrip().endswith("set()")


@pytest.mark.parametrize("option", ["--worlds=1", "--pairs=0", "--steps=0", "--seed=-1"])
def test_a_number_out_of_range_is_one_message(option: str) -> None:
    run = subprocess.run([sys.executable, "jobs/world.py", option], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 2
    assert option[2:].split("=")[0] in run.stderr
    assert "Traceback" not in run.stderr
