"""The decision in plain words: what is to be taken, why, and how sure that is. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from pipeline.report.sweep.words import (
    Row,
    counted,
    criterion,
    incidents_of,
    listed,
    points,
    sentence,
    setting_text,
    tolerated,
    with_interval,
    worst_of,
)
from pipeline.report.view import number, reading

UNCONFIRMED = "Chosen, not confirmed"
_MISSES = 3


@dataclass(frozen=True)
class Decision:
    """The box at the top: badge and its style class, headline, paragraphs, and lists with what leads to them."""

    badge: tuple[str, str]
    headline: str
    reasons: list[str]
    lead: str = ""
    points: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def decide(sweep: Row) -> Decision:
    """The decision of a sweep, whatever came of it."""
    if not sweep["settings"]:
        return _nothing_finished(sweep)
    if sweep["chosen"] is None:
        return _nothing_qualifies(sweep)
    return _chosen(sweep)


def tested(sweep: Row, role: str) -> Row | None:
    """What the test split said of the chosen setting or of the runner-up."""
    return next((one for one in sweep["test"] if one["role"] == role), None)


def unfinished(sweep: Row) -> str:
    """How the trials ended, in a line: "22 of 24 trials finished, 1 failed, 1 stopped early"."""
    states = Counter(trial["state"] for trial in sweep["trials"])
    total = sum(states.values())
    rest = [f"{count:,} {state}" for state, count in sorted(states.items()) if state != "finished"]
    return ", ".join([f"{states['finished']:,} of {counted(total, 'trial')} finished", *rest])


def _nothing_finished(sweep: Row) -> Decision:
    why = Counter(trial["reason"] or "no reason was recorded" for trial in sweep["trials"])
    return Decision(
        ("Nothing to choose from", "bad"),
        "Nothing can be chosen: no trial finished.",
        [f"{unfinished(sweep)}. {_tolerance_text(sweep)}"],
        "Most frequent reasons:" if why else "",
        [f"{reason} ({counted(count, 'trial')})" for reason, count in why.most_common(3)],
    )


def _nothing_qualifies(sweep: Row) -> Decision:
    settings = sweep["settings"]
    misses = [
        f"{setting_text(settings[index], sweep['dimensions'])}: {'; '.join(settings[index]['limits_broken'])} "
        f"(average gain {points(settings[index]['figures'].get('mean_gain'), '+.3f')[0]})"
        for index in sweep["nearest"][:_MISSES]
    ]
    return Decision(
        ("Nothing qualifies", "bad"),
        f"Nothing qualifies: {_none_of(len(settings))}.",
        [_tolerance_text(sweep)],
        "Nearest misses, which break the fewest limits by the least:",
        misses,
        _common_warnings(sweep),
    )


def _chosen(sweep: Row) -> Decision:
    settings = sweep["settings"]
    best = settings[sweep["chosen"]]
    kept = sum(not one["limits_broken"] for one in settings)
    test = tested(sweep, "chosen")
    figures = best["figures"] if test is None else test["figures"]
    broken = [] if test is None else test["limits_broken"]
    warnings = [*_evidence_warnings(sweep, test), *_common_warnings(sweep)]
    if broken:
        warnings.insert(0, f"On the test split it breaks what is tolerated: {'; '.join(broken)}.")
    return Decision(
        _badge(sweep, test, broken),
        _headline(sweep, test, broken),
        [_tolerance_text(sweep), _why(sweep, kept)],
        _lead(sweep, test),
        [
            sentence(one)
            for one in (
                *_figures_in_words(sweep, figures, test is not None),
                *_verdicts(best, test),
                *_runner_up(sweep, kept),
            )
        ],
        warnings,
    )


def _headline(sweep: Row, test: Row | None, broken: list[str]) -> str:
    name = setting_text(sweep["settings"][sweep["chosen"]], sweep["dimensions"])
    if broken:
        return f"Do not take {name} yet: on the test split it does not keep what is tolerated."
    if test is None or sweep["split"] == "test":
        return f"Best by the {sweep['split']} split: {name}."
    return f"Take {name}."


def _badge(sweep: Row, test: Row | None, broken: list[str]) -> tuple[str, str]:
    if broken:
        return "Chosen, but breaks a limit on test", "bad"
    if test is None or sweep["split"] == "test":
        return UNCONFIRMED, "unclear"
    signs = [
        reading(test["figures"].get(name), larger)[1]
        for name, larger in (("mean_gain", True), ("tail_gain", True), ("incidents_gain", False))
    ]
    if False in signs:
        return "Chosen, mixed on test", "unclear"
    return ("Chosen and confirmed", "good") if True in signs else ("Chosen, gain not clear", "unclear")


def _tolerance_text(sweep: Row) -> str:
    limits = tolerated(sweep)
    if not limits:
        return "No limit was set."
    whole = " Each limit is held against the whole 95% interval." if sweep["tolerance"].get("whole_interval") else ""
    return f"What is tolerated: {listed(limits)}.{whole}"


def _why(sweep: Row, kept: int) -> str:
    count, split = len(sweep["settings"]), sweep["split"]
    if not tolerated(sweep):
        return f"By the {split} split this has {criterion(sweep)} of {counted(count, 'setting')}."
    if count == 1:
        return f"This is the only setting that finished; by the {split} split it keeps all limits."
    if kept == 1:
        return f"By the {split} split this is the only one of {count} settings that keeps all limits."
    return (
        f"By the {split} split this has {criterion(sweep)} among the {kept} of {count} settings that keep all limits."
    )


def _lead(sweep: Row, test: Row | None) -> str:
    if test is None or sweep["split"] == "test":
        return f"On the {sweep['split']} split, by which it was chosen, it gave:"
    return "On the test split, by which nothing was chosen, it gave:"


def _figures_in_words(sweep: Row, figures: Row, on_test: bool) -> list[str]:
    rows = (
        (f"average {sweep['primary_scorer']} score", "mean", ".3f", True),
        (f"average of {worst_of(sweep)}", "tail", ".3f", True),
        (incidents_of(sweep), "incidents", ".1%", False),
    )
    reference = {} if on_test else sweep["reference"]
    found = [_beside(name, figures, key, form, larger, reference) for name, key, form, larger in rows]
    drift = f"drift from the reference: {with_interval(figures.get('drift'), '.2f')} nats a response"
    return [*found, drift + _limit(sweep["tolerance"].get("max_drift"), " nats")]


def _beside(name: str, figures: Row, key: str, form: str, larger: bool, reference: Row) -> str:
    value, gain = figures.get(key), figures.get(f"{key}_gain")
    base = reference_value(figures, key) if not reference.get(key) else reference[key]["value"]
    text = f"{name}: {with_interval(value, form)} beside the reference's {number(base, form)}"
    words = reading(gain, larger)[0]
    difference, interval = points(gain, f"+{form}")
    return f"{text}, {words} ({difference}{f', {interval}' if interval else ''})" if gain else text


def reference_value(figures: Row, key: str) -> float | None:
    """The reference's figure: the policy's less its gain."""
    value, gain = figures.get(key), figures.get(f"{key}_gain")
    if not value or not gain or value["value"] is None or gain["value"] is None:
        return None
    return float(value["value"] - gain["value"])


def _limit(limit: float | None, unit: str) -> str:
    return "" if limit is None else f"; at most {limit:g}{unit} is tolerated"


def _verdicts(setting: Row, test: Row | None) -> list[str]:
    verdicts = [] if test is None else test["verdict"]
    if len(verdicts) < 2:
        return [f"verdict of its report: {one}" for one in verdicts]
    return [
        f"verdict of seed {seed}: {one}" for seed, one in zip(_seeds(setting, len(verdicts)), verdicts, strict=True)
    ]


def _seeds(setting: Row, count: int) -> list[str]:
    seeds = [str(seed) for seed in setting["seeds"]]
    return seeds if len(seeds) == count else [f"number {index + 1}" for index in range(count)]


def _runner_up(sweep: Row, kept: int) -> list[str]:
    if sweep["runner_up"] is None:
        alone = kept == 1 and len(sweep["settings"]) > 1
        return ["there is no runner-up: no other setting keeps what is tolerated"] if alone else []
    setting = sweep["settings"][sweep["runner_up"]]
    gain = with_interval(setting["figures"].get("mean_gain"), "+.3f")
    return [f"runner-up: {setting_text(setting, sweep['dimensions'])}, average gain on {sweep['split']} {gain}"]


def _evidence_warnings(sweep: Row, test: Row | None) -> list[str]:
    if sweep["split"] == "test":
        return [
            "It was chosen by the figures of the test split, which flatter it therefore; nothing here confirms them. "
            "Choose by validation, and report from test."
        ]
    if test is None:
        return [
            "It has not been judged by the test split: the figures here are those it was chosen by, and flatter it. "
            "Run the command below before you sign off."
        ]
    return []


def _common_warnings(sweep: Row) -> list[str]:
    found = []
    if sweep["num_prompts"] < 2:
        found.append("With a single prompt no interval can be given: every figure may be chance.")
    failed = sum(trial["state"] == "failed" for trial in sweep["trials"])
    if failed:
        found.append(f"{failed} of {counted(len(sweep['trials']), 'trial')} failed, for the reasons at the end.")
    return found


def _none_of(count: int) -> str:
    return "the only setting that finished breaks a limit" if count == 1 else f"all {count} settings break a limit"
