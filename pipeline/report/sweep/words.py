"""Settings, limits and figures in words. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.report.language import Translate, english
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


def figures_of(sweep: Row, tr: Translate) -> list[Named]:
    """The figures of a setting in the order in which tables show them."""
    worst, incidents, gain = worst_of(sweep, tr), incidents_of(sweep, tr), tr("… above the reference's")
    return [
        Named("mean", tr("Average {scorer} score").format(scorer=sweep["primary_scorer"]), ".3f"),
        Named("mean_gain", gain, "+.3f", True),
        Named("tail", tr("Average of {worst}").format(worst=worst), ".3f"),
        Named("tail_gain", gain, "+.3f", True),
        Named("incidents", sentence(incidents, tr), ".1%"),
        Named("incidents_gain", gain, "+.1%", False),
        Named("drift", tr("Drift from the reference, nats a response"), ".2f"),
        Named("reward_accuracy", tr("Reward accuracy on held-out pairs"), ".1%"),
    ]


def worst_of(sweep: Row, tr: Translate) -> str:
    """The outputs that the tail is made of: "the worst 10%"."""
    return tr("the worst {share}").format(share=f"{100 * sweep['tail_fraction']:.3g}%")


def incidents_of(sweep: Row, tr: Translate) -> str:
    """What counts as an incident: "incidents (vader below −0.5)"."""
    limit = number(sweep["incident_below"], "g")
    return tr("incidents ({scorer} below {limit})").format(scorer=sweep["primary_scorer"], limit=limit)


def tolerated(sweep: Row, tr: Translate = english) -> list[str]:
    """What the user tolerates, a sentence's part for each limit; empty for a user without limits."""
    tolerance, worst = sweep["tolerance"], worst_of(sweep, tr)
    found = []
    if (drop := tolerance.get("tail_drop")) is not None:
        below = tr("{worst} of the outputs score on average at most {drop} below the reference's")
        never = tr("{worst} of the outputs score on average not below the reference's")
        found.append((below if drop else never).format(worst=worst, drop=f"{drop:g}"))
    if (drift := tolerance.get("max_drift")) is not None:
        found.append(tr("drift is at most {limit} nats a response").format(limit=f"{drift:g}"))
    if (share := tolerance.get("max_incidents")) is not None:
        most = tr("at most {share} of the outputs are {incidents}")
        found.append(most.format(share=f"{100 * share:.3g}%", incidents=incidents_of(sweep, tr)))
    if not tolerance.get("allow_decayed"):
        found.append(tr("the text shows no sign of decay"))
    return found


def criterion(sweep: Row, tr: Translate) -> str:
    """What is best among the settings that keep the limits."""
    cost = sweep["tolerance"].get("cost_per_incident")
    if cost is None:
        return tr("the best average {scorer} score").format(scorer=sweep["primary_scorer"])
    return tr("the least expected cost of incidents (at {cost} each)").format(cost=f"{cost:g}")


def setting_text(setting: Row, dimensions: Sequence[str], tr: Translate = english) -> str:
    """A setting as a person says it: "ra_dpo2 with cvar at level 0.5, beta 0.1"."""
    text, measure, level = str(setting["method"]), setting.get("measure"), setting.get("level")
    if measure is not None and level is not None:
        with_level = tr("{method} with {measure} at level {level}")
        text = with_level.format(method=text, measure=measure, level=plain(level))
    elif measure is not None:
        text = tr("{method} with {measure}").format(method=text, measure=measure)
    return tr(", ").join([text, *others(setting, dimensions)])


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


def with_interval(figure: Row | None, form: str, tr: Translate) -> str:
    """A figure in running text: "0.263 (95% interval 0.22 to 0.30)"."""
    value, interval = points(figure, form, tr)
    if not interval:
        return tr("{value} (no interval)").format(value=value)
    return tr("{value} (95% interval {interval})").format(value=value, interval=interval)


def points(figure: Row | None, form: str, tr: Translate) -> tuple[str, str]:
    """Value and interval as text; the difference of two shares is in percentage points."""
    value, interval = estimate(figure, form, tr)
    if form.startswith("+"):
        return value.replace("%", tr(" pp")), interval.replace("%", "", 1).replace("%", tr(" pp"))
    return value, interval


def sentence(text: str, tr: Translate) -> str:
    """With a capital letter first in English; where a Japanese one begins with a Latin letter, that is of a name."""
    return text[:1].upper() + text[1:] if tr is english else text


def listed(items: Sequence[str], tr: Translate = english) -> str:
    """ "a", "a and b", "a, b and c"; items that hold commas are parted by semicolons."""
    if len(items) < 2:
        return "".join(items)
    commas = any("," in item for item in items)
    first = (tr("; ") if commas else tr(", ")).join(items[:-1])
    both = tr("{first}; and {last}") if commas and len(items) > 2 else tr("{first} and {last}")
    return both.format(first=first, last=items[-1])


def counted(count: int, one: str, many: str, **others: str) -> str:
    """ "1 setting", "1,200 settings" from "{count} setting" and "{count} settings"."""
    return (one if count == 1 else many).format(count=f"{count:,}", **others)


def trials_text(count: int, tr: Translate) -> str:
    """ "1 trial", "28 trials"."""
    return counted(count, tr("{count} trial"), tr("{count} trials"))


def settings_text(count: int, tr: Translate) -> str:
    """ "1 setting", "13 settings"."""
    return counted(count, tr("{count} setting"), tr("{count} settings"))
