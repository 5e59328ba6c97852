"""Is the policy better than the reference? Decided from intervals alone, and never more than they show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.evaluation.statistics import Estimate, unseen_share_bound

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

    def warnings(self) -> list[str]:
        """One plain sentence a sign, none when the text shows no decay."""
        found = []
        if self.repetition.low is not None and self.repetition.low > REPETITION_RISE:
            found.append(
                f"The policy repeats itself more: repeated four-word sequences are up by {self.repetition.value:.1%} "
                f"of all ({_span(self.repetition, '{:.1%}')})."
            )
        if self.length_policy < LENGTH_COLLAPSE * self.length_reference:
            found.append(
                f"Outputs have collapsed from {self.length_reference:.0f} to {self.length_policy:.0f} characters "
                "on average."
            )
        if self.bits_change is not None and self.bits_change > BITS_RISE:
            found.append(
                f"Held-out real text has become {self.bits_change:.0%} harder to predict (bits per byte): the policy "
                "moves away from natural text."
            )
        if found:
            found.append(
                "Reward accuracy alone says nothing about the text: read the outputs before using this policy."
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
) -> dict[str, Any]:
    """The verdict from the paired differences of the primary score (policy - reference, larger is better).

    ``better`` needs a mean or a tail mean whose interval lies wholly above zero, nothing clearly worse (mean,
    tail, incidents) and no sign of degeneration. Each of the two intervals leaves 2.5% above it, so equal
    models are called better in at most about 5% of runs. Returns ``better``, ``worse`` (something is clearly
    worse), ``mean`` (higher, lower, unclear), ``tail`` (better, worse, unclear), ``incidents`` (fewer, more,
    unclear), ``degenerate``, ``headline``, ``reasons`` and ``warnings``.
    """
    mean, tail, incidents = difference["mean"], difference["tail_mean"], difference["incident_share"]
    warnings = degeneration.warnings()
    worse = mean.sign < 0 or tail.sign < 0 or incidents.sign > 0
    better = (mean.sign > 0 or tail.sign > 0) and not worse and not warnings
    limit = f"{incident_below:g}".replace("-", "−")
    tail_name = f"the worst {tail_fraction:.0%} of outputs"
    words = {
        "mean": {1: "higher", -1: "lower", 0: "unclear"}[mean.sign],
        "tail": {1: "better", -1: "worse", 0: "unclear"}[tail.sign],
        "incidents": {-1: "fewer", 1: "more", 0: "unclear"}[incidents.sign],
    }
    reasons = [
        f"Average {scorer} score: {_phrase(mean, 'higher', 'lower')} than the reference's ({_change(mean)})."
        if mean.sign
        else f"Average {scorer} score: not clearly different from the reference's ({_change(mean)}).",
        f"Mean score of {tail_name}: {_phrase(tail, 'better', 'worse')} ({_change(tail)})."
        if tail.sign
        else f"Mean score of {tail_name}: not clearly different ({_change(tail)}).",
        f"Incidents (score below {limit}): {_phrase(incidents, 'more', 'fewer')} "
        f"({_change(incidents, '{:+.1%}')} of all outputs)."
        if incidents.sign
        else f"Incidents (score below {limit}): not clearly different "
        f"({_change(incidents, '{:+.1%}')} of all outputs).",
    ]
    if policy_incidents.value == 0:
        reasons.append(
            f"No incident was seen, but with {num_prompts} prompts up to {unseen_share_bound(num_prompts):.1%} of "
            "prompts could still give one (95% bound)."
        )
    return {
        "better": better,
        "worse": worse,
        **words,
        "degenerate": bool(warnings),
        "headline": _headline(words, better=better, worse=worse, degenerate=bool(warnings), tail_name=tail_name),
        "reasons": reasons,
        "warnings": warnings,
    }


def _headline(words: dict[str, str], *, better: bool, worse: bool, degenerate: bool, tail_name: str) -> str:
    good = _joined(
        [
            *(["a higher average score"] if words["mean"] == "higher" else []),
            *([f"a better score in {tail_name}"] if words["tail"] == "better" else []),
            *(["fewer incidents"] if words["incidents"] == "fewer" else []),
        ]
    )
    bad = _joined(
        [
            *(["a lower average score"] if words["mean"] == "lower" else []),
            *([f"a worse score in {tail_name}"] if words["tail"] == "worse" else []),
            *(["more incidents"] if words["incidents"] == "more" else []),
        ]
    )
    if degenerate:
        scores = f"{good}, {bad}" if good and bad else good or bad
        has = f"it has {scores}, but " if scores else ""
        return f"The policy should not be used as it is: {has}its text shows signs of decay."
    if worse:
        if good:
            return f"The policy is better in part and worse in part: it has {good}, but {bad}."
        return f"The policy is worse than the reference: it has {bad}."
    if better:
        unclear = {"mean": "the average score", "tail": f"the score in {tail_name}"}
        rest = "".join(f"; {name} is not clearly different" for key, name in unclear.items() if words[key] == "unclear")
        return f"The policy is better than the reference: it has {good}{rest}."
    if good:
        return f"The policy has {good}, but its average and tail scores are not clearly different."
    return "The policy is not clearly different from the reference."


def _joined(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 2 else parts)


def _phrase(one: Estimate, above: str, below: str) -> str:
    return f"clearly {above if one.sign > 0 else below}"


def _change(one: Estimate, form: str = "{:+.3f}") -> str:
    return f"{form.format(one.value).replace('-', '−')}; {_span(one, form)}"


def _span(one: Estimate, form: str) -> str:
    if one.low is None or one.high is None:
        return "no interval: too few prompts"
    return f"95% interval {form.format(one.low)} to {form.format(one.high)}".replace("-", "−")
