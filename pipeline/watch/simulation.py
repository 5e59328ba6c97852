"""The watch's promise, tried on simulated traffic: ``python -m pipeline.watch.simulation``.

Streams of a baseline and the outputs after it, with six measures that depend on each other (normal copula, correlation
0.6) and have all the same shape, or one each. Without drift it counts the streams with any alarm; with a shift of the
risk by half a standard deviation it says after how many outputs that is found. Ranks are taken here by sorting baseline
and outputs together, which is another way than `pipeline.watch.ranks` takes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.special import ndtr

from pipeline.watch.ranks import FloatArray
from pipeline.watch.rules import Rule, rules_for, steps
from pipeline.watch.thresholds import largest, path, threshold, upper_bound

RULES = rules_for(
    {"risk": "up", "kl": "up", "vader": "down", "profanity": "up", "repetition": "up", "length": "both"}, "vader"
)
_CORRELATION = 0.6
_CERTAINTY = 0.95

SHAPES: Mapping[str, Callable[[FloatArray], FloatArray]] = {
    "normal": lambda u: np.asarray(stats.norm.ppf(u)),
    "lognormal": lambda u: np.exp(stats.norm.ppf(u)),
    "gamma": lambda u: np.asarray(stats.gamma.ppf(u, 2.0)),
    "heavy tails": lambda u: np.asarray(stats.t.ppf(u, 2.5)),
    "whole numbers": lambda u: np.floor(-4.0 * np.log1p(-u)),
    "binary": lambda u: (u > 0.9).astype(np.float64),
}
"""Quantile functions; the last two have ties."""
MIXED = "one of each"


@dataclass(frozen=True)
class Outcome:
    """Streams of one shape."""

    streams: int
    alarms: int
    by_rule: dict[str, int]

    @property
    def bound(self) -> float:
        """Upper 95% confidence bound of the probability of an alarm."""
        return upper_bound(self.alarms, self.streams, _CERTAINTY)


def thresholds(baseline: int, outputs: int, false_alarms: float) -> dict[str, float]:
    """Of the simulated rules."""
    share = false_alarms / len(RULES)
    return {rule.name: threshold(rule.kind, baseline, outputs, share) for rule in RULES}


def false_alarms(
    shape: str, streams: int, baseline: int, outputs: int, limits: Mapping[str, float], seed: int = 1
) -> Outcome:
    """Streams without drift."""
    rng = np.random.default_rng([seed, *shape.encode()])
    alarms, by_rule = 0, dict.fromkeys(limits, 0)
    for _ in range(streams):
        statistics = _statistics(_draw(shape, baseline + outputs, rng), baseline, rng)
        over = [rule.name for rule in RULES if statistics[rule.name].max() > limits[rule.name]]
        alarms += bool(over)
        for name in over:
            by_rule[name] += 1
    return Outcome(streams, alarms, by_rule)


def delays(
    shape: str, streams: int, baseline: int, limits: Mapping[str, float], before: int = 1000, seed: int = 2
) -> FloatArray:
    """Outputs from a shift of the risk by half a standard deviation to the first alarm of ``risk-up``, ``[streams]``.

    Args:
        before: undrifted outputs between baseline and shift.
    """
    rng = np.random.default_rng([seed, *shape.encode()])
    sample = SHAPES[shape](rng.random(200_000))
    shift = 0.5 * sample.std()
    found: list[float] = []
    while len(found) < streams:
        values = _draw(shape, baseline + before + 3000, rng)
        values["risk"][baseline + before :] += shift
        statistic = _statistics({"risk": values["risk"]}, baseline, rng)["risk-up"]
        over = np.flatnonzero(statistic > limits["risk-up"])
        if len(over) and over[0] < before:
            continue  # a false alarm says nothing about delay
        found.append(float(over[0] - before + 1) if len(over) else np.inf)
    return np.array(found)


def _draw(shape: str, count: int, rng: np.random.Generator) -> dict[str, FloatArray]:
    """Measures of so many outputs, by name."""
    names = list(dict.fromkeys(rule.measure for rule in RULES))
    common = rng.standard_normal(count)
    shapes = list(SHAPES.values()) if shape == MIXED else [SHAPES[shape]] * len(names)
    own = (np.sqrt(_CORRELATION) * common + np.sqrt(1 - _CORRELATION) * rng.standard_normal(count) for _ in names)
    return {name: form(ndtr(values)) for name, form, values in zip(names, shapes, own, strict=True)}


def _statistics(values: Mapping[str, FloatArray], baseline: int, rng: np.random.Generator) -> dict[str, FloatArray]:
    """Every rule's statistic after every output behind the baseline."""
    ranks = {name: _ranks(one, baseline, rng) for name, one in values.items()}
    return {rule.name: _path(rule, ranks[rule.measure]) for rule in RULES if rule.measure in ranks}


def _path(rule: Rule, ranks: FloatArray) -> FloatArray:
    return path(steps(rule.kind, ranks if rule.up else 1.0 - ranks))


def _ranks(values: FloatArray, baseline: int, rng: np.random.Generator) -> FloatArray:
    order = np.lexsort((rng.random(len(values)), values))
    of_baseline = np.cumsum(order < baseline)
    places = np.empty(len(values))
    places[order] = of_baseline
    return np.asarray((places[baseline:] + rng.random(len(values) - baseline)) / (baseline + 1))


def main() -> None:
    """Print what the simulation finds, or make the table of thresholds."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.watch.simulation", description=__doc__)
    parser.add_argument("--streams", type=int, default=2000, help="of each shape (default: 2000)")
    parser.add_argument("--baseline", type=int, default=1000)
    parser.add_argument("--outputs", type=int, default=10_000, help="after the baseline (default: 10000)")
    parser.add_argument("--false-alarms", type=float, default=0.01)
    parser.add_argument("--table", action="store_true", help="print the rows of pipeline/watch/table.py instead")
    options = parser.parse_args()
    if options.table:
        print_table()
        return
    limits = thresholds(options.baseline, options.outputs, options.false_alarms)
    by_kind = {rule.kind: limits[rule.name] for rule in RULES}
    print(f"{len(RULES)} rules; thresholds: " + ", ".join(f"{kind} {value:.2f}" for kind, value in by_kind.items()))
    print(
        f"{options.streams:,} streams a shape, {options.outputs:,} outputs after {options.baseline:,} of the baseline"
    )
    print(f"{'measures':14}  {'any alarm':>18}  {'95% bound':>9}  {'delay: median':>13}  {'90%':>5}")
    total = 0
    for shape in (*SHAPES, MIXED):
        outcome = false_alarms(shape, options.streams, options.baseline, options.outputs, limits)
        total += outcome.alarms
        line = f"{shape:14}  {outcome.alarms:5} of {outcome.streams:6,} ({outcome.alarms / outcome.streams:.2%})"
        line += f"  {outcome.bound:9.2%}"
        if shape in ("normal", "lognormal", "gamma", "heavy tails"):
            found = delays(shape, max(100, options.streams // 5), options.baseline, limits)
            line += f"  {np.median(found):13.0f}  {np.quantile(found, 0.9):5.0f}"
        print(line, flush=True)
    streams = options.streams * (len(SHAPES) + 1)
    bound = upper_bound(total, streams, _CERTAINTY)
    print(f"{'all':14}  {total:5} of {streams:6,} ({total / streams:.2%})  {bound:9.2%}")


def print_table() -> None:
    """The rows of `pipeline.watch.table`, simulated anew: some minutes."""
    from pipeline.watch.table import BASELINE, LARGEST, OUTPUTS, STREAMS

    for kind in ("location", "tail"):
        values = np.sort(largest(kind, BASELINE, OUTPUTS, STREAMS, seed=0))[::-1]
        print(f'    "{kind}": (')
        for count, _ in LARGEST[kind]:
            print(f"        ({count}, {values[count]:.4f}),")
        print("    ),")


if __name__ == "__main__":
    main()
