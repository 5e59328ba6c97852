"""From the content of a watch to the words and rows that its page prints; no HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np

from pipeline.report.language import Translate, english, sense
from pipeline.report.tokens import Scale
from pipeline.report.view import number

Content = Mapping[str, Any]


def measure_title(name: str, tr: Translate = english) -> str:
    """A measure with its unit."""
    if name == "risk":
        return tr("Sequential risk (nats an output)")
    if name == "kl":
        return tr("Sequential KL (nats an output)")
    return tr("Tokens an output") if name == "tokens" else tr("{scorer} score").format(scorer=name)


def latched(content: Content) -> list[Mapping[str, Any]]:
    """Rules that have raised an alarm since the baseline."""
    return [rule for rule in content["rules"] if rule["alarm"] is not None]


def badge(content: Content, tr: Translate = english) -> tuple[str, str]:
    """The state in a word, with its style."""
    if not content["epoch"]["complete"]:
        return tr("Baseline being taken"), "unclear"
    return (tr("Alarm"), "bad") if latched(content) else (tr("No alarm"), "good")


def headline(content: Content, tr: Translate = english) -> str:
    """What a reader has to know first."""
    epoch, rules = content["epoch"], latched(content)
    if not epoch["complete"]:
        return tr(
            "Version {version} is being watched, but there are no alarms before its baseline is complete."
        ).format(version=content["version"])
    if not rules:
        return tr("No drift was found in {count} outputs of version {version} since the baseline.").format(
            count=f"{epoch['outputs']:,}", version=content["version"]
        )
    first = min(rules, key=lambda one: one["alarm"])
    return tr("Version {version} has drifted: {what}.").format(version=content["version"], what=rule_text(first, tr))


def points(content: Content, tr: Translate = english) -> list[str]:
    """The state, in sentences."""
    epoch, said = content["epoch"], []
    if not epoch["complete"]:
        said.append(
            tr("Baseline: {have} of {size} outputs.").format(have=f"{epoch['gathered']:,}", size=f"{epoch['size']:,}")
        )
    for rule in latched(content):
        said.append(
            tr("Alarm after {count} outputs: {what}.").format(count=f"{rule['alarm']:,}", what=rule_text(rule, tr))
        )
    back = next((alert for alert in content["alerts"] if alert["action"] == "rolled back"), None)
    if back is not None:
        said.append(
            tr("Version {version} had raised an alarm and was rolled back on {time} (record {record}).").format(
                version=back["version"], time=when(back["when"]), record=back["record"]
            )
        )
    last = content["last_output"]
    said.append(
        tr("{count} outputs scored in all; the newest is of {time}.").format(
            count=f"{content['outputs']:,}", time="–" if last is None else when(last)
        )
    )
    return said


def rule_text(rule: Mapping[str, Any], tr: Translate = english) -> str:
    """What a rule has found, or would find."""
    measure = sense_of(rule["measure"], tr)
    if rule["kind"] == "tail":
        return tr("more outputs than expected are worse in {measure} than 99% of the baseline").format(measure=measure)
    if rule["up"]:
        return tr("{measure} is higher than in the baseline").format(measure=measure)
    return tr("{measure} is lower than in the baseline").format(measure=measure)


def sense_of(measure: str, tr: Translate = english) -> str:
    """A measure in a sentence."""
    known = {
        "risk": tr(sense("measure", "the risk")),
        "kl": tr(sense("measure", "the KL")),
        "tokens": tr(sense("measure", "the number of tokens")),
    }
    return known.get(measure) or tr("the {scorer} score").format(scorer=measure)


def day_rows(content: Content, tr: Translate = english) -> list[list[str]]:
    """Newest first: day, outputs, skipped, medians of risk, KL and the primary score."""
    names = shown_measures(content)
    return [
        [
            one["day"],
            f"{one['outputs']:,}",
            f"{one['skipped']:,}",
            *(number(one["quantiles"][name][1] if name in one["quantiles"] else None) for name in names),
        ]
        for one in reversed(content["days"])
    ]


def shown_measures(content: Content) -> list[str]:
    """What has a column in the table of days."""
    return [name for name in ("risk", "kl", content["primary"]) if name in content["measures"]]


def rule_rows(content: Content, tr: Translate = english) -> list[dict[str, str]]:
    """Every rule with how near its alarm it is."""
    return [
        {
            "what": rule_text(rule, tr),
            "name": rule["name"],
            "value": number(rule["value"], ".1f"),
            "threshold": number(rule["threshold"], ".1f"),
            "state": tr("quiet")
            if rule["alarm"] is None
            else tr("alarm after {count} outputs").format(count=f"{rule['alarm']:,}"),
            "style": "" if rule["alarm"] is None else "no",
        }
        for rule in content["rules"]
    ]


def alert_rows(content: Content, tr: Translate = english) -> list[dict[str, str]]:
    """Alerts, newest first."""
    actions = {
        "none": tr(sense("action", "none")),
        "rolled back": tr(sense("action", "rolled back")),
        "failed": tr(sense("action", "failed")),
        "moved already": tr(sense("action", "moved already")),
    }
    return [
        {
            "when": when(alert["when"]),
            "version": str(alert["version"]),
            "rule": alert["rule"],
            "message": alert["message"],
            "action": actions[alert["action"]],
            "more": alert["action_message"],
        }
        for alert in content["alerts"]
    ]


def scale(content: Content) -> Scale | None:
    """Shades for the tokens of the riskiest outputs; None when there are none."""
    risks = [risk for one in content["riskiest"] for risk in one["risks"]]
    if not risks:
        return None
    top = max(float(np.quantile(risks, 0.99)), 1e-6)
    return Scale(tuple(top * part for part in (0.1, 0.3, 0.5, 0.75, 1.0)))


def output_rows(content: Content, shades: Scale | None, tr: Translate = english) -> list[dict[str, Any]]:
    """The riskiest outputs with their tokens marked."""
    return [_output(one, shades, tr) for one in content["riskiest"]] if shades is not None else []


def _output(one: Mapping[str, Any], shades: Scale, tr: Translate) -> dict[str, Any]:
    before, after = one["left_out"]
    peak = max(range(len(one["risks"])), key=one["risks"].__getitem__)
    return {
        "where": one["where"],
        "time": "–" if one["time"] is None else when(one["time"]),
        "version": one["version"],
        "risk": number(one["measures"]["risk"], ".2f"),
        "scores": ", ".join(
            f"{name} {number(value)}" for name, value in sorted(one["measures"].items()) if name != "risk"
        ),
        "prompt": one["prompt"],
        "before": tr("{count} tokens before are left out").format(count=before) if before else "",
        "after": tr("{count} tokens after are left out").format(count=after) if after else "",
        "tokens": [
            {
                "text": text,
                "level": shades.level(risk),
                "peak": place == peak,
                "title": tr("risk {risk} nats").format(risk=number(risk)),
            }
            for place, (text, risk) in enumerate(zip(one["tokens"], one["risks"], strict=True))
        ],
    }


def skipped_rows(content: Content, tr: Translate = english) -> list[tuple[str, str, str]]:
    """Reason, count, and where the first few are."""
    return [(_reason(one["reason"], tr), f"{one['count']:,}", ", ".join(one["examples"])) for one in content["skipped"]]


def _reason(reason: str, tr: Translate) -> str:
    head, _, rest = reason.partition(": ")
    if head == "malformed":
        return tr("malformed: {why}").format(why=rest)
    if reason.startswith("not scored by the models"):
        return tr("not scored by the models")
    known = {
        "of another line": tr("of another line"),
        "of another version": tr("of another version"),
        "output without tokens": tr("output without tokens"),
        "longer than 1 MiB": tr("longer than 1 MiB"),
    }
    return known.get(reason, reason)


def notes(content: Content, tr: Translate = english) -> list[str]:
    """What else happened to the logs."""
    said: Sequence[tuple[str, int]] = (
        (
            tr("{count} outputs were longer than the model takes; prompts lost their beginning, outputs their end."),
            content["cut"],
        ),
        (tr("{count} outputs came with ids of another tokenizer; their text was tokenised anew."), content["anew"]),
        (tr("{count} log files were cut off or written anew, and read from their beginning."), content["restarted"]),
        (tr("{count} bytes of log files went away before they were read."), content["lost_bytes"]),
    )
    return [text.format(count=f"{count:,}") for text, count in said if count]


def when(time: str) -> str:
    """A time as people read it, UTC."""
    return f"{datetime.fromisoformat(time):%Y-%m-%d %H:%M} UTC"
