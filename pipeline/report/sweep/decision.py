"""The decision in plain words: what is to be taken, why, and how sure that is. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from pipeline.report.language import Translate, english, sense
from pipeline.report.sweep.words import (
    Row,
    criterion,
    incidents_of,
    listed,
    points,
    sentence,
    setting_text,
    settings_text,
    tolerated,
    trials_text,
    with_interval,
    worst_of,
)
from pipeline.report.view import number, reading

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


def decide(sweep: Row, tr: Translate = english) -> Decision:
    """The decision of a sweep, whatever came of it."""
    if not sweep["settings"]:
        return _nothing_finished(sweep, tr)
    if sweep["chosen"] is None:
        return _nothing_qualifies(sweep, tr)
    return _chosen(sweep, tr)


def tested(sweep: Row, role: str) -> Row | None:
    """What the test split said of the chosen setting or of the runner-up."""
    return next((one for one in sweep["test"] if one["role"] == role), None)


def unfinished(sweep: Row, tr: Translate) -> str:
    """How the trials ended, in a line: "22 of 24 trials finished, 1 failed, 1 stopped early"."""
    states = Counter(trial["state"] for trial in sweep["trials"])
    trials = trials_text(sum(states.values()), tr)
    finished = tr("{finished} of {trials} finished").format(finished=f"{states['finished']:,}", trials=trials)
    ended = tr("{count} {state}")
    rest = [
        ended.format(count=f"{count:,}", state=tr(sense("state", state)))
        for state, count in sorted(states.items())
        if state != "finished"
    ]
    return tr(", ").join([finished, *rest])


def split_name(sweep: Row, tr: Translate) -> str:
    """The split that the settings are compared by."""
    return tr(sense("split", sweep["split"]))


def _nothing_finished(sweep: Row, tr: Translate) -> Decision:
    unknown = tr("no reason was recorded")
    why = Counter(trial["reason"] or unknown for trial in sweep["trials"])
    ended = tr("{trials}. {tolerated}").format(trials=unfinished(sweep, tr), tolerated=_tolerance_text(sweep, tr))
    times = tr("{reason} ({trials})")
    return Decision(
        (tr("Nothing to choose from"), "bad"),
        tr("Nothing can be chosen: no trial finished."),
        [ended],
        tr("Most frequent reasons:") if why else "",
        [times.format(reason=reason, trials=trials_text(count, tr)) for reason, count in why.most_common(3)],
    )


def _nothing_qualifies(sweep: Row, tr: Translate) -> Decision:
    settings = sweep["settings"]
    count = len(settings)
    miss = tr("{setting}: {limits} (average gain {gain})")
    misses = [
        miss.format(
            setting=setting_text(settings[index], sweep["dimensions"], tr),
            limits=tr("; ").join(settings[index]["limits_broken"]),
            gain=points(settings[index]["figures"].get("mean_gain"), "+.3f", tr)[0],
        )
        for index in sweep["nearest"][:_MISSES]
    ]
    return Decision(
        (tr("Nothing qualifies"), "bad"),
        tr("Nothing qualifies: the only setting that finished breaks a limit.")
        if count == 1
        else tr("Nothing qualifies: all {count} settings break a limit.").format(count=count),
        [_tolerance_text(sweep, tr)],
        tr("Nearest misses, which break the fewest limits by the least:"),
        misses,
        _common_warnings(sweep, tr),
    )


def _chosen(sweep: Row, tr: Translate) -> Decision:
    settings = sweep["settings"]
    best = settings[sweep["chosen"]]
    kept = sum(not one["limits_broken"] for one in settings)
    test = tested(sweep, "chosen")
    figures = best["figures"] if test is None else test["figures"]
    broken = [] if test is None else test["limits_broken"]
    warnings = [*_evidence_warnings(sweep, test, tr), *_common_warnings(sweep, tr)]
    if broken:
        breaks = tr("On the test split it breaks what is tolerated: {limits}.")
        warnings.insert(0, breaks.format(limits=tr("; ").join(broken)))
    return Decision(
        _badge(sweep, test, broken, tr),
        _headline(sweep, test, broken, tr),
        [_tolerance_text(sweep, tr), _why(sweep, kept, tr)],
        _lead(sweep, test, tr),
        [
            sentence(one, tr)
            for one in (
                *_figures_in_words(sweep, figures, test is not None, tr),
                *_verdicts(best, test, tr),
                *_runner_up(sweep, kept, tr),
            )
        ],
        warnings,
    )


def _headline(sweep: Row, test: Row | None, broken: list[str], tr: Translate) -> str:
    name = setting_text(sweep["settings"][sweep["chosen"]], sweep["dimensions"], tr)
    if broken:
        not_yet = tr("Do not take {setting} yet: on the test split it does not keep what is tolerated.")
        return not_yet.format(setting=name)
    if test is None or sweep["split"] == "test":
        return tr("Best by the {split} split: {setting}.").format(split=split_name(sweep, tr), setting=name)
    return tr("Take {setting}.").format(setting=name)


def _badge(sweep: Row, test: Row | None, broken: list[str], tr: Translate) -> tuple[str, str]:
    if broken:
        return tr("Chosen, but breaks a limit on test"), "bad"
    if test is None or sweep["split"] == "test":
        return tr("Chosen, not confirmed"), "unclear"
    signs = [
        reading(test["figures"].get(name), larger)[1]
        for name, larger in (("mean_gain", True), ("tail_gain", True), ("incidents_gain", False))
    ]
    if False in signs:
        return tr("Chosen, mixed on test"), "unclear"
    return (tr("Chosen and confirmed"), "good") if True in signs else (tr("Chosen, gain not clear"), "unclear")


def _tolerance_text(sweep: Row, tr: Translate) -> str:
    limits = tolerated(sweep, tr)
    if not limits:
        return tr("No limit was set.")
    text = tr("What is tolerated: {limits}.").format(limits=listed(limits, tr))
    whole = sweep["tolerance"].get("whole_interval")
    return text + tr(" Each limit is held against the whole 95% interval.") if whole else text


def _why(sweep: Row, kept: int, tr: Translate) -> str:
    count, split, best = len(sweep["settings"]), split_name(sweep, tr), criterion(sweep, tr)
    if not tolerated(sweep):
        settings = settings_text(count, tr)
        return tr("By the {split} split this has {best} of {settings}.").format(
            split=split, best=best, settings=settings
        )
    if count == 1:
        only = tr("This is the only setting that finished; by the {split} split it keeps all limits.")
        return only.format(split=split)
    if kept == 1:
        only = tr("By the {split} split this is the only one of {count} settings that keeps all limits.")
        return only.format(split=split, count=count)
    among = tr("By the {split} split this has {best} among the {kept} of {count} settings that keep all limits.")
    return among.format(split=split, best=best, kept=kept, count=count)


def _lead(sweep: Row, test: Row | None, tr: Translate) -> str:
    if test is None or sweep["split"] == "test":
        lead = tr("On the {split} split, by which it was chosen, it gave:")
        return lead.format(split=split_name(sweep, tr))
    return tr("On the test split, by which nothing was chosen, it gave:")


def _figures_in_words(sweep: Row, figures: Row, on_test: bool, tr: Translate) -> list[str]:
    rows = (
        (tr("average {scorer} score").format(scorer=sweep["primary_scorer"]), "mean", ".3f", True),
        (tr("average of {worst}").format(worst=worst_of(sweep, tr)), "tail", ".3f", True),
        (incidents_of(sweep, tr), "incidents", ".1%", False),
    )
    reference = {} if on_test else sweep["reference"]
    found = [_beside(name, figures, key, form, larger, reference, tr) for name, key, form, larger in rows]
    drift, limit = with_interval(figures.get("drift"), ".2f", tr), sweep["tolerance"].get("max_drift")
    if limit is None:
        return [*found, tr("drift from the reference: {drift} nats a response").format(drift=drift)]
    limited = tr("drift from the reference: {drift} nats a response; at most {limit} nats is tolerated")
    return [*found, limited.format(drift=drift, limit=f"{limit:g}")]


def _beside(name: str, figures: Row, key: str, form: str, larger: bool, reference: Row, tr: Translate) -> str:
    value, gain = with_interval(figures.get(key), form, tr), figures.get(f"{key}_gain")
    base = number(reference_value(figures, key) if not reference.get(key) else reference[key]["value"], form)
    if not gain:
        return tr("{name}: {value} beside the reference's {base}").format(name=name, value=value, base=base)
    difference, interval = points(gain, f"+{form}", tr)
    words = reading(gain, larger, tr)[0]
    if not interval:
        text = tr("{name}: {value} beside the reference's {base}, {reading} ({difference})")
        return text.format(name=name, value=value, base=base, reading=words, difference=difference)
    text = tr("{name}: {value} beside the reference's {base}, {reading} ({difference}, {interval})")
    return text.format(name=name, value=value, base=base, reading=words, difference=difference, interval=interval)


def reference_value(figures: Row, key: str) -> float | None:
    """The reference's figure: the policy's less its gain."""
    value, gain = figures.get(key), figures.get(f"{key}_gain")
    if not value or not gain or value["value"] is None or gain["value"] is None:
        return None
    return float(value["value"] - gain["value"])


def _verdicts(setting: Row, test: Row | None, tr: Translate) -> list[str]:
    verdicts = [] if test is None else test["verdict"]
    if len(verdicts) < 2:
        return [tr("verdict of its report: {verdict}").format(verdict=one) for one in verdicts]
    of_seed = tr("verdict of seed {seed}: {verdict}")
    seeds = _seeds(setting, len(verdicts), tr)
    return [of_seed.format(seed=seed, verdict=one) for seed, one in zip(seeds, verdicts, strict=True)]


def _seeds(setting: Row, count: int, tr: Translate) -> list[str]:
    seeds = [str(seed) for seed in setting["seeds"]]
    if len(seeds) == count:
        return seeds
    return [tr("number {number}").format(number=index + 1) for index in range(count)]


def _runner_up(sweep: Row, kept: int, tr: Translate) -> list[str]:
    if sweep["runner_up"] is None:
        alone = kept == 1 and len(sweep["settings"]) > 1
        return [tr("there is no runner-up: no other setting keeps what is tolerated")] if alone else []
    setting = sweep["settings"][sweep["runner_up"]]
    return [
        tr("runner-up: {setting}, average gain on {split} {gain}").format(
            setting=setting_text(setting, sweep["dimensions"], tr),
            split=split_name(sweep, tr),
            gain=with_interval(setting["figures"].get("mean_gain"), "+.3f", tr),
        )
    ]


def _evidence_warnings(sweep: Row, test: Row | None, tr: Translate) -> list[str]:
    if sweep["split"] == "test":
        return [
            tr(
                "It was chosen by the figures of the test split, which flatter it therefore; nothing here confirms "
                "them. Choose by validation, and report from test."
            )
        ]
    if test is None:
        return [
            tr(
                "It has not been judged by the test split: the figures here are those it was chosen by, and flatter "
                "it. Run the command below before you sign off."
            )
        ]
    return []


def _common_warnings(sweep: Row, tr: Translate) -> list[str]:
    found = []
    if sweep["num_prompts"] < 2:
        found.append(tr("With a single prompt no interval can be given: every figure may be chance."))
    failed = sum(trial["state"] == "failed" for trial in sweep["trials"])
    if failed:
        trials = trials_text(len(sweep["trials"]), tr)
        found.append(
            tr("{failed} of {trials} failed, for the reasons at the end.").format(failed=failed, trials=trials)
        )
    return found
