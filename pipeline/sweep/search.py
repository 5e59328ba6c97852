"""Which setting comes next: from a list, or by what the earlier ones were worth (Optuna). Knows no Ray."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pipeline.config import RunConfig
from pipeline.sweep.space import Trial, made_trials, readable
from pipeline.sweep_config import Range, SweepConfig

_PART = "part of the space"


class Search(Protocol):
    """Hands out trials, and is told what became of them."""

    def next(self) -> Trial | None:
        """The next trial; None when there is none now."""

    def exhausted(self) -> bool:
        """Whether there will be none any more."""

    def tell(self, trial: Trial, worth: float | None) -> None:
        """What a trial was worth (more is better), None when it failed or was ended early."""


class ListSearch:
    """Trials that are known beforehand."""

    def __init__(self, trials: Sequence[Trial]) -> None:
        self._left = list(trials)

    def next(self) -> Trial | None:
        return self._left.pop(0) if self._left else None

    def exhausted(self) -> bool:
        return not self._left

    def tell(self, trial: Trial, worth: float | None) -> None:
        """A list does not care."""


class OptunaSearch:
    """Settings by Optuna's tree-structured Parzen estimator.

    What comes next follows from the worth of the settings that are finished and from the number of the next one. A
    sweep that is resumed tells again what it knew of the settings that it had asked for, and goes on as it would have
    (with one run at a time; with several side by side the order in which they end matters for what comes after).

    Args:
        base: the run whose options are varied.
        known: worth of trials by number, as far as they are finished; None for one that gave nothing. These are not
            handed out again.
        asked: `params` of an earlier search that goes on here: what was known is known of these settings.
    """

    def __init__(
        self,
        base: RunConfig,
        sweep: SweepConfig,
        known: Mapping[int, float | None],
        asked: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        assert sweep.settings is not None
        self._base, self._sweep, self._known = base, sweep, dict(known)
        self._study = optuna.create_study(direction="maximize")
        self._asked: list[Any] = []
        self._worth: list[dict[int, float | None]] = []
        self._waiting: list[Trial] = []
        self._before = list(asked)
        self.params: list[dict[str, Any]] = []
        """What every setting was made from, in their order; JSON."""
        self.trials: list[Trial] = []
        """All that were handed out or known."""

    def next(self) -> Trial | None:
        if self.exhausted():
            return None
        self.trials.append(self._waiting.pop(0))
        return self.trials[-1]

    def exhausted(self) -> bool:
        """Goes past what is known, to the next trial that is not."""
        while not self._waiting or self._waiting[0].number in self._known:
            if self._waiting:
                self.trials.append(self._waiting.pop(0))
                self.tell(self.trials[-1], self._known[self.trials[-1].number])
            elif len(self._asked) == self._sweep.settings:
                return True
            else:
                self._ask()
        return False

    def tell(self, trial: Trial, worth: float | None) -> None:
        index = trial.number // len(self._sweep.seeds)
        told = self._worth[index]
        told[trial.seed] = worth
        if len(told) < len(self._sweep.seeds):
            return
        values = [value for value in told.values() if value is not None]
        if len(values) == len(told):
            self._study.tell(self._asked[index], math.fsum(values) / len(values))
        else:
            self._study.tell(self._asked[index], state=_failed())

    def _ask(self) -> None:
        import optuna

        index = len(self._asked)
        # A sampler of its own for each: the state of one that lives on would hang on how often it was asked before.
        self._study.sampler = optuna.samplers.TPESampler(
            seed=(self._sweep.search_seed * 100_003 + index) % 2**32,
            multivariate=False,
            n_startup_trials=_startup(self._sweep),
        )
        if index < len(self._before):
            self._study.enqueue_trial(dict(self._before[index]))
        asked = self._study.ask()
        number = asked.suggest_int(_PART, 0, len(self._sweep.space) - 1) if len(self._sweep.space) > 1 else 0
        options = {
            name: _suggest(asked, f"{number}/{name}", values) for name, values in self._sweep.space[number].items()
        }
        self._asked.append(asked)
        self.params.append(dict(asked.params))
        self._worth.append({})
        first = index * len(self._sweep.seeds)
        self._waiting = [
            Trial(first + trial.number, trial.options, trial.seed, trial.run)
            for trial in made_trials(self._base, [options], self._sweep.seeds)
        ]


def _startup(sweep: SweepConfig) -> int:
    """Settings drawn at random before the estimator has something to go by: a third, but no more than ten."""
    assert sweep.settings is not None
    return max(2, min(10, sweep.settings // 3))


def _failed() -> Any:
    import optuna

    return optuna.trial.TrialState.FAIL


def _suggest(asked: Any, name: str, values: Any) -> Any:
    if isinstance(values, Range):
        return readable(asked.suggest_float(name, values.low, values.high, log=values.log), values)
    return asked.suggest_categorical(name, list(values))
