"""From a recipe's search space to the runs of a sweep. Pure: runs are described and checked here, none is started."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import ValidationError

from pipeline.catalogue import measure_label
from pipeline.config import OF_NO_STAGE, RISK_METHODS, RunConfig
from pipeline.errors import ConfigError
from pipeline.nested import flat
from pipeline.recipes import described, nearest_option
from pipeline.recipes import options as known_options
from pipeline.records import HeldOut
from pipeline.sweep_config import Range, SweepConfig

SECTIONS = ("loss.", "risk.", "train.")
"""What may differ between the runs of a sweep: everything before it (data, model, reference) is shared."""
SEED = "train.seed"
SHARE = "train.data_fraction"
_MOST_SETTINGS = 10_000
_MOST_TRIED = 2_000

Options = Mapping[str, Any]
"""Values by dotted name."""


@dataclass(frozen=True)
class Trial:
    """One run of a sweep."""

    number: int
    options: Options
    """Of its setting, in which the trials of a sweep differ (and in the seed)."""
    seed: int
    run: RunConfig
    """The whole run, as the alignment job takes it."""

    @property
    def name(self) -> str:
        """For people: the method and what matters to it."""
        return f"{setting_name(self.run, self.options)}, seed {self.seed}"

    def judged_by(self, split: HeldOut) -> Trial:
        """The same training, judged by a split."""
        evaluation = self.run.evaluation.model_copy(update={"split": split})
        return dataclasses.replace(self, run=self.run.model_copy(update={"evaluation": evaluation}))


def on_share(trial: Trial, share: float) -> Trial:
    """The trial on a share of the training groups."""
    train = trial.run.train.model_copy(update={"data_fraction": share})
    return dataclasses.replace(trial, run=trial.run.model_copy(update={"train": train}))


def renumbered(trials: Sequence[Trial]) -> list[Trial]:
    """The trials as a round of their own."""
    return [dataclasses.replace(trial, number=number) for number, trial in enumerate(trials)]


def setting_name(run: RunConfig, options: Options) -> str:
    """Method, measure and the other options in which the settings of a sweep differ, those that the method reads."""
    parts: list[str] = [run.loss.method]
    if run.loss.method in RISK_METHODS:
        parts.append(measure_label(run.risk.measure, run.risk.level, run.risk.weight).replace("@", " "))
    shown = ("loss.method", "risk.measure", "risk.level", "risk.weight")
    parts += [f"{name.rsplit('.', 1)[-1]} {_text(value)}" for name, value in options.items() if name not in shown]
    return " ".join(parts)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def check_space(sweep: SweepConfig) -> None:
    """Refuse what cannot be searched.

    Raises:
        ConfigError: for an empty space, an option that is none or that a sweep cannot vary, and a range in a grid.
    """
    if not sweep.space or any(not part for part in sweep.space):
        raise ConfigError(
            "sweep.space is empty: name the options to vary and their values, in the recipe or as "
            "--sweep.space '{risk.level: [0.97, 0.5]}'"
        )
    for name, values in ((name, values) for part in sweep.space for name, values in part.items()):
        _check_dimension(name, values, sweep)


def check_pilot(sweep: SweepConfig) -> None:
    """Refuse a pilot of what a pilot itself varies.

    Raises:
        ConfigError: for a space in which the share of the data is searched.
    """
    if any(SHARE in part for part in sweep.space):
        raise ConfigError(f"--pilot: sweep.space varies {SHARE}, which a pilot sets itself: leave one of the two out")


def _check_dimension(name: str, values: Any, sweep: SweepConfig) -> None:
    if name not in known_options():
        nearest = nearest_option(name)
        raise ConfigError(f"sweep.space: unknown option {name}" + (f", did you mean {nearest}?" if nearest else ""))
    if name == SEED:
        raise ConfigError(
            f"sweep.space: {SEED} is not searched; set sweep.seeds, with each of which every combination is run"
        )
    if not name.startswith(SECTIONS):
        raise ConfigError(
            f"sweep.space: {name} cannot be varied: all runs of a sweep share data, model, reference and evaluation "
            "(options of loss, risk and train can be); make a sweep for each value instead"
        )
    if isinstance(values, Range):
        if sweep.search == "grid":
            raise ConfigError(
                f"sweep.space: {name} has a range, of which a grid has no points: give a list of values, or set "
                "sweep.search to random or optuna"
            )
        annotation = known_options()[name].annotation
        if float not in (annotation, *get_args(annotation)):
            raise ConfigError(f"sweep.space: {name} has a range, but takes no fractions: give a list of values")
    elif not values:
        raise ConfigError(f"sweep.space: {name} has no values")


def grid(sweep: SweepConfig) -> list[Options]:
    """Every combination of every part of the space, in the order in which they are written.

    Raises:
        ConfigError: when there are more than can be meant.
    """
    parts = _listed(sweep)
    count = sum(math.prod(map(len, part.values())) for part in parts)
    if count > _MOST_SETTINGS:
        raise ConfigError(f"sweep.space: {count:,} combinations are too many: shorten the lists, or search at random")
    return [dict(zip(part, values, strict=True)) for part in parts for values in itertools.product(*part.values())]


def _listed(sweep: SweepConfig) -> list[dict[str, Sequence[Any]]]:
    """The parts of the space as lists of values; of a range its ends."""
    return [
        {name: (values.low, values.high) if isinstance(values, Range) else values for name, values in part.items()}
        for part in sweep.space
    ]


def drawn(sweep: SweepConfig) -> list[Options]:
    """Combinations at random: parts of the space evenly, then every option by itself. The same ones in every process,
    and a longer list begins with the shorter one."""
    assert sweep.settings is not None
    found: list[Options] = []
    for number in range(sweep.settings):
        rng = random.Random(f"{sweep.search_seed}-{number}")
        part = rng.choice(sweep.space)
        found.append({name: _draw(rng, values) for name, values in part.items()})
    return found


def _draw(rng: random.Random, values: Sequence[Any] | Range) -> Any:
    if not isinstance(values, Range):
        return rng.choice(values)
    if values.log:
        return readable(math.exp(rng.uniform(math.log(values.low), math.log(values.high))), values)
    return readable(rng.uniform(values.low, values.high), values)


def readable(value: float, within: Range) -> float:
    """The value with four digits, as people write and compare it."""
    return min(max(float(f"{value:.4g}"), within.low), within.high)


def checked_run(base: RunConfig, options: Options, seed: int) -> RunConfig:
    """The base run with a setting's options and a seed, without the sweep.

    Raises:
        ConfigError: when the combination makes no run, naming the setting.
    """
    values = base.model_dump(mode="json", exclude=set(OF_NO_STAGE))
    for dotted, value in [*options.items(), (SEED, seed)]:
        *sections, leaf = dotted.split(".")
        node = values
        for section in sections:
            node = node[section]
        node[leaf] = value
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        shown = ", ".join(f"{name} {value}" for name, value in options.items())
        raise ConfigError(f"sweep.space: {described(error.errors()[0])} (in the combination {shown})") from error


def made_trials(base: RunConfig, settings: Sequence[Options], seeds: Sequence[int]) -> list[Trial]:
    """A trial for every setting and seed. Settings that differ only in what their method does not read are one.

    Raises:
        ConfigError: for a setting that is no run.
    """
    from pipeline.keys import effective_loss

    seen: set[str] = set()
    trials: list[Trial] = []
    for setting in settings:
        runs = [checked_run(base, setting, seed) for seed in seeds]
        same = str((effective_loss(runs[0]), flat(runs[0].train.model_dump(mode="json"))))
        if same in seen:
            continue
        seen.add(same)
        read = read_options(runs[0], setting)
        trials += [
            Trial(len(trials) + k, read, seed, run) for k, (seed, run) in enumerate(zip(seeds, runs, strict=True))
        ]
    return renumbered(trials)


def read_options(run: RunConfig, options: Options) -> Options:
    """The options that the run's method reads."""
    unread = set() if run.loss.method in RISK_METHODS else {"risk.measure", "risk.level", "risk.weight"}
    if not run.loss.method.endswith("2"):
        unread.add("loss.alpha")
    return {name: value for name, value in options.items() if name not in unread}


def try_corners(base: RunConfig, sweep: SweepConfig) -> None:
    """Refuse a space to draw from in which a combination of its values and of the ends of its ranges makes no run. Of
    very many combinations some are tried, with every value among them.

    Raises:
        ConfigError: naming the combination.
    """
    for part in _listed(sweep):
        for setting in _corners(part):
            checked_run(base, setting, sweep.seeds[0])


def _corners(part: Mapping[str, Sequence[Any]]) -> Iterator[Options]:
    if math.prod(map(len, part.values())) <= _MOST_TRIED:
        yield from (dict(zip(part, values, strict=True)) for values in itertools.product(*part.values()))
        return
    first = {name: values[0] for name, values in part.items()}
    yield from (first | {name: value} for name, values in part.items() for value in values)
    rng = random.Random(0)
    yield from ({name: rng.choice(values) for name, values in part.items()} for _ in range(_MOST_TRIED))
