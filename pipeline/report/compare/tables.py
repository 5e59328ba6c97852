"""From compare.json to the rows that the page prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.report.language import Translate, english
from pipeline.report.tokens import LEVELS, Scale
from pipeline.report.view import Estimate, estimate, number, reading


@dataclass(frozen=True)
class Row:
    """A figure of A, of B and of B - A with what that allows to say; ``better`` is None where neither can be said."""

    name: str
    a: tuple[str, str]
    b: tuple[str, str]
    difference: tuple[str, str]
    reading: str
    better: bool | None


def figure_rows(content: Mapping[str, Any], tr: Translate = english) -> list[Row]:
    """The primary scorer's figures, then those of the others, then those of the texts themselves."""
    primary, share = content["primary_scorer"], f"{content['tail_fraction']:.0%}"
    ordered = sorted(content["scorers"], key=lambda name: name != primary)
    mean = tr("{scorer}: mean")
    # The bad end of a score of which smaller is better is its upper one.
    quantiles = {True: tr("{scorer}: 5% quantile"), False: tr("{scorer}: 95% quantile")}
    worst = tr("{scorer}: mean of the worst {share} (CVaR)")
    rows = []
    for name in ordered:
        scorer, form = content["scorers"][name], ".1f" if name == "length" else ".3f"
        direction = scorer["larger_is_better"]

        def add(title: str, figure: str, better: bool | None, shown: str, of: Mapping[str, Any] = scorer) -> None:
            rows.append(_row(title, {side: of[side][figure] for side in ("a", "b", "difference")}, better, shown, tr))

        add(mean.format(scorer=name), "mean", direction, form)
        if direction is not None:
            add(worst.format(scorer=name, share=share), "tail_mean", direction, form)
            add(quantiles[direction].format(scorer=name), "tail_quantile", direction, form)
        if name == primary:
            limit = number(content["incident_below"], "g")
            title = tr("Incidents ({scorer} below {limit})").format(scorer=name, limit=limit)
            add(title, "incident_share", False, ".1%")
    text = content["text"]
    if "length" not in content["scorers"]:
        rows.append(_row(tr("Length in characters: mean"), text["characters"], None, ".1f", tr))
    if "repetition" not in content["scorers"]:
        rows.append(_row(tr("Repeated four-word sequences"), text["repetition"], False, ".1%", tr))
    rows.append(_row(tr("Empty outputs"), text["empty"], None, ".1%", tr))
    if "finished" in text:
        rows.append(_row(tr("Outputs that end by themselves"), text["finished"], None, ".1%", tr))
    return rows


def drift_rows(content: Mapping[str, Any], tr: Translate = english) -> list[Row]:
    """Drift from the reference of the line, for two versions of it: less is nearer, and neither better nor worse."""
    far = content["drift"]["from_reference"] if content["drift"] else None
    if far is None:
        return []
    share = f"{content['tail_fraction']:.0%}"
    names = (
        ("mean", tr("Drift from the reference (nats an output)")),
        ("tail_mean", tr("Drift from the reference, farthest {share} of outputs").format(share=share)),
    )
    return [_row(title, {side: far[side][name] for side in far}, None, ".2f", tr) for name, title in names]


def between_rows(content: Mapping[str, Any], tr: Translate = english) -> list[tuple[str, str, str]]:
    """Drift between A and B as (name, value, interval)."""
    if content["drift"] is None:
        return []
    between, share = content["drift"]["between"], f"{content['tail_fraction']:.0%}"
    names = (
        ("a", "mean", tr("Along A's outputs")),
        ("a", "tail_mean", tr("Along A's outputs, farthest {share}").format(share=share)),
        ("b", "mean", tr("Along B's outputs")),
        ("b", "tail_mean", tr("Along B's outputs, farthest {share}").format(share=share)),
    )
    return [(title, *estimate(between[side][figure], ".2f", tr)) for side, figure, title in names]


def token_scale(content: Mapping[str, Any]) -> Scale | None:
    """Shades of the tokens that are shown, the darkest from the 99th percentile of their KL; None without drift."""
    kl = [
        token["kl"]
        for row in (*content["regressions"], *content["improvements"])
        for side in ("a", "b")
        for token in row[side]["tokens"] or ()
        if token["kl"] is not None
    ]
    if not kl:
        return None
    top = max(float(np.quantile(np.array(kl), 0.99)), 1e-6)
    return Scale(tuple(top * part for part in (0.1, 0.3, 0.5, 0.75, 1.0)))


def output_rows(rows: list[Mapping[str, Any]], content: Mapping[str, Any], tr: Translate = english) -> list[Any]:
    """Outputs of both sides next to each other, their tokens shaded where the drift is known."""
    scale = token_scale(content)
    others = [name for name in content["scorers"] if name != content["primary_scorer"]]
    return [
        {
            "prompt": row["prompt"],
            "seed": row["seed"],
            "change": number(row["b"]["scores"][content["primary_scorer"]] - _primary(row["a"], content), "+.3f"),
            "sides": [_side(name, row[key], others, content, scale, tr) for name, key in (("A", "a"), ("B", "b"))],
        }
        for row in rows
    ]


def _side(
    name: str,
    side: Mapping[str, Any],
    others: list[str],
    content: Mapping[str, Any],
    scale: Scale | None,
    tr: Translate,
) -> dict[str, Any]:
    more = [f"{other} {number(side['scores'][other], '.0f' if other == 'length' else '.3f')}" for other in others]
    if side["finished"] is False:
        more.append(tr("cut off at the length limit"))
    tokens = side["tokens"] if scale is not None else None
    return {
        "name": name,
        "score": number(_primary(side, content)),
        "more": " · ".join(more),
        "text": side["text"],
        "tokens": [
            {
                "text": token["text"],
                "level": LEVELS if token["kl"] is None else scale.level(token["kl"]),
                "title": f"KL(A‖B) {number(token['kl'])} nats",
            }
            for token in tokens
        ]
        if tokens and scale is not None
        else [],
    }


def _primary(side: Mapping[str, Any], content: Mapping[str, Any]) -> float:
    return float(side["scores"][content["primary_scorer"]])


def _row(name: str, figures: Mapping[str, Estimate], larger_is_better: bool | None, form: str, tr: Translate) -> Row:
    value, interval = estimate(figures["difference"], f"+{form}", tr)
    # A difference of two shares is in percentage points; "−1.6%" could be read as a relative change.
    difference = value.replace("%", tr(" pp")), interval.replace("%", tr(" pp"))
    read = reading(figures["difference"], larger_is_better, tr)
    return Row(name, estimate(figures["a"], form, tr), estimate(figures["b"], form, tr), difference, *read)
