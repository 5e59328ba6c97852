"""The gate where the truth is known: how often it is wrong, and whether it can ever be right."""

import numpy as np
import pytest

from pipeline.release.simulation import SIZES, Row, Scenario, at_least, main, scenarios, simulate

CONFIDENCE = 0.95
SCENARIOS = {one.name: one for one in scenarios(resamples=1000, confidence=CONFIDENCE)}


def check(row: Row) -> None:
    """No more mistakes than agreed, beyond what is luck of the simulation."""
    assert row.promoted_least <= 1 - CONFIDENCE, row
    assert row.rolled_back_least <= 1 - CONFIDENCE, row


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("mean, rare catastrophes", 0.2),
        ("tail, all at the low end", 0.5),
        ("drift, heavy tails", 0.1),
        ("all four", 0.0),
    ],
)
def test_few_evaluations(name: str, least: float) -> None:
    row = simulate(SCENARIOS[name], 80, 24)
    check(row)
    assert row.power >= least, row


@pytest.mark.parametrize("name", ["mean, ties", "length", "all four"])
def test_limits_of_a_scenario_are_met_exactly(name: str) -> None:
    """The figures of the whole population, read as one evaluation, are the limits."""
    scenario = SCENARIOS[name]
    whole = scenario.population.draw(1, np.random.default_rng(0))
    assert whole.scores.shape == (1, 3)
    one, policy = scenario.population, scenario.policy
    if policy.min_length is not None:
        assert one.length.sum() / one.reference_length.sum() == pytest.approx(policy.min_length)
    else:
        assert policy.mean_drop == pytest.approx((one.reference_scores - one.scores).mean())
    if policy.max_drift is not None:
        present = np.arange(4) < one.pairs[:, None]
        assert np.minimum(one.drift, 10 * policy.max_drift)[present].mean() == pytest.approx(policy.max_drift)


def test_a_bound_on_a_probability_by_hand() -> None:
    """All of two: p^2 = 0.01 at 0.1."""
    assert at_least(2, 2) == pytest.approx(0.1)
    assert at_least(0, 100) == 0.0


def test_the_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--evaluations", "1", "--sizes", "5", "--resamples", "500"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[0] == "scenario"
    assert [line[:30].strip() for line in lines[1:]] == list(SCENARIOS)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS.keys())
def test_every_scenario_at_every_size(scenario: Scenario) -> None:
    rows = [simulate(scenario, units, 400) for units in SIZES]
    for row in rows:
        print(row)
        check(row)
    assert rows[-1].power > 0.1, rows[-1]
