"""What the gate decided, for the report: wording, number formats and order, no HTML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.report.language import Translate, sense
from pipeline.report.view import number

_SHARES = {"incidents", "repetition", "length", "bits"}


@dataclass(frozen=True)
class ConditionRow:
    """One line of the table of conditions."""

    name: str
    against: str
    value: str
    bound: str
    limit: str
    holds: bool
    power: str


@dataclass(frozen=True)
class DecisionView:
    """What the section shows."""

    badge: tuple[str, str]
    """The decision's word and its style class."""
    headline: str
    sentences: list[str]
    rows: list[ConditionRow]
    done: str
    """What became of it in the registry."""
    record: str
    """Number and digest of the audit record."""
    confidence: str


def decision_view(
    gate: Mapping[str, Any], words: tuple[str, list[str]], release: Mapping[str, Any], tr: Translate
) -> DecisionView:
    """The section's content.

    Args:
        gate: content of gate.json.
        words: headline and sentences of the decision, in the page's language.
        release: content of release.json.
    """
    badges = {
        "promote": (tr("Promote"), "good"),
        "hold": (tr("Hold"), "unclear"),
        "roll_back": (tr("Roll back"), "bad"),
    }
    return DecisionView(
        badges[gate["outcome"]],
        words[0],
        words[1],
        [_row(one, tr) for one in gate["conditions"]],
        _done(release, tr),
        tr("Record {number} of the audit trail: {digest}").format(number=release["record"], digest=release["digest"]),
        f"{gate['confidence']:.0%}",
    )


def _row(condition: Mapping[str, Any], tr: Translate) -> ConditionRow:
    form = ".1%" if condition["name"] in _SHARES else ".3f"
    names = {
        "mean": tr("Average score, difference"),
        "tail": tr("Worst outputs, difference"),
        "drift": tr("Drift on chosen answers (nats)"),
        "incidents": tr("Share of incidents"),
        "repetition": tr("Repetition, rise"),
        "length": tr("Length, share of the reference's"),
        "bits": tr("Bits per byte, relative rise"),
    }
    against = {"reference": tr(sense("model", "reference")), "incumbent": tr("version in production")}
    of = {"candidate": tr("candidate"), "incumbent": tr("version in production")}
    power = condition["power"]
    return ConditionRow(
        names[condition["name"]],
        tr("{model} against {other}").format(model=of[condition["of"]], other=against[condition["against"]]),
        number(condition["value"], form),
        number(condition["bound"], form),
        number(condition["limit"], form),
        bool(condition["holds"]),
        "–" if power is None else f"{power:.0%}",
    )


def _done(release: Mapping[str, Any], tr: Translate) -> str:
    alias, version = release["alias"], release["version"]
    registered = tr("Registered as version {version}.").format(version=version)
    if release["after"] is not None:
        moved = tr("{alias} was moved from version {before} to version {after}.")
        return " ".join([registered, moved.format(alias=alias, before=release["before"], after=release["after"])])
    if release["outcome"] != "hold" and not release["acted"]:
        left = tr("{alias} was left for a person to move, as the recipe says.")
        return " ".join([registered, left.format(alias=alias)])
    stays = tr("{alias} stays at version {incumbent}.")
    return " ".join([registered, stays.format(alias=alias, incumbent=release["incumbent"])])
