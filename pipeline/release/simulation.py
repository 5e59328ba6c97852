"""What the gate is worth where the truth is known: how often it promotes, and rolls back, what it should not.

A scenario is a population of prompts (and of groups of pairs) from which evaluations are drawn; its policy has limits
that the population's candidate meets *exactly*, which is where promoting by mistake is likeliest. Beside that stands
the chance of promotion when candidate and reference are the same population, since a gate that always holds would make
no mistake either. ``python -m pipeline.release.simulation`` prints the table.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from pipeline.evaluation.statistics import FloatArray, lower_tail_mean
from pipeline.release.conditions import BITS_CAP, DRIFT_CAP
from pipeline.release.evidence import Evidence
from pipeline.release.gate import decide
from pipeline.release_config import GateConfig

SIZES = (20, 80, 300)
"""Prompts, and as many groups."""

_UNITS = 20_000
_SEEDS = 3
_PAIRS = 4
_ENDS = (-1.0, 1.0)
_TAIL = 0.1
_INCIDENT = -0.5
_NO_LIMITS: dict[str, Any] = dict.fromkeys(
    ("mean_drop", "tail_drop", "max_drift", "max_incidents", "max_repetition_rise", "min_length", "max_bits_rise")
)


@dataclass(frozen=True, eq=False)
class Population:
    """The truth: every prompt ``[units, seeds]`` and every group of pairs ``[units, pairs]`` there is."""

    scores: FloatArray
    reference_scores: FloatArray
    repetition: FloatArray
    reference_repetition: FloatArray
    length: FloatArray
    reference_length: FloatArray
    drift: FloatArray
    bits: FloatArray
    reference_bits: FloatArray
    pairs: FloatArray
    """``[units]``: how many of its pairs a group has."""

    def draw(self, units: int, rng: np.random.Generator) -> Evidence:
        """An evaluation of so many prompts and groups."""
        prompts, groups = rng.integers(len(self.scores), size=(2, units))
        present = np.arange(_PAIRS) < self.pairs[groups, None]
        samples = {name: getattr(self, name)[prompts] for name in _OF_SAMPLES}
        pairs = {name: getattr(self, name)[groups][present] for name in _OF_PAIRS}
        return Evidence(
            path=Path("simulated"),
            split="test",
            primary_scorer="vader",
            tail_fraction=_TAIL,
            incident_below=_INCIDENT,
            prompt_set="simulated",
            prompts=tuple(map(str, range(units))),
            seeds=tuple(range(_SEEDS)),
            pairs=tuple(map(str, range(int(present.sum())))),
            groups=np.nonzero(present)[0],
            **samples,
            **pairs,
        )


_OF_SAMPLES = ("scores", "reference_scores", "repetition", "reference_repetition", "length", "reference_length")
_OF_PAIRS = ("drift", "bits", "reference_bits")


@dataclass(frozen=True, eq=False)
class Scenario:
    """A population whose candidate meets every limit of the policy exactly."""

    name: str
    population: Population
    policy: GateConfig

    def alike(self, rng: np.random.Generator) -> Population:
        """The same variety without a difference: on every prompt, and in every group, it is left to chance which of the
        two models is the candidate. Drift is half of the limit."""
        one = self.population
        changed: dict[str, FloatArray] = {"drift": one.drift / 2}
        swapped = rng.random((len(one.scores), 1)) < 0.5
        for name in ("scores", "repetition", "length", "bits"):
            own, other = getattr(one, name), getattr(one, f"reference_{name}")
            changed |= {name: np.where(swapped, other, own), f"reference_{name}": np.where(swapped, own, other)}
        return replace(one, **changed)


@dataclass(frozen=True)
class Row:
    """A scenario at one size, in shares of the simulated evaluations."""

    scenario: str
    units: int
    promoted: float
    """False promotions."""
    promoted_least: float
    """What their probability is at least, with 99% confidence (Clopper and Pearson)."""
    rolled_back: float
    """False roll-backs."""
    rolled_back_least: float
    power: float
    """Promotions when there is no difference."""
    told: float
    """What the gate itself says of that chance, on average over those evaluations."""


def simulate(scenario: Scenario, units: int, evaluations: int, seed: int = 0) -> Row:
    """Draw evaluations of so many prompts and groups, and decide each."""
    rng = np.random.default_rng([seed, units, *scenario.name.encode()])
    policy, alike = scenario.policy, scenario.alike(rng)
    promoted = rolled_back = 0
    for _ in range(evaluations):
        drawn = scenario.population.draw(units, rng)
        promoted += decide(drawn, None, policy, _ENDS).outcome == "promote"
        rolled_back += decide(drawn, drawn, policy, _ENDS).incumbent_violates
    without = [decide(alike.draw(units, rng), None, policy, _ENDS) for _ in range(max(evaluations // 4, 1))]
    return Row(
        scenario=scenario.name,
        units=units,
        promoted=promoted / evaluations,
        promoted_least=at_least(promoted, evaluations),
        rolled_back=rolled_back / evaluations,
        rolled_back_least=at_least(rolled_back, evaluations),
        power=float(np.mean([one.outcome == "promote" for one in without])),
        told=float(np.mean([one.power for one in without])),
    )


def at_least(events: int, trials: int) -> float:
    """Clopper and Pearson's lower bound on a probability, with 99% confidence."""
    return float(stats.beta.ppf(0.01, events, trials - events + 1)) if events else 0.0


def scenarios(resamples: int = 2000, confidence: float = 0.95) -> list[Scenario]:
    """Scores with ties, with heavy tails, skewed by rare catastrophes, a candidate of which nearly the whole tail lies
    at the low end; samples of one prompt always resemble one another."""
    rng = np.random.default_rng(20505)

    def scenario(name: str, limits: Iterable[str], **columns: FloatArray) -> Scenario:
        population = _population(rng, columns)
        at_truth = {limit: _TRUTH[limit](population) for limit in limits}
        policy = GateConfig(**{**_NO_LIMITS, **at_truth}, resamples=resamples, confidence=confidence)
        return Scenario(name, population, policy)

    tied, heavy, rare = _tied(rng), _heavy(rng), _rare(rng)
    drift = rng.lognormal(1.0, 1.2, (_UNITS, 1)) * rng.lognormal(0.0, 0.5, (_UNITS, _PAIRS))
    return [
        scenario("mean, ties", ["mean_drop"], **tied),
        scenario("mean, heavy tails", ["mean_drop"], **heavy),
        scenario("mean, rare catastrophes", ["mean_drop"], **rare),
        scenario("tail, ties", ["tail_drop"], **tied),
        scenario("tail, heavy tails", ["tail_drop"], **heavy),
        scenario("tail, rare catastrophes", ["tail_drop"], **rare),
        scenario("tail, all at the low end", ["tail_drop"], **_low_end(rng)),
        scenario("tail, both at the low end", ["tail_drop"], **_both_low(np.random.default_rng(7))),
        scenario("incidents, ties", ["max_incidents"], **tied),
        scenario("incidents, rare catastrophes", ["max_incidents"], **rare),
        scenario("drift, heavy tails", ["max_drift"], drift=drift),
        scenario("repetition, rare", ["max_repetition_rise", "mean_drop"], **_repeats(rng)),
        scenario("length", ["min_length", "mean_drop"], **_short(rng)),
        scenario("bits", ["max_bits_rise", "mean_drop"], **_harder(rng)),
        scenario("all four", ["mean_drop", "tail_drop", "max_incidents", "max_drift"], **tied, drift=drift),
    ]


def _population(rng: np.random.Generator, columns: dict[str, FloatArray]) -> Population:
    """With what is not given the same for both models."""
    samples, pairs = (_UNITS, _SEEDS), (_UNITS, _PAIRS)
    same = {name: np.full(samples, 100.0 if "length" in name else 0.0) for name in _OF_SAMPLES}
    same |= {"drift": np.zeros(pairs), "bits": np.full(pairs, 100.0), "reference_bits": np.full(pairs, 100.0)}
    return Population(**{**same, **columns}, pairs=rng.integers(1, _PAIRS + 1, _UNITS).astype(np.float64))


def _tied(rng: np.random.Generator) -> dict[str, FloatArray]:
    """Scores in steps of 0.5; a third of the candidate's prompts are answered anew, and worse."""
    mood = rng.normal(0.4, 0.6, (_UNITS, 1))
    own, other = (mood + rng.normal(shift, 0.4, (_UNITS, _SEEDS)) for shift in (-0.45, 0.0))
    own = np.where(rng.random((_UNITS, 1)) < 0.35, own, other)
    return {name: np.clip(np.round(2 * x) / 2, *_ENDS) for name, x in (("scores", own), ("reference_scores", other))}


def _heavy(rng: np.random.Generator) -> dict[str, FloatArray]:
    """Student's t with 1.5 degrees of freedom, within the range."""
    mood = 0.5 + 0.05 * rng.standard_t(1.5, (_UNITS, 1))
    own, other = (mood + shift + 0.05 * rng.standard_t(1.5, (_UNITS, _SEEDS)) for shift in (-0.25, 0.0))
    return {"scores": np.clip(own, *_ENDS), "reference_scores": np.clip(other, *_ENDS)}


def _rare(rng: np.random.Generator) -> dict[str, FloatArray]:
    """The same scores, but for 6% of the prompts, where every output of the candidate is as bad as can be."""
    other = np.clip(rng.normal(1.0, 0.1, (_UNITS, _SEEDS)), *_ENDS)
    return {"scores": np.where(rng.random((_UNITS, 1)) < 0.06, -1.0, other), "reference_scores": other}


def _low_end(rng: np.random.Generator) -> dict[str, FloatArray]:
    """About the tail's share of the candidate's prompts lies at the low end, independent of the reference's low scores:
    the worst case that a search has found for the gap of two weighted tail means."""
    kinds = (-1.0, 0.208, 0.046, -1.0), (0.032, -0.152, -0.483, -0.51)
    return _of_kinds(rng, (0.0821, 0.4216, 0.4766, 0.0197), *kinds)


def _both_low(rng: np.random.Generator) -> dict[str, FloatArray]:
    """Both models have a tail at the low end, in part on the same prompts, and the reference's quantile lies at a gap:
    the worst case that a search has found for a t that changes with the weights."""
    kinds = (-1.0, -1.0, 0.503, -0.092), (-0.986, 0.954, -0.581, -0.38)
    return _of_kinds(rng, (0.0639, 0.0355, 0.4945, 0.4061), *kinds)


def _of_kinds(
    rng: np.random.Generator, shares: Sequence[float], own: Sequence[float], other: Sequence[float]
) -> dict[str, FloatArray]:
    """Prompts of a few kinds, the same score with every seed."""
    kind = np.repeat(rng.choice(len(shares), size=(_UNITS, 1), p=shares), _SEEDS, axis=1)
    return {"scores": np.array(own)[kind], "reference_scores": np.array(other)[kind]}


def _repeats(rng: np.random.Generator) -> dict[str, FloatArray]:
    """A tenth of the prompts sends the candidate into a loop."""
    loops = rng.random((_UNITS, 1)) < 0.1
    other = rng.beta(1, 30, (_UNITS, _SEEDS))
    return {"repetition": np.where(loops, 0.95, other), "reference_repetition": other}


def _short(rng: np.random.Generator) -> dict[str, FloatArray]:
    """Two fifths of the prompts get nothing from the candidate."""
    mood = rng.lognormal(4.0, 0.4, (_UNITS, 1))
    own, other = (mood * rng.lognormal(0.0, 0.4, (_UNITS, _SEEDS)) for _ in range(2))
    return {"length": np.where(rng.random((_UNITS, 1)) < 0.4, 0.0, np.round(own)), "reference_length": np.round(other)}


def _harder(rng: np.random.Generator) -> dict[str, FloatArray]:
    """Groups of unequal size, of which a quarter has become harder to predict by a third."""
    other = rng.lognormal(4.0, 0.3, (_UNITS, 1)) * rng.lognormal(0.0, 0.3, (_UNITS, _PAIRS))
    rise = np.where(rng.random((_UNITS, 1)) < 0.25, 0.33, rng.normal(0.0, 0.03, (_UNITS, 1)))
    return {"bits": other * (1 + rise), "reference_bits": other}


def _mean_drop(one: Population) -> float:
    """Where scores are equal, a limit that never matters: the policy must have one of the scores or of drift."""
    return float((one.reference_scores - one.scores).mean()) or 1.9


def _tail_drop(one: Population) -> float:
    own, other = (lower_tail_mean(np.sort(x, axis=None), _TAIL) for x in (one.scores, one.reference_scores))
    return float(other - own)


def _of_groups(one: Population, values: FloatArray) -> FloatArray:
    return np.asarray(np.where(np.arange(_PAIRS) < one.pairs[:, None], values, 0.0))


def _max_drift(one: Population) -> float:
    drift = _of_groups(one, one.drift)
    return _capped(lambda limit: float(np.minimum(drift, DRIFT_CAP * limit).sum() / one.pairs.sum()))


def _max_bits_rise(one: Population) -> float:
    bits, reference = (_of_groups(one, x).sum(axis=1) for x in (one.bits, one.reference_bits))
    return _capped(
        lambda limit: float(np.minimum(bits - reference, BITS_CAP * limit * reference).sum() / reference.sum())
    )


def _capped(figure: Callable[[float], float]) -> float:
    """The limit that a figure meets exactly that is capped by the limit itself."""
    limit = figure(1e6)
    for _ in range(200):
        limit = figure(limit)
    return limit


_TRUTH: dict[str, Callable[[Population], float]] = {
    "mean_drop": _mean_drop,
    "tail_drop": _tail_drop,
    "max_drift": _max_drift,
    "max_incidents": lambda one: float((one.scores < _INCIDENT).mean()),
    "max_repetition_rise": lambda one: float((one.repetition - one.reference_repetition).mean()),
    "min_length": lambda one: float(one.length.sum() / one.reference_length.sum()),
    "max_bits_rise": _max_bits_rise,
}


def table(rows: Iterable[Row]) -> str:
    """The rows as text, one a line."""
    lines = [f"{'scenario':30} {'n':>4}  {'promoted by mistake':>20}  {'rolled back':>16}  {'power':>6} {'as told':>8}"]
    lines += [
        f"{row.scenario:30} {row.units:4}  {row.promoted:8.3f} (≥ {row.promoted_least:.3f})  "
        f"{row.rolled_back:6.3f} (≥ {row.rolled_back_least:.3f})  {row.power:6.2f} {row.told:8.2f}"
        for row in rows
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table; ``arguments`` are the command line's."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.release.simulation", description=__doc__)
    parser.add_argument("--evaluations", type=int, default=1000, help="simulated a scenario and size")
    parser.add_argument("--resamples", type=int, default=2000, help="weighted resamples behind every interval")
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    options = parser.parse_args(arguments)
    print(table([]), flush=True)
    for scenario in scenarios(options.resamples, options.confidence):
        for units in options.sizes:
            print(table([simulate(scenario, units, options.evaluations)]).split("\n")[1], flush=True)


if __name__ == "__main__":
    main()
