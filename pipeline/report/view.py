"""From inputs to the rows a template prints: wording, number formats and order, no HTML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.records import SPLITS
from pipeline.report.inputs import Row
from pipeline.report.language import Translate, english, sense

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


def estimate(one: Estimate | None, form: str = ".3f", tr: Translate = english) -> tuple[str, str]:
    """The value and its interval as text; the interval is empty where there is none."""
    if one is None:
        return "–", ""
    if one.get("low") is None or one.get("high") is None:
        return number(one["value"], form), ""
    low, high = number(one["low"], form), number(one["high"], form)
    return number(one["value"], form), tr("{low} to {high}").format(low=low, high=high)


def duration(seconds: float | None, tr: Translate = english) -> str:
    """Seconds as a person says them: 8.4 s, 3 min 05 s, 2 h 10 min."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return tr("{seconds} s").format(seconds=f"{seconds:.1f}")
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return tr("{minutes} min {seconds} s").format(minutes=minutes, seconds=f"{rest:02d}")
    return tr("{hours} h {minutes} min").format(hours=minutes // 60, minutes=f"{minutes % 60:02d}")


def key_figures(evaluation: Mapping[str, Any], tr: Translate = english) -> list[FigureRow]:
    """The primary score's figures, then the other scores' means and tails, then the text's own figures."""
    primary = evaluation["primary_scorer"]
    share = f"{evaluation['tail_fraction']:.0%}"
    scorer = evaluation["scorers"][primary]
    mean = tr("{scorer}: mean")
    tail = tr("{scorer}: mean of the worst {share} (CVaR)")
    incidents = tr("Incidents ({scorer} below {limit})")
    rows = [
        _row(mean.format(scorer=primary), scorer, "mean", True, tr),
        _row(tail.format(scorer=primary, share=share), scorer, "tail_mean", True, tr),
        _row(tr("{scorer}: 5% quantile").format(scorer=primary), scorer, "tail_quantile", True, tr),
        _row(tr("{scorer}: single worst output").format(scorer=primary), scorer, "worst", True, tr),
        _row(
            incidents.format(scorer=primary, limit=number(evaluation["incident_below"], "g")),
            scorer,
            "incident_share",
            False,
            tr,
            ".1%",
        ),
    ]
    if evaluation.get("loss_avoided_per_1000"):
        loss = evaluation["loss_avoided_per_1000"]
        avoided = tr("Expected loss avoided per 1,000 outputs ({cost} per incident)")
        name = avoided.format(cost=f"{evaluation['cost_per_incident']:g}")
        rows.append(FigureRow(name, ("", ""), ("", ""), estimate(loss, ",.0f", tr), *reading(loss, True, tr)))
    for name, other in evaluation["scorers"].items():
        if name == primary:
            continue
        direction = other["larger_is_better"]
        form = ".1f" if name == "length" else ".3f"
        rows.append(_row(mean.format(scorer=name), other, "mean", direction, tr, form))
        if direction is not None:
            rows.append(_row(tail.format(scorer=name, share=share), other, "tail_mean", direction, tr, form))
    rows.append(_compared(tr("Outputs that end by themselves"), evaluation["text"]["finished"], None, tr, ".1%"))
    return rows


def pair_figures(
    pairs: Mapping[str, Any], tr: Translate = english
) -> tuple[list[FigureRow], list[tuple[str, str, str]]]:
    """Bits per byte of both models, and the policy's own figures as (name, value, interval)."""
    compared = [
        _compared(tr("Bits per byte of real text, chosen and rejected"), pairs["bits_per_byte"], False, tr),
        _compared(tr("Bits per byte, chosen only"), pairs["bits_per_byte_chosen"], False, tr),
        # Losing probability on rejected text is what training aims at: no direction is better there.
        _compared(tr("Bits per byte, rejected only"), pairs["bits_per_byte_rejected"], None, tr),
    ]
    single = [(tr("Reward accuracy"), *estimate(pairs["reward_accuracy"], ".1%", tr))]
    if implicit := pairs["implicit_reward_accuracy"]:
        name = tr("Implicit reward accuracy (adds {measure})").format(measure=_shown(pairs["risk_label"]))
        single.append((name, *estimate(implicit, ".1%", tr)))
    single += [
        (tr("Change of log-probability, chosen (nats)"), *estimate(pairs["chosen_logp_change"], ".2f", tr)),
        (tr("Change of log-probability, rejected (nats)"), *estimate(pairs["rejected_logp_change"], ".2f", tr)),
    ]
    sides = (
        ("chosen_risk", tr("Sequential {measure} on chosen (nats)")),
        ("rejected_risk", tr("Sequential {measure} on rejected (nats)")),
    )
    single += [
        (name.format(measure=_shown(label)), *estimate(pairs[side][label], ".2f", tr))
        for label in pairs["chosen_risk"]
        for side, name in sides
    ]
    return compared, single


def split_table(*stats: Mapping[str, Any], tr: Translate = english) -> list[tuple[str, list[str]]]:
    """The statistics that stand once a split: name and train, validation, test."""
    return [
        (_capitalised(name), [_plain_value(one.get(split), tr) for split in SPLITS])
        for part in stats
        for name, one in _leaves(part, tr)
        if _by_split(one)
    ]


def other_table(stats: Mapping[str, Any], tr: Translate = english) -> list[tuple[str, str]]:
    """Every other statistic as name and value, nested names joined."""
    return [(_capitalised(name), _plain_value(one, tr)) for name, one in _leaves(stats, tr) if not _by_split(one)]


def without_dropped(stats: Mapping[str, Any]) -> dict[str, Any]:
    """The statistics but for the drop counts, which have a table of their own."""
    return {name: one for name, one in stats.items() if name != "dropped"}


def dropped_table(*stats: tuple[str, Mapping[str, Any]], tr: Translate = english) -> list[tuple[str, str, str]]:
    """Stage, reason and count of dropped rows, most frequent first within a stage."""
    rows = []
    for stage, part in stats:
        counts = part.get("dropped")
        if isinstance(counts, Mapping):
            flat = [(name, value) for name, value in _leaves(counts, tr) if isinstance(value, int)]
            rows += [(stage, name, f"{value:,}") for name, value in sorted(flat, key=lambda one: (-one[1], one[0]))]
        elif counts is not None:
            rows.append((stage, tr("all reasons"), _plain_value(counts, tr)))
    return rows


def stage_table(stages: list[Row], tr: Translate = english) -> tuple[list[tuple[str, str, str]], str]:
    """Name, time and whether it was reused, of every stage; and the total time."""
    rows = [
        (
            stage_name(str(stage["name"]), tr),
            duration(stage.get("seconds"), tr),
            tr("reused from an earlier run") if stage.get("reused") else "",
        )
        for stage in stages
    ]
    return rows, duration(sum(stage.get("seconds") or 0.0 for stage in stages), tr)


def stage_name(name: str, tr: Translate) -> str:
    """A stage of the graph in the page's language; English and stages nobody has translated keep their own name."""
    return tr(sense("stage", name))


def _row(
    name: str,
    scorer: Mapping[str, Any],
    figure: str,
    larger_is_better: bool | None,
    tr: Translate,
    form: str = ".3f",
) -> FigureRow:
    return _compared(name, {side: scorer[side].get(figure) for side in SIDES}, larger_is_better, tr, form)


def _compared(
    name: str,
    sides: Mapping[str, Estimate | None],
    larger_is_better: bool | None,
    tr: Translate,
    form: str = ".3f",
) -> FigureRow:
    reference, policy = estimate(sides["reference"], form, tr), estimate(sides["policy"], form, tr)
    difference = estimate(sides["difference"], f"+{form}", tr)
    # A difference of two shares is in percentage points; "−1.6%" could be read as a relative change.
    difference = difference[0].replace("%", tr(" pp")), difference[1].replace("%", tr(" pp"))
    return FigureRow(name, reference, policy, difference, *reading(sides["difference"], larger_is_better, tr))


def reading(
    difference: Estimate | None, larger_is_better: bool | None, tr: Translate = english
) -> tuple[str, bool | None]:
    """What the difference's interval allows to say, in words."""
    if difference is None or difference.get("low") is None or difference.get("high") is None:
        return tr("no interval"), None
    low, high = float(difference["low"] or 0.0), float(difference["high"] or 0.0)
    if low <= 1e-9 and high >= -1e-9:
        return tr("not clearly different"), None
    up = low > 0
    if larger_is_better is None:
        return tr("clearly higher") if up else tr("clearly lower"), None
    better = up == larger_is_better
    return (tr("clearly better") if better else tr("clearly worse")), better


def _shown(label: str) -> str:
    return "KL" if label == "kl" else label


def _by_split(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and set(value) <= set(SPLITS)


def _leaves(stats: Mapping[str, Any], tr: Translate, prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, one in stats.items():
        words = tr(sense("statistic", str(name).replace("_", " ")))
        path = tr("{part}: {name}").format(part=prefix, name=words) if prefix else words
        if isinstance(one, Mapping) and not (_by_split(one) and not any(isinstance(v, Mapping) for v in one.values())):
            found += _leaves(one, tr, path)
        else:
            found.append((path, one))
    return found


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def _plain_value(value: Any, tr: Translate) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return tr("yes") if value else tr("no")
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain_value(one, tr) for one in value)
    return str(value)
