"""A decision of the gate in words, from its JSON alone and in any language."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Translate = Callable[[str], str]

_PERCENT = ("incidents", "repetition", "length", "bits")
_SIGNED = ("mean", "tail", "repetition", "bits")


def _as_it_is(template: str) -> str:
    return template


def explain(decision: Mapping[str, Any], tr: Translate = _as_it_is) -> tuple[str, list[str]]:
    """Headline, and one sentence a condition or reason, most important first.

    Args:
        decision: `pipeline.release.gate.Decision.as_dict`, or the same read from JSON.
        tr: translates a message template before its fields are filled in; the templates are the literal strings that
            it is called with here.
    """
    of_candidate = [one for one in decision["conditions"] if one["of"] == "candidate"]
    broken = [one for one in decision["conditions"] if one["of"] == "incumbent" and one["violated"]]
    if not of_candidate:
        return _of_production_alone(decision, broken, tr), [_in_production(one, decision, tr) for one in broken]
    sentences = [_sentence(one, decision, tr) for one in of_candidate]
    sentences += [_in_production(one, decision, tr) for one in broken]
    sentences += [_never(one, decision, tr) for one in of_candidate if one["units"] < one["units_least"]]
    if decision["too_few"]:
        sentences.append(_too_few(decision, tr))
    return _headline(decision, of_candidate, broken, tr), sentences


def _of_production_alone(decision: Mapping[str, Any], broken: list[Any], tr: Translate) -> str:
    if not broken:
        return tr("Keep: what is in production does not demonstrably break the policy.")
    return tr("Roll back to the reference: what is in production breaks the policy ({broken}).").format(
        broken=_names(broken, decision, tr)
    )


def _headline(decision: Mapping[str, Any], of_candidate: list[Any], broken: list[Any], tr: Translate) -> str:
    if decision["outcome"] == "promote":
        if broken:
            return tr(
                "Promote: the candidate holds every limit of the policy. What is in production breaks it ({broken})."
            ).format(broken=_names(broken, decision, tr))
        return tr("Promote: the candidate holds every limit of the policy.")
    failed = _names([one for one in of_candidate if not one["holds"]], decision, tr)
    if decision["outcome"] == "roll_back":
        return tr(
            "Roll back to the reference: what is in production breaks the policy ({broken}), and the candidate is not "
            "shown to hold it ({failed})."
        ).format(broken=_names(broken, decision, tr), failed=failed)
    if any(one["violated"] for one in of_candidate):
        return tr("Hold: the candidate breaks the policy, or is not shown to hold it ({failed}).").format(failed=failed)
    return tr("Hold: the candidate is not shown to hold the policy ({failed}).").format(failed=failed)


def _names(conditions: list[Any], decision: Mapping[str, Any], tr: Translate) -> str:
    return tr("; ").join(_what(one, decision, tr) for one in conditions)


def _what(one: Mapping[str, Any], decision: Mapping[str, Any], tr: Translate) -> str:
    """What a condition is about."""
    against_reference = one["against"] == "reference"
    if one["name"] == "mean":
        template = (
            tr("average {scorer} score against the reference")
            if against_reference
            else tr("average {scorer} score against what is in production")
        )
    elif one["name"] == "tail":
        template = (
            tr("{scorer} score of the worst {tail} of outputs against the reference")
            if against_reference
            else tr("{scorer} score of the worst {tail} of outputs against what is in production")
        )
    else:
        template = {
            "drift": tr("drift from the reference (nats a held-out response)"),
            "incidents": tr("share of outputs with a {scorer} score below {threshold}"),
            "repetition": tr("rise of repeated four-word sequences above the reference"),
            "length": tr("mean length as a share of the reference's"),
            "bits": tr("rise of bits per byte of held-out real text"),
        }[one["name"]]
    return template.format(
        scorer=decision["primary_scorer"],
        tail=_percent(decision["tail_fraction"]),
        threshold=_minus(f"{decision['incident_below']:g}"),
    )


def _sentence(one: Mapping[str, Any], decision: Mapping[str, Any], tr: Translate) -> str:
    at_least = one["name"] in ("mean", "tail", "length")
    if one["holds"]:
        template = (
            tr("Holds: {what} is {value}, with {confidence} confidence at least {bound}; the policy asks for {limit}.")
            if at_least
            else tr(
                "Holds: {what} is {value}, with {confidence} confidence at most {bound}; the policy allows {limit}."
            )
        )
    elif one["violated"]:
        template = (
            tr("Broken: {what} is {value}; the policy asks for at least {limit}.")
            if at_least
            else tr("Broken: {what} is {value}; the policy allows {limit} at most.")
        )
    else:
        template = (
            tr(
                "Not shown: {what} is {value}, but could be as low as {bound} ({confidence} confidence); the policy "
                "asks for {limit}."
            )
            if at_least
            else tr(
                "Not shown: {what} is {value}, but could be as high as {bound} ({confidence} confidence); the policy "
                "allows {limit}."
            )
        )
    return _filled(template, one, decision, decision["confidence"], tr)


def _in_production(one: Mapping[str, Any], decision: Mapping[str, Any], tr: Translate) -> str:
    template = (
        tr(
            "In production: {what} is {value}, with {confidence} confidence at most {bound}; the policy asks for at "
            "least {limit}."
        )
        if one["name"] in ("mean", "tail", "length")
        else tr(
            "In production: {what} is {value}, with {confidence} confidence at least {bound}; the policy allows "
            "{limit}."
        )
    )
    return _filled(template, one, decision, decision["incumbent_confidence"], tr)


def _filled(
    template: str, one: Mapping[str, Any], decision: Mapping[str, Any], confidence: float, tr: Translate
) -> str:
    return template.format(
        what=_what(one, decision, tr),
        value=_figure(one["name"], one["value"], tr),
        bound=_figure(one["name"], one["bound"], tr),
        limit=_figure(one["name"], one["limit"], tr),
        confidence=_percent(confidence),
    )


def _never(one: Mapping[str, Any], decision: Mapping[str, Any], tr: Translate) -> str:
    template = (
        tr(
            "With {units} prompts no policy can show this limit, not even one without a fault; at least {least} are "
            "needed: {what}."
        )
        if one["unit"] == "prompts"
        else tr(
            "With {units} groups of held-out pairs no policy can show this limit, not even one without a fault; at "
            "least {least} are needed: {what}."
        )
    )
    return template.format(units=one["units"], least=one["units_least"], what=_what(one, decision, tr))


def _too_few(decision: Mapping[str, Any], tr: Translate) -> str:
    needed, groups = decision["units_needed"], decision["groups_needed"]
    start = tr(
        "Too few samples: a policy no worse than what it is held against would be promoted with probability {power}; "
        "{asked} is asked for."
    ).format(power=_percent(decision["power"]), asked=_percent(decision["policy"]["min_power"]))
    if needed is None or groups is None:
        rest = tr("No number of samples changes that: even the reference would not hold every limit.")
    elif groups > decision["groups"]:
        rest = tr("About {prompts} prompts and {groups} groups of held-out pairs would do (now {have} and {now}).")
    else:
        rest = tr("About {prompts} prompts would do (now {have}).")
    filled = rest.format(prompts=needed, groups=groups, have=decision["prompts"], now=decision["groups"])
    return tr("{first} {second}").format(first=start, second=filled)


def _figure(name: str, value: float | None, tr: Translate) -> str:
    if value is None:
        return tr("unknown")
    form = "+" if name in _SIGNED else ""
    digits = ".1%" if name in _PERCENT else ".2f" if name == "drift" else ".3f"
    return _minus(format(value, form + digits))


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"


def _minus(text: str) -> str:
    return text.replace("-", "−")
