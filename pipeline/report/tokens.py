"""Outputs with every token coloured by its risk: which ones to show, and on what scale."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from pipeline.records import ScoredSample
from pipeline.report.language import Translate, english

LEVELS = 5
"""Shades above the plain background; their colours are the classes r0 to r5 of the style sheet."""
NUM_RISKIEST = 3
NUM_TYPICAL = 2


@dataclass(frozen=True)
class Scale:
    """``edges`` [LEVELS] in nats: a token of risk r has the shade of how many edges r reaches."""

    edges: tuple[float, ...]

    def level(self, risk: float) -> int:
        """0 (plain) to LEVELS (darkest); a risk that is not finite is darkest."""
        return LEVELS if not np.isfinite(risk) else int(np.searchsorted(self.edges, risk, side="right"))

    def legend(self, tr: Translate = english) -> list[tuple[int, str]]:
        """Each shade with its range of risk in words."""
        named = [f"{edge:.2g}" for edge in self.edges]
        middle = [tr("{low} to {high}").format(low=low, high=high) for low, high in pairwise(named)]
        below, above = tr("below {edge}").format(edge=named[0]), tr("{edge} and above").format(edge=named[-1])
        return list(enumerate([below, *middle, above]))


def risk_scale(samples: list[ScoredSample]) -> Scale:
    """A linear scale whose darkest shade starts at the 99th percentile of the policy's token risks."""
    risks = np.array([risk for sample in samples if sample.model == "policy" for risk in sample.risk])
    risks = risks[np.isfinite(risks)]
    top = float(np.quantile(risks, 0.99)) if risks.size else 0.0
    return Scale(tuple(max(top, 1e-6) * part for part in (0.1, 0.3, 0.5, 0.75, 1.0)))


def token_views(samples: list[ScoredSample], scorer: str, tr: Translate = english) -> list[dict[str, Any]]:
    """The policy's outputs with the riskiest tokens and some with a typical highest risk, as template rows.

    Outputs without token numbers are never chosen; the choice does not depend on the order of ``samples``.
    """
    usable = [one for one in samples if one.model == "policy" and one.tokens and len(one.risk) == len(one.tokens)]
    ordered = sorted(usable, key=lambda one: (-one.max_risk, one.prompt_id, one.seed))
    middle = max(NUM_RISKIEST, len(ordered) // 2)
    scale = risk_scale(samples)
    chosen = [(tr("highest risk"), one) for one in ordered[:NUM_RISKIEST]]
    chosen += [(tr("typical"), one) for one in ordered[middle : middle + NUM_TYPICAL]]
    return [_view(why, sample, scale, scorer, tr) for why, sample in chosen]


def _view(why: str, sample: ScoredSample, scale: Scale, scorer: str, tr: Translate) -> dict[str, Any]:
    title = tr("log-ratio {ratio}, KL {kl}, risk {risk} (nats)")
    rows = zip(sample.tokens, _padded(sample.log_ratio, sample), _padded(sample.kl, sample), sample.risk, strict=True)
    return {
        "why": why,
        "prompt": sample.prompt,
        "seed": sample.seed,
        "score": sample.scores.get(scorer),
        "finished": sample.finished,
        "max_risk": sample.max_risk,
        "max_position": sample.max_risk_position,
        "tokens": [
            {
                "text": text,
                "level": scale.level(risk),
                "peak": position == sample.max_risk_position,
                "title": title.format(ratio=f"{ratio:+.3f}", kl=f"{kl:.3f}", risk=f"{risk:.3f}"),
            }
            for position, (text, ratio, kl, risk) in enumerate(rows)
        ],
    }


def _padded(values: list[float], sample: ScoredSample) -> list[float]:
    missing = len(sample.tokens) - len(values)
    return [*values, *[float("nan")] * missing] if missing > 0 else values[: len(sample.tokens)]
