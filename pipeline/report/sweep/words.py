"""Settings, limits and figures in words. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.report.view import estimate, number

Row = Mapping[str, Any]
METHOD, MEASURE, LEVEL = "loss.method", "risk.measure", "risk.level"
DASH = "–"


@dataclass(frozen=True)
class Named:
    """A figure of a setting: its key, its name, the format of its numbers, and whether larger is better."""

    key: str
    name: str
    form: str
    larger_is_better: bool | None = None


def figures_of(sweep: Row) -> list[Named]:
    """The figures of a setting in the order in which tables show them."""
    worst, incidents = worst_of(sweep), incidents_of(sweep)
    return [
        Named("mean", f"Average {sweep['primary_scorer']} score", ".3f"),
        Named("mean_gain", "… above the reference's", "+.3f", True),
        Named("tail", f"Average of {worst}", ".3f"),
        Named("tail_gain", "… above the reference's", "+.3f", True),
        Named("incidents", sentence(incidents), ".1%"),
        Named("incidents_gain", "… above the reference's", "+.1%", False),
        Named("drift", "Drift from the reference, nats a response", ".2f"),
        Named("reward_accuracy", "Reward accuracy on held-out pairs", ".1%"),
    ]


def worst_of(sweep: Row) -> str:
    """The outputs that the tail is made of: "the worst 10%"."""
    return f"the worst {100 * sweep['tail_fraction']:.3g}%"


def incidents_of(sweep: Row) -> str:
    """What counts as an incident: "incidents (vader below −0.5)"."""
    return f"incidents ({sweep['primary_scorer']} below {number(sweep['incident_below'], 'g')})"


def tolerated(sweep: Row) -> list[str]:
    """What the user tolerates, a sentence's part for each limit; empty for a user without limits."""
    tolerance = sweep["tolerance"]
    found = []
    if (drop := tolerance.get("tail_drop")) is not None:
        below = f"at most {drop:g} below the reference's" if drop else "not below the reference's"
        found.append(f"{worst_of(sweep)} of the outputs score on average {below}")
    if (drift := tolerance.get("max_drift")) is not None:
        found.append(f"drift is at most {drift:g} nats a response")
    if (share := tolerance.get("max_incidents")) is not None:
        found.append(f"at most {100 * share:.3g}% of the outputs are {incidents_of(sweep)}")
    if not tolerance.get("allow_decayed"):
        found.append("the text shows no sign of decay")
    return found


def criterion(sweep: Row) -> str:
    """What is best among the settings that keep the limits."""
    cost = sweep["tolerance"].get("cost_per_incident")
    first = f"the best average {sweep['primary_scorer']} score" if cost is None else "the least expected cost"
    return first if cost is None else f"{first} of incidents (at {cost:g} each)"


def setting_text(setting: Row, dimensions: Sequence[str]) -> str:
    """A setting as a person says it: "ra_dpo2 with cvar at level 0.5, beta 0.1"."""
    text = str(setting["method"])
    if setting.get("measure") is not None:
        text += f" with {setting['measure']}"
        if setting.get("level") is not None:
            text += f" at level {plain(setting['level'])}"
    return ", ".join([text, *others(setting, dimensions)])


def others(setting: Row, dimensions: Sequence[str]) -> list[str]:
    """The options of a setting besides method, measure and level in which settings differ: "beta 0.1"."""
    options = setting["options"]
    return [
        f"{short(name, dimensions)} {plain(options[name])}"
        for name in dimensions
        if name not in (METHOD, MEASURE, LEVEL) and options.get(name) is not None
    ]


def options_text(options: Row) -> str:
    """All options of a trial, with the last part of their names: "method dpo, beta 0.1"."""
    return ", ".join(f"{short(name, list(options))} {plain(value)}" for name, value in options.items()) or DASH


def short(name: str, names: Sequence[str]) -> str:
    """The last part of a dotted name, or all of it where two names end alike."""
    last = name.rsplit(".", 1)[-1]
    return name if sum(one.rsplit(".", 1)[-1] == last for one in names) > 1 else last


def plain(value: Any) -> str:
    """An option's value: numbers short."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, (int, float)):
        return f"{value:.4g}" if isinstance(value, float) else str(value)
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def with_interval(figure: Row | None, form: str) -> str:
    """A figure in running text: "0.263 (95% interval 0.22 to 0.30)"."""
    value, interval = points(figure, form)
    return f"{value} (95% interval {interval})" if interval else f"{value} (no interval)"


def points(figure: Row | None, form: str) -> tuple[str, str]:
    """Value and interval as text; the difference of two shares is in percentage points."""
    value, interval = estimate(figure, form)
    if form.startswith("+"):
        return value.replace("%", " pp"), interval.replace("%", "", 1).replace("%", " pp")
    return value, interval


def sentence(text: str) -> str:
    """With a capital letter first."""
    return text[:1].upper() + text[1:]


def listed(items: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"; items that hold commas are parted by semicolons."""
    if len(items) < 2:
        return "".join(items)
    comma = "; " if any("," in item for item in items) else ", "
    return comma.join(items[:-1]) + (";" if comma == "; " and len(items) > 2 else "") + " and " + items[-1]


def counted(count: int, one: str, many: str | None = None) -> str:
    """ "1 setting", "1,200 settings"."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
