"""What a call of the schedule does: facts and a written policy to actions with reasons. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from pipeline.realign.accuracy import Accuracy, least_drop
from pipeline.realign_config import RealignConfig


@dataclass(frozen=True)
class Batch:
    """New pairs that came between two calls, and that production was not measured on before this one."""

    digest: str
    """Of their contents (`pipeline.realign.rows`)."""
    pairs: int
    measured: Accuracy | None = None
    """Production's on them; None when it was not measured."""


@dataclass(frozen=True)
class Facts:
    """What a call finds."""

    production: int
    """The version; 0 is the reference."""
    new: int
    """Pairs that neither production nor the last re-alignment has seen, but for those that are held."""
    batches: tuple[Batch, ...] = ()
    """Of these, what production was not measured on before."""
    judged: Accuracy | None = None
    """Production's on the held-out pairs that it was judged by; None when that is not known."""
    alerts: tuple[str, ...] = ()
    """What the watch said of this version since the last record."""
    evaluated_days: float | None = None
    """Age of production's last evaluation; None when there was none."""
    aligned_days: float | None = None
    """Age of the last alignment of this line; None when there was none."""

    @property
    def unmeasured(self) -> int:
        """Pairs of the batches."""
        return sum(batch.pairs for batch in self.batches)

    def accuracy(self, held: Collection[str]) -> Accuracy | None:
        """Production's on all batches that are not held; None when it was not measured on any."""
        found = [one.measured for one in self.batches if one.digest not in held and one.measured is not None]
        return Accuracy(sum(one.right for one in found), sum(one.pairs for one in found)) if found else None


@dataclass(frozen=True)
class Decision:
    """What is to be done, with the reasons in words; what has none is not done."""

    hold: Mapping[str, str] = field(default_factory=dict)
    """Batches, by digest, that are kept for a person, each with its reason."""
    evaluate: tuple[str, ...] = ()
    """Production alone is judged on the present data."""
    realign: tuple[str, ...] = ()
    """A policy is trained from the reference on all pairs that are not held, and the gate judges it and production."""
    notes: tuple[str, ...] = ()
    """What was considered and asks for nothing."""

    @property
    def nothing(self) -> bool:
        return not (self.hold or self.evaluate or self.realign)


def wants_measure(facts: Facts, policy: RealignConfig) -> bool:
    """Whether production's accuracy on the batches has to be known before anything is decided."""
    asked = policy.suspect_below is not None or policy.max_accuracy_drop is not None
    if not asked or facts.production == 0 or not facts.batches or any(one.measured for one in facts.batches):
        return False
    # What is about to be trained on, for whatever reason, is measured however little it is.
    return facts.unmeasured >= policy.min_batch_pairs or bool(decide(facts, policy).realign)


def decide(facts: Facts, policy: RealignConfig) -> Decision:
    """What a call does. A batch that is held counts for nothing else; a re-alignment judges production too, so that
    no evaluation of its own is asked for beside one."""
    held = {one.digest: why for one in facts.batches if (why := _suspicion(one, facts.production, policy))}
    held |= _suspicious_together(facts, held, policy)
    usable = facts.new - sum(one.pairs for one in facts.batches if one.digest in held)
    accuracy = facts.accuracy(held)
    told = _measured(facts, accuracy, policy)
    realign = [*_enough(usable, policy), *_drop(facts, accuracy, policy), *_time(facts, policy)]
    evaluate = _age(facts, policy)
    if facts.alerts:
        asks = f"{len(facts.alerts)} alert(s) of the watch on version {facts.production}: {'; '.join(facts.alerts)}"
        (realign if policy.on_alert == "realign" else evaluate).append(asks)
    notes = [*told, *_waiting(usable, bool(realign), policy)]
    if facts.production == 0 and evaluate:
        notes.append("the reference is in production: there is nothing to evaluate it against")
        evaluate = []
    if realign and evaluate:
        notes += [f"{why} (the gate judges production, too)" for why in evaluate]
        evaluate = []
    return Decision(held, tuple(evaluate), tuple(realign), tuple(notes))


def _suspicion(batch: Batch, production: int, policy: RealignConfig) -> str:
    if batch.measured is None or policy.suspect_below is None:
        return ""
    upper = batch.measured.upper(policy.confidence)
    if upper >= policy.suspect_below:
        return ""
    return (
        f"{batch.pairs:,} new pairs contradict what version {production} has learnt: its accuracy on them is "
        f"{batch.measured.value:.2f}, with {policy.confidence:.3g} confidence at most {upper:.2f}, below "
        f"{policy.suspect_below:g} (realign.suspect_below). Are chosen and rejected swapped?"
    )


def _suspicious_together(facts: Facts, held: Collection[str], policy: RealignConfig) -> dict[str, str]:
    """Batches that are each too small to show that they contradict production, but do so together: a schedule that
    calls often finds a faulty source a few pairs at a time."""
    rest = [one for one in facts.batches if one.digest not in held and one.measured is not None]
    accuracy = facts.accuracy(held)
    if accuracy is None or len(rest) < 2:
        return {}
    together = Batch("", sum(one.pairs for one in rest), accuracy)
    why = _suspicion(together, facts.production, policy)
    return {one.digest: f"{len(rest)} batches together: {why}" for one in rest} if why else {}


def _measured(facts: Facts, accuracy: Accuracy | None, policy: RealignConfig) -> list[str]:
    if facts.production == 0 and facts.unmeasured >= policy.min_batch_pairs:
        return ["the reference is in production: without a log-ratio nothing says whether the new pairs agree with it"]
    if accuracy is None:
        return []
    said = f"accuracy of version {facts.production} on new pairs: {accuracy.told(policy.confidence)}"
    judged = "" if facts.judged is None else f"; on the pairs it was judged by: {facts.judged.told(policy.confidence)}"
    return [said + judged]


def _enough(usable: int, policy: RealignConfig) -> list[str]:
    if usable < policy.min_new_pairs:
        return []
    return [f"{usable:,} new pairs, {policy.min_new_pairs:,} are worth a re-alignment"]


def _waiting(usable: int, realign: bool, policy: RealignConfig) -> list[str]:
    if not usable or realign or usable >= policy.min_new_pairs:
        return []
    return [f"{usable:,} new pair(s) wait for {policy.min_new_pairs:,} (realign.min_new_pairs)"]


def _drop(facts: Facts, accuracy: Accuracy | None, policy: RealignConfig) -> list[str]:
    if accuracy is None or facts.judged is None or policy.max_accuracy_drop is None:
        return []
    drop = least_drop(facts.judged, accuracy, policy.confidence)
    if drop <= policy.max_accuracy_drop:
        return []
    return [
        f"preferences have changed: the accuracy of version {facts.production} dropped from {facts.judged.value:.2f} "
        f"to {accuracy.value:.2f}, with {policy.confidence:.3g} confidence by {drop:.2f} at least "
        f"(realign.max_accuracy_drop {policy.max_accuracy_drop:g})"
    ]


def _time(facts: Facts, policy: RealignConfig) -> list[str]:
    if policy.realign_after_days is None or facts.aligned_days is None:
        return []
    if facts.aligned_days < policy.realign_after_days:
        return []
    return [f"the last alignment is {facts.aligned_days:.0f} days old (realign.realign_after_days)"]


def _age(facts: Facts, policy: RealignConfig) -> list[str]:
    if policy.max_age_days is None or facts.production == 0:
        return []
    if facts.evaluated_days is None:
        return [f"version {facts.production} was never evaluated"]
    if facts.evaluated_days <= policy.max_age_days:
        return []
    return [
        f"the last evaluation of version {facts.production} is {facts.evaluated_days:.0f} days old "
        f"(realign.max_age_days {policy.max_age_days:g})"
    ]
