"""From inputs to the rows a template prints: wording, number formats and order, no HTML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.records import SPLITS
from pipeline.report.inputs import Row

Estimate = Mapping[str, float | None]
SIDES = ("reference", "policy", "difference")


@dataclass(frozen=True)
class FigureRow:
    """One line of a figures table; ``better`` is True, False, or None where neither can be said."""

    name: str
    reference: tuple[str, str]
    policy: tuple[str, str]
    difference: tuple[str, str]
    reading: str
    better: bool | None


def number(value: float | None, form: str = ".3f") -> str:
    """A number with a typographic minus; a dash for none."""
    if value is None:
        return "–"
    text = format(value, form)
    # What rounds to zero has no sign: "-0.000" would suggest a direction.
    return (text if any(digit in "123456789" for digit in text) else text.lstrip("+-")).replace("-", "−")


def estimate(one: Estimate | None, form: str = ".3f") -> tuple[str, str]:
    """The value and its interval as text; the interval is empty where there is none."""
    if one is None:
        return "–", ""
    if one.get("low") is None or one.get("high") is None:
        return number(one["value"], form), ""
    return number(one["value"], form), f"{number(one['low'], form)} to {number(one['high'], form)}"


def duration(seconds: float | None) -> str:
    """Seconds as a person says them: 8.4 s, 3 min 05 s, 2 h 10 min."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def key_figures(evaluation: Mapping[str, Any]) -> list[FigureRow]:
    """The primary score's figures, then the other scores' means and tails, then the text's own figures."""
    primary = evaluation["primary_scorer"]
    share = f"{evaluation['tail_fraction']:.0%}"
    scorer = evaluation["scorers"][primary]
    rows = [
        _row(f"{primary}: mean", scorer, "mean", True),
        _row(f"{primary}: mean of the worst {share} (CVaR)", scorer, "tail_mean", True),
        _row(f"{primary}: 5% quantile", scorer, "tail_quantile", True),
        _row(f"{primary}: single worst output", scorer, "worst", True),
        _row(
            f"Incidents ({primary} below {number(evaluation['incident_below'], 'g')})",
            scorer,
            "incident_share",
            False,
            ".1%",
        ),
    ]
    if evaluation.get("loss_avoided_per_1000"):
        loss = evaluation["loss_avoided_per_1000"]
        name = f"Expected loss avoided per 1,000 outputs ({evaluation['cost_per_incident']:g} per incident)"
        rows.append(FigureRow(name, ("", ""), ("", ""), estimate(loss, ",.0f"), *reading(loss, True)))
    for name, other in evaluation["scorers"].items():
        if name == primary:
            continue
        direction = other["larger_is_better"]
        form = ".1f" if name == "length" else ".3f"
        rows.append(_row(f"{name}: mean", other, "mean", direction, form))
        if direction is not None:
            rows.append(_row(f"{name}: mean of the worst {share} (CVaR)", other, "tail_mean", direction, form))
    rows.append(_compared("Outputs that end by themselves", evaluation["text"]["finished"], None, ".1%"))
    return rows


def pair_figures(pairs: Mapping[str, Any]) -> tuple[list[FigureRow], list[tuple[str, str, str]]]:
    """Bits per byte of both models, and the policy's own figures as (name, value, interval)."""
    compared = [
        _compared("Bits per byte of real text, chosen and rejected", pairs["bits_per_byte"], False),
        _compared("Bits per byte, chosen only", pairs["bits_per_byte_chosen"], False),
        # Losing probability on rejected text is what training aims at: no direction is better there.
        _compared("Bits per byte, rejected only", pairs["bits_per_byte_rejected"], None),
    ]
    single = [
        ("Reward accuracy", *estimate(pairs["reward_accuracy"], ".1%")),
        *(
            [
                (
                    f"Implicit reward accuracy (adds {'KL' if pairs['risk_label'] == 'kl' else pairs['risk_label']})",
                    *estimate(implicit, ".1%"),
                )
            ]
            if (implicit := pairs["implicit_reward_accuracy"])
            else []
        ),
        ("Change of log-probability, chosen (nats)", *estimate(pairs["chosen_logp_change"], ".2f")),
        ("Change of log-probability, rejected (nats)", *estimate(pairs["rejected_logp_change"], ".2f")),
        *(
            (
                f"Sequential {'KL' if label == 'kl' else label} on {side} (nats)",
                *estimate(pairs[f"{side}_risk"][label], ".2f"),
            )
            for label in pairs["chosen_risk"]
            for side in ("chosen", "rejected")
        ),
    ]
    return compared, single


def split_table(*stats: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """The statistics that stand once a split: name and train, validation, test."""
    return [
        (_label(name), [_plain_value(one.get(split)) for split in SPLITS])
        for part in stats
        for name, one in _leaves(part)
        if _by_split(one)
    ]


def other_table(stats: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Every other statistic as name and value, nested names joined."""
    return [(_label(name), _plain_value(one)) for name, one in _leaves(stats) if not _by_split(one)]


def without_dropped(stats: Mapping[str, Any]) -> dict[str, Any]:
    """The statistics but for the drop counts, which have a table of their own."""
    return {name: one for name, one in stats.items() if name != "dropped"}


def dropped_table(*stats: tuple[str, Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """Stage, reason and count of dropped rows, most frequent first within a stage."""
    rows = []
    for stage, part in stats:
        counts = part.get("dropped")
        if isinstance(counts, Mapping):
            flat = [(name.replace("_", " "), value) for name, value in _leaves(counts) if isinstance(value, int)]
            rows += [(stage, name, f"{value:,}") for name, value in sorted(flat, key=lambda one: (-one[1], one[0]))]
        elif counts is not None:
            rows.append((stage, "all reasons", _plain_value(counts)))
    return rows


def stage_table(stages: list[Row]) -> tuple[list[tuple[str, str, str]], str]:
    """Name, time and whether it was reused, of every stage; and the total time."""
    rows = [
        (
            str(stage["name"]),
            duration(stage.get("seconds")),
            "reused from an earlier run" if stage.get("reused") else "",
        )
        for stage in stages
    ]
    return rows, duration(sum(stage.get("seconds") or 0.0 for stage in stages))


def _row(
    name: str, scorer: Mapping[str, Any], figure: str, larger_is_better: bool | None, form: str = ".3f"
) -> FigureRow:
    return _compared(name, {side: scorer[side].get(figure) for side in SIDES}, larger_is_better, form)


def _compared(
    name: str, sides: Mapping[str, Estimate | None], larger_is_better: bool | None, form: str = ".3f"
) -> FigureRow:
    reference, policy = estimate(sides["reference"], form), estimate(sides["policy"], form)
    difference = estimate(sides["difference"], f"+{form}")
    # A difference of two shares is in percentage points; "−1.6%" could be read as a relative change.
    difference = difference[0].replace("%", " pp"), difference[1].replace("%", " pp")
    return FigureRow(name, reference, policy, difference, *reading(sides["difference"], larger_is_better))


def reading(difference: Estimate | None, larger_is_better: bool | None) -> tuple[str, bool | None]:
    """What the difference's interval allows to say, in words."""
    if difference is None or difference.get("low") is None or difference.get("high") is None:
        return "no interval", None
    low, high = float(difference["low"] or 0.0), float(difference["high"] or 0.0)
    if low <= 1e-9 and high >= -1e-9:
        return "not clearly different", None
    up = low > 0
    if larger_is_better is None:
        return "clearly higher" if up else "clearly lower", None
    better = up == larger_is_better
    return ("clearly better" if better else "clearly worse"), better


def _by_split(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and set(value) <= set(SPLITS)


def _leaves(stats: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, one in stats.items():
        path = f"{prefix}: {name}" if prefix else str(name)
        if isinstance(one, Mapping) and not (_by_split(one) and not any(isinstance(v, Mapping) for v in one.values())):
            found += _leaves(one, path)
        else:
            found.append((path, one))
    return found


def _label(name: str) -> str:
    text = name.replace("_", " ")
    return text[:1].upper() + text[1:]


def _plain_value(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain_value(one) for one in value)
    return str(value)
