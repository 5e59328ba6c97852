"""What people and Prometheus see of a watch: the page in both languages, safe for any output, and the metrics."""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "report"))
from html_page import Page
from watching import NOW, line, rows, score, subject, watcher

from pipeline.places import Place
from pipeline.report.watch import render_watch
from pipeline.report.watch.words import headline
from pipeline.watch.metrics import Metrics, Surroundings
from pipeline.watch.summary import summarise
from pipeline.watch.watcher import Watcher

HOSTILE = '</p><script>alert("x")</script><img src=x onerror=y>{{ 7*7 }}\x1b[2J\u202e\x00'
SECTIONS = ["verdict", "days", "rules", "alerts", "outputs", "skipped", "promise"]
CALM = np.random.default_rng(0).normal(5, 1, 130).tolist()


def watched(tmp_path: Path, values: list[float]) -> Watcher:
    watch = watcher(Place(str(tmp_path / "watch")), [])
    watch.watch(subject())
    watch.take([*rows(values[:60], time="2026-11-25T08:00:00+00:00"), line(99, "?")], score)
    watch.take(rows(values[60:], 61, time="2026-11-26T08:00:00+00:00"), score)
    return watch


def content(watch: Watcher, **changes: Any) -> dict[str, Any]:
    alerts = [each.alert for each in watch.state.pending]
    assert watch.subject is not None
    values = watch.baseline_values()
    return summarise(watch.state, watch.subject, watch.rules(), values, "production", alerts, NOW) | changes


@pytest.mark.parametrize("language", ["en", "ja"])
@pytest.mark.parametrize("drifted", [False, True])
def test_the_page_is_whole_and_fetches_and_runs_nothing(tmp_path: Path, language: Any, drifted: bool) -> None:
    page = Page(render_watch(content(watched(tmp_path, CALM + [9.0] * 40 * drifted)), language))
    assert [found for found in page.ids if found in SECTIONS] == SECTIONS
    assert len(page.ids) == len(set(page.ids))
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & set(page.tags)
    assert all(reference.startswith("#") for reference in page.references)


def test_the_state_comes_first(tmp_path: Path) -> None:
    watch = watched(tmp_path, CALM[:70])
    found = content(watch)
    assert headline(found) == "Version 1 is being watched, but there are no alarms before its baseline is complete."
    assert "Baseline: 70 of 100 outputs." in Page(render_watch(found)).text
    watch.take(rows(CALM[70:], 71), score)
    assert headline(content(watch)) == "No drift was found in 30 outputs of version 1 since the baseline."
    watch.take(rows([9.0] * 18, 131), score)
    found = content(watch)
    assert headline(found).startswith("Version 1 has drifted: ")
    assert "the risk is higher than in the baseline" in Page(render_watch(found)).text
    text = Page(render_watch(found)).text
    for said in ("malformed: not JSON", "app.jsonl:99", "at most 10%", "window of 50 outputs", "2026-11-25"):
        assert said in text
    assert found["days"][0]["outputs"] == 60
    assert found["riskiest"][0]["measures"]["risk"] == 9.0


def test_hostile_text_is_shown_and_does_nothing(tmp_path: Path) -> None:
    watch = watched(tmp_path, CALM)
    found = content(watch)
    found["riskiest"][0] |= {"prompt": HOSTILE, "tokens": [HOSTILE, "b"], "where": HOSTILE}
    found["skipped"][0] |= {"reason": HOSTILE, "examples": [HOSTILE]}
    html = render_watch(found)
    assert not {"script", "img"} & set(Page(html).tags)
    assert not any(bad in html for bad in ("\x1b", "\x00", "\u202e"))
    assert render_watch(found) == html


def test_metrics_are_what_the_state_says_and_parse(tmp_path: Path) -> None:
    watch = watched(tmp_path, [*CALM, *[9.0] * 18])
    metrics = Metrics()
    metrics.set(watch.state, Surroundings("0123456789abcdef", "production", 12, 3, 1))
    found: dict[tuple[str, ...], float] = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        assert family.name.startswith("ra_dpo_watch_")
        for sample in family.samples:
            extra = [value for name, value in sample.labels.items() if name not in ("line", "target")]
            found[sample.name.removeprefix("ra_dpo_watch_"), *extra] = sample.value
    assert found["outputs_total",] == 148
    assert found["skipped_total", "malformed: not JSON"] == 1
    assert found["alarms_total", "risk-up"] == 1
    assert found["alarm", "risk-up"] == 1
    assert found["alarm", "vader-down"] == 0
    assert found["statistic_ratio", "risk-up"] > 1
    assert found["version",] == 1
    assert found["unread_bytes",] == 12
    assert found["registry_failures_total",] == 3
    assert found["undelivered_alerts",] == 1
    assert found["last_output_timestamp_seconds",] == datetime(2026, 11, 26, 8, tzinfo=UTC).timestamp()
