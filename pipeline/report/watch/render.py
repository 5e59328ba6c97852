"""report.html of a watch: one self-contained page, the same bytes for the same content, safe for any output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.release_config import Language
from pipeline.report.language import translator
from pipeline.report.page import fill
from pipeline.report.watch import words
from pipeline.report.watch.chart import day_charts

TEMPLATE = "watch/watch.html.j2"


def render_watch(content: Mapping[str, Any], language: Language = "en") -> str:
    """The page as one HTML document without scripts or anything to fetch.

    Args:
        content: of `pipeline.watch.summary`.
    """
    tr = translator(language)
    scale = words.scale(content)
    return fill(
        TEMPLATE,
        language,
        content=content,
        badge=words.badge(content, tr),
        headline=words.headline(content, tr),
        points=words.points(content, tr),
        charts=day_charts(content, tr),
        days=words.day_rows(content, tr),
        rules=words.rule_rows(content, tr),
        alerts=words.alert_rows(content, tr),
        legend=scale.legend(tr) if scale is not None else [],
        outputs=words.output_rows(content, scale, tr),
        skipped=words.skipped_rows(content, tr),
        notes=words.notes(content, tr),
    )
