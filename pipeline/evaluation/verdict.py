"""Is the policy better than the reference? Decided from intervals alone, and never more than they show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.evaluation.statistics import Estimate, unseen_share_bound

Translate = Callable[[str], str]
"""From an English message with {named} places to the same in another language; ``str`` leaves it English."""

REPETITION_RISE = 0.02
"""Repetition is clearly up when the whole interval of its difference lies above this share of 4-grams."""
LENGTH_COLLAPSE = 0.5
"""The mean length has collapsed below this share of the reference's."""
BITS_RISE = 0.10
"""Real text has become much harder to predict above this relative rise of bits per byte."""


@dataclass(frozen=True)
class Degeneration:
    """Signs that the text itself decays, whatever reward accuracy says.

    ``repetition``: difference policy - reference of the mean share of repeated 4-grams, with its interval;
    lengths are mean characters; ``bits_change`` is the relative change of bits per byte of held-out real
    text, None without such text.
    """

    repetition: Estimate
    length_reference: float
    length_policy: float
    bits_change: float | None

    def warnings(self, tr: Translate = str) -> list[str]:
        """One plain sentence a sign, none when the text shows no decay."""
        found = []
        if self.repetition.low is not None and self.repetition.low > REPETITION_RISE:
            found.append(
                tr(
                    "The policy repeats itself more: repeated four-word sequences are up by {rise} of all ({interval})."
                ).format(rise=f"{self.repetition.value:.1%}", interval=_span(self.repetition, "{:.1%}", tr))
            )
        if self.length_policy < LENGTH_COLLAPSE * self.length_reference:
            found.append(
                tr("Outputs have collapsed from {before} to {after} characters on average.").format(
                    before=f"{self.length_reference:.0f}", after=f"{self.length_policy:.0f}"
                )
            )
        if self.bits_change is not None and self.bits_change > BITS_RISE:
            found.append(
                tr(
                    "Held-out real text has become {rise} harder to predict (bits per byte): the policy moves away "
                    "from natural text."
                ).format(rise=f"{self.bits_change:.0%}")
            )
        if found:
            found.append(
                tr("Reward accuracy alone says nothing about the text: read the outputs before using this policy.")
            )
        return found


def decide(
    difference: dict[str, Estimate],
    *,
    policy_incidents: Estimate,
    degeneration: Degeneration,
    scorer: str,
    tail_fraction: float,
    incident_below: float,
    num_prompts: int,
    tr: Translate = str,
) -> dict[str, Any]:
    """The verdict from the paired differences of the primary score (policy - reference, larger is better).

    ``better`` needs a mean or a tail mean whose interval lies wholly above zero, nothing clearly worse (mean,
    tail, incidents) and no sign of degeneration. Each of the two intervals leaves 2.5% above it, so equal
    models are called better in at most about 5% of runs. Returns ``better``, ``worse`` (something is clearly
    worse), ``mean`` (higher, lower, unclear), ``tail`` (better, worse, unclear), ``incidents`` (fewer, more,
    unclear), ``degenerate``, and the sentences ``headline``, ``reasons`` and ``warnings`` in the language of ``tr``.
    """
    mean, tail, incidents = difference["mean"], difference["tail_mean"], difference["incident_share"]
    warnings = degeneration.warnings(tr)
    worse = mean.sign < 0 or tail.sign < 0 or incidents.sign > 0
    better = (mean.sign > 0 or tail.sign > 0) and not worse and not warnings
    tail_name = tr("the worst {share} of outputs").format(share=f"{tail_fraction:.0%}")
    words = {
        "mean": {1: "higher", -1: "lower", 0: "unclear"}[mean.sign],
        "tail": {1: "better", -1: "worse", 0: "unclear"}[tail.sign],
        "incidents": {-1: "fewer", 1: "more", 0: "unclear"}[incidents.sign],
    }
    reasons = [
        _of_mean(mean.sign, tr).format(scorer=scorer, change=_change(mean, "{:+.3f}", tr)),
        _of_tail(tail.sign, tr).format(tail=tail_name, change=_change(tail, "{:+.3f}", tr)),
        _of_incidents(incidents.sign, tr).format(
            limit=f"{incident_below:g}".replace("-", "−"), change=_change(incidents, "{:+.1%}", tr)
        ),
    ]
    if policy_incidents.value == 0:
        reasons.append(
            tr(
                "No incident was seen, but with {prompts} prompts up to {share} of prompts could still give one "
                "(95% bound)."
            ).format(prompts=num_prompts, share=f"{unseen_share_bound(num_prompts):.1%}")
        )
    return {
        "better": better,
        "worse": worse,
        **words,
        "degenerate": bool(warnings),
        "headline": _headline(words, better=better, worse=worse, degenerate=bool(warnings), tail=tail_name, tr=tr),
        "reasons": reasons,
        "warnings": warnings,
    }


def verdict_of(evaluation: Mapping[str, Any], tr: Translate = str) -> dict[str, Any]:
    """The verdict again, with its sentences in the language of ``tr``, from the content of evaluation.json."""
    scores = evaluation["scorers"][evaluation["primary_scorer"]]
    text, bits = evaluation["text"], evaluation["pairs"]["bits_per_byte_relative_change"]
    return decide(
        {name: Estimate(**scores["difference"][name]) for name in ("mean", "tail_mean", "incident_share")},
        policy_incidents=Estimate(**scores["policy"]["incident_share"]),
        degeneration=Degeneration(
            repetition=Estimate(**text["repetition"]["difference"]),
            length_reference=text["characters"]["reference"]["value"],
            length_policy=text["characters"]["policy"]["value"],
            bits_change=bits["value"] if bits else None,
        ),
        scorer=evaluation["primary_scorer"],
        tail_fraction=evaluation["tail_fraction"],
        incident_below=evaluation["incident_below"],
        num_prompts=evaluation["num_prompts"],
        tr=tr,
    )


def _of_mean(sign: int, tr: Translate) -> str:
    if sign > 0:
        return tr("Average {scorer} score: clearly higher than the reference's ({change}).")
    if sign < 0:
        return tr("Average {scorer} score: clearly lower than the reference's ({change}).")
    return tr("Average {scorer} score: not clearly different from the reference's ({change}).")


def _of_tail(sign: int, tr: Translate) -> str:
    if sign > 0:
        return tr("Mean score of {tail}: clearly better ({change}).")
    if sign < 0:
        return tr("Mean score of {tail}: clearly worse ({change}).")
    return tr("Mean score of {tail}: not clearly different ({change}).")


def _of_incidents(sign: int, tr: Translate) -> str:
    if sign > 0:
        return tr("Incidents (score below {limit}): clearly more ({change} of all outputs).")
    if sign < 0:
        return tr("Incidents (score below {limit}): clearly fewer ({change} of all outputs).")
    return tr("Incidents (score below {limit}): not clearly different ({change} of all outputs).")


def _headline(words: dict[str, str], *, better: bool, worse: bool, degenerate: bool, tail: str, tr: Translate) -> str:
    good = _joined(
        [
            *([tr("a higher average score")] if words["mean"] == "higher" else []),
            *([tr("a better score in {tail}").format(tail=tail)] if words["tail"] == "better" else []),
            *([tr("fewer incidents")] if words["incidents"] == "fewer" else []),
        ],
        tr,
    )
    bad = _joined(
        [
            *([tr("a lower average score")] if words["mean"] == "lower" else []),
            *([tr("a worse score in {tail}").format(tail=tail)] if words["tail"] == "worse" else []),
            *([tr("more incidents")] if words["incidents"] == "more" else []),
        ],
        tr,
    )
    if degenerate:
        scores = tr(", ").join(one for one in (good, bad) if one)
        if not scores:
            return tr("The policy should not be used as it is: its text shows signs of decay.")
        return tr("The policy should not be used as it is: it has {scores}, but its text shows signs of decay.").format(
            scores=scores
        )
    if worse:
        if good:
            return tr("The policy is better in part and worse in part: it has {good}, but {bad}.").format(
                good=good, bad=bad
            )
        return tr("The policy is worse than the reference: it has {bad}.").format(bad=bad)
    if better:
        rest = ""
        if words["mean"] == "unclear":
            rest += tr("; the average score is not clearly different")
        if words["tail"] == "unclear":
            rest += tr("; the score in {tail} is not clearly different").format(tail=tail)
        return tr("The policy is better than the reference: it has {good}{rest}.").format(good=good, rest=rest)
    if good:
        return tr("The policy has {good}, but its average and tail scores are not clearly different.").format(good=good)
    return tr("The policy is not clearly different from the reference.")


def _joined(parts: list[str], tr: Translate) -> str:
    if len(parts) < 2:
        return "".join(parts)
    return tr("{first} and {last}").format(first=tr(", ").join(parts[:-1]), last=parts[-1])


def _change(one: Estimate, form: str, tr: Translate) -> str:
    return tr("{change}; {interval}").format(
        change=form.format(one.value).replace("-", "−"), interval=_span(one, form, tr)
    )


def _span(one: Estimate, form: str, tr: Translate) -> str:
    if one.low is None or one.high is None:
        return tr("no interval: too few prompts")
    low, high = (form.format(end).replace("-", "−") for end in (one.low, one.high))
    return tr("95% interval {low} to {high}").format(low=low, high=high)
