"""The runs and the choice between them, for people and as JSON."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.selection.choose import Choice, expected_cost
from pipeline.selection.judged import FIGURES, SEED, Figure, Setting, differing
from pipeline.sweep_config import Tolerance


def show(settings: Sequence[Setting], choice: Choice, tolerance: Tolerance, console: Console) -> None:
    """Print the table, the choice and what to run next."""
    console.print(_table(settings, choice, tolerance))
    over_seeds = "; over several seeds from the lowest end to the highest" if _several_seeds(settings) else ""
    console.print(
        f"Gains are over the reference, below them 95% intervals{over_seeds}. (*) The front: no other run is better in "
        "one of average, worst outputs and drift without being worse in another."
    )
    for setting, reasons in zip(settings, choice.reasons, strict=True):
        if reasons:
            console.print(f"not {name_of(setting)}: {'; '.join(reasons)}", soft_wrap=True)
    if choice.best is None:
        console.print("No run keeps every limit: nothing is chosen.")
        return
    best = settings[choice.best]
    console.print(f"Chosen: {name_of(best)}{_seeds(best)}")
    if choice.runner_up is not None:
        console.print(f"Runner-up: {name_of(settings[choice.runner_up])}")
    if best.runs[0].split == "test":
        console.print(
            "note: it was chosen by the figures of the test split, which flatter it therefore: choose by validation, "
            "and report from test"
        )
    else:
        following = command(best, len(settings), tolerance)
        console.print(f"Report it from the test split, by which nothing was chosen:\n  {following}", soft_wrap=True)


def command(setting: Setting, among: int, tolerance: Tolerance) -> str:
    """The job that judges the first run of a setting by the test split, and brings it before the gate; its policy is
    not trained again, and its card says why it was chosen.

    Args:
        among: how many settings there were to choose from.
    """
    run = setting.runs[0]
    storage = "" if run.storage is None else f" --storage {shlex.quote(str(run.storage))}"
    recipe = shlex.quote(str(run.recipe.absolute()))
    given = tolerance.model_dump(exclude_defaults=True)
    limits = ", ".join(f"{name} {value}" for name, value in given.items())
    reason = f"the best of {among} settings by the {run.split} split" + (f" under {limits}" if limits else "")
    return (
        f"python jobs/align.py --recipe {recipe}{storage} --evaluation.split test --registry.enabled true "
        f"--risk.reason {shlex.quote(reason)}"
    )


def as_json(settings: Sequence[Setting], choice: Choice, tolerance: Tolerance) -> dict[str, Any]:
    """Everything that was looked at, and the choice."""
    return {
        "tolerance": tolerance.model_dump(),
        "judged_by": dict(settings[0].runs[0].judged_by),
        "chosen": choice.best,
        "runner_up": choice.runner_up,
        "front": list(choice.front),
        "settings": [
            {
                "options": {name: setting.runs[0].options.get(name) for name in differing(settings)},
                "runs": [str(run.path) for run in setting.runs],
                "seeds": [run.options[SEED] for run in setting.runs],
                "figures": {name: asdict(setting.figure(name)) for name in FIGURES},
                "limits_broken": list(reasons),
            }
            for setting, reasons in zip(settings, choice.reasons, strict=True)
        ],
    }


def _table(settings: Sequence[Setting], choice: Choice, tolerance: Tolerance) -> Table:
    names = differing(settings)
    table = Table(title="Policies beside their reference", title_justify="left", show_lines=True)
    table.add_column("run", overflow="fold")
    for name in names:
        table.add_column(name.rsplit(".", 1)[-1])
    for column in ("average, gain", "worst, gain", "incidents", "drift, nats"):
        table.add_column(column, justify="right")
    if tolerance.cost_per_incident is not None:
        table.add_column("cost of 1,000", justify="right")
    order = sorted(range(len(settings)), key=lambda index: -settings[index].figure("mean").value)
    for index in order:
        setting = settings[index]
        cells = [name_of(setting) + (" *" if index in choice.front else "")]
        cells += [str(setting.runs[0].options.get(name, "")) for name in names]
        for figure, form in (("mean_gain", "+.3f"), ("tail_gain", "+.3f"), ("incidents", ".1%"), ("drift", ".2f")):
            cells.append(_range(setting.figure(figure), form))
        if tolerance.cost_per_incident is not None:
            cells.append(f"{expected_cost(setting, tolerance.cost_per_incident):,.0f}")
        table.add_row(*cells)
    return table


def name_of(setting: Setting) -> str:
    """The directory of its first run's report."""
    return setting.runs[0].path.absolute().parent.name


def _several_seeds(settings: Sequence[Setting]) -> bool:
    return any(len(setting.runs) > 1 for setting in settings)


def _seeds(setting: Setting) -> str:
    seeds = [str(run.options[SEED]) for run in setting.runs]
    return f" (means over the seeds {', '.join(seeds)}; the first one's policy)" if len(seeds) > 1 else ""


def _range(figure: Figure, form: str) -> str:
    low, high = figure.low, figure.high
    interval = "no interval" if low is None or high is None else f"{low:{form}} to {high:{form}}"
    return f"{figure.value:{form}}\n{interval}".replace("-", "−")
