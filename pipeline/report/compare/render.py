"""compare.html: one self-contained page from compare.json, the same bytes for the same content, safe for any output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.release_config import Language
from pipeline.report.compare import tables, words
from pipeline.report.compare.chart import change_chart
from pipeline.report.language import translator
from pipeline.report.page import fill

TEMPLATE = "compare/compare.html.j2"


def render_compare(content: Mapping[str, Any], language: Language = "en") -> str:
    """The page as one HTML document without scripts or anything to fetch. ``content`` is that of compare.json."""
    tr = translator(language)
    scale = tables.token_scale(content)
    return fill(
        TEMPLATE,
        language,
        content=content,
        badge=words.badge(content["verdict"], tr),
        headline=words.headline(content, tr),
        reasons=words.reasons(content, tr),
        warnings=words.warnings(content, tr),
        notes=words.notes(content, tr),
        chart=change_chart(content["changes"], content["primary_scorer"], tr),
        figures=tables.figure_rows(content, tr),
        descriptions=[(name, tr(one["description"])) for name, one in content["scorers"].items()],
        between=tables.between_rows(content, tr),
        from_reference=tables.drift_rows(content, tr),
        why_no_drift=words.why_no_drift(content["why_no_drift"], tr) if content["why_no_drift"] else None,
        legend=scale.legend(tr) if scale is not None else [],
        regressions=tables.output_rows(content["regressions"], content, tr),
        improvements=tables.output_rows(content["improvements"], content, tr),
    )
