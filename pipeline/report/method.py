"""What a policy was aligned by, in a line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.catalogue import MEASURES
from pipeline.report.language import Translate


def method_text(config: Mapping[str, Any], tr: Translate) -> str:
    """The loss and, where it has one, the risk measure, in a line."""
    loss, risk = config.get("loss", {}), config.get("risk", {})
    method = str(loss.get("method", ""))
    parts = [str(loss.get("method", tr("unknown"))), f"beta {loss.get('beta', '?')}"]
    if method.endswith("2"):
        parts.append(f"alpha {loss.get('alpha', '?')}")
    if method.startswith("ra_dpo"):
        info, measure = MEASURES.get(risk.get("measure", "")), str(risk.get("measure", "?"))
        levelled = info is not None and info.level is not None
        at = tr("{measure} at {level}").format(measure=measure, level=risk.get("level", "?"))
        parts.append(at if levelled else measure)
        if info is not None and info.has_weight:
            parts.append(tr("weight {weight}").format(weight=risk.get("weight", "?")))
    return tr(", ").join(parts)
