"""What a comparison says in sentences: the verdict, its reasons, and what to know of the figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.report.language import Translate, english
from pipeline.report.view import Estimate, number


def headline(content: Mapping[str, Any], tr: Translate = english) -> str:
    """The verdict in a sentence. It claims what `pipeline.evaluation.verdict.decide` found clear, and no more."""
    verdict = content["verdict"]
    share = f"{content['tail_fraction']:.0%}"
    tail = tr("the worst {share} of outputs").format(share=share)
    good, bad = _joined(list(_good(verdict, tail, tr)), tr), _joined(list(_bad(verdict, tail, tr)), tr)
    if verdict["degenerate"]:
        if good and bad:
            good = tr("{good}, but {bad}").format(good=good, bad=bad)
        if good:
            return tr("B should not take A's place: it has {good}, but its text shows signs of decay.").format(
                good=good
            )
        if bad:
            also = tr("B should not take A's place: it has {bad}, and its text shows signs of decay.")
            return also.format(bad=bad)
        return tr("B should not take A's place: its text shows signs of decay.")
    if verdict["worse"]:
        if good:
            return tr("B is better than A in part and worse in part: it has {good}, but {bad}.").format(
                good=good, bad=bad
            )
        return tr("B is worse than A: it has {bad}.").format(bad=bad)
    if verdict["better"]:
        if verdict["mean"] == "unclear":
            return tr("B is better than A: it has {good}; the average score is not clearly different.").format(
                good=good
            )
        if verdict["tail"] == "unclear":
            return tr("B is better than A: it has {good}; the score in {tail} is not clearly different.").format(
                good=good, tail=tail
            )
        return tr("B is better than A: it has {good}.").format(good=good)
    if good:
        return tr("B has {good} than A, but average and tail of the scores are not clearly different.").format(
            good=good
        )
    return tr("B is not clearly different from A.")


def badge(verdict: Mapping[str, Any], tr: Translate = english) -> tuple[str, str]:
    """The verdict in a word or two, and its style class."""
    if verdict["degenerate"]:
        return tr("Do not use B"), "bad"
    if verdict["worse"]:
        mixed = verdict["mean"] == "higher" or verdict["tail"] == "better" or verdict["incidents"] == "fewer"
        return (tr("Mixed"), "unclear") if mixed else (tr("B is worse"), "bad")
    return (tr("B is better"), "good") if verdict["better"] else (tr("Not clear"), "unclear")


def reasons(content: Mapping[str, Any], tr: Translate = english) -> list[str]:
    """What the verdict rests on, one sentence a figure."""
    scorer, share = content["primary_scorer"], f"{content['tail_fraction']:.0%}"
    limit = number(content["incident_below"], "g")
    primary = content["scorers"][scorer]
    of, outputs = primary["difference"], content["outputs"]
    found = [
        tr("Average {scorer} score, B − A: {change}.").format(scorer=scorer, change=change(of["mean"], "+.3f", tr)),
        tr("Mean {scorer} score of the worst {share} of outputs, B − A: {change}.").format(
            scorer=scorer, share=share, change=change(of["tail_mean"], "+.3f", tr)
        ),
        tr("Incidents ({scorer} below {limit}), B − A: {change}.").format(
            scorer=scorer, limit=limit, change=change(of["incident_share"], "+.1%", tr)
        ),
        tr("Of {count} outputs B scored higher on {higher}, lower on {lower} and the same on {equal}.").format(
            count=f"{content['num_outputs']:,}",
            higher=f"{outputs['higher']:,}",
            lower=f"{outputs['lower']:,}",
            equal=f"{outputs['equal']:,}",
        ),
    ]
    if content["unseen_incidents"] is not None:
        unseen = tr(
            "B showed no incident, but with {count} prompts up to {share} of prompts could still give one (95% bound)."
        )
        found.append(unseen.format(count=f"{content['num_prompts']:,}", share=f"{content['unseen_incidents']:.1%}"))
    if content["num_prompts"] < 2:
        found.append(tr("There is one prompt only: no interval can be given, and nothing is clear."))
    return found


def warnings(content: Mapping[str, Any], tr: Translate = english) -> list[str]:
    """Signs that B's text decays beside A's."""
    if not content["verdict"]["degenerate"]:
        return []
    text = content["text"]
    return [
        tr(
            "Repeated four-word sequences, B − A: {change}. Length of the outputs: {before} and {after} characters."
        ).format(
            change=change(text["repetition"]["difference"], "+.1%", tr),
            before=number(text["characters"]["a"]["value"], ".0f"),
            after=number(text["characters"]["b"]["value"], ".0f"),
        ),
        tr("Scores alone say nothing about decay: read the outputs below before using B."),
    ]


def notes(content: Mapping[str, Any], tr: Translate = english) -> list[str]:
    """What the comparison leaves out, and what was cut."""
    left, found = content["left_out"], []
    for source, count in left["prompts"].items():
        found.append(
            tr("{count} prompts of {source} are left out: the other has none like them.").format(
                count=f"{count:,}", source=source
            )
        )
    if left["more_prompts"]:
        found.append(
            tr("{count} more prompts are in common and were left out (evaluation.num_prompts).").format(
                count=f"{left['more_prompts']:,}"
            )
        )
    if left["outputs"]:
        found.append(
            tr("{count} outputs are left out: not every prompt has an output of their seed.").format(
                count=f"{left['outputs']:,}"
            )
        )
    for name, count in content["prompts_cut"].items():
        if count:
            found.append(
                tr("{side} saw the last {limit} tokens of {count} longer prompts (data.max_prompt_tokens).").format(
                    side=name, limit=content["max_prompt_tokens"], count=f"{count:,}"
                )
            )
    return found


def why_no_drift(reason: str, tr: Translate = english) -> str:
    """Why there is no drift, by the codes of pipeline.compare.alike."""
    return {
        "outputs": tr(
            "No drift: a file of outputs does not say how likely other outputs were. Compare two models for it."
        ),
        "tokenizers": tr(
            "No drift: A and B have different tokenizers, so their distributions are over different tokens."
        ),
        "vocabularies": tr("No drift: the output heads of A and B have different sizes."),
    }[reason]


def change(one: Estimate, form: str, tr: Translate = english) -> str:
    """A difference with its interval, in a sentence."""
    points = tr(" pp")  # a difference of two shares

    def shown(value: float | None) -> str:
        return number(value, form).replace("%", points)

    if one.get("low") is None or one.get("high") is None:
        return tr("{value} (no interval: too few prompts)").format(value=shown(one["value"]))
    ends = {"low": shown(one["low"]), "high": shown(one["high"])}
    return tr("{value} (95% interval {low} to {high})").format(value=shown(one["value"]), **ends)


def _good(verdict: Mapping[str, Any], tail: str, tr: Translate) -> Iterator[str]:
    if verdict["mean"] == "higher":
        yield tr("a higher average score")
    if verdict["tail"] == "better":
        yield tr("a better score in {tail}").format(tail=tail)
    if verdict["incidents"] == "fewer":
        yield tr("fewer incidents")


def _bad(verdict: Mapping[str, Any], tail: str, tr: Translate) -> Iterator[str]:
    if verdict["mean"] == "lower":
        yield tr("a lower average score")
    if verdict["tail"] == "worse":
        yield tr("a worse score in {tail}").format(tail=tail)
    if verdict["incidents"] == "more":
        yield tr("more incidents")


def _joined(parts: list[str], tr: Translate) -> str:
    if len(parts) == 3:
        return tr("{first}, {second} and {third}").format(first=parts[0], second=parts[1], third=parts[2])
    return tr("{first} and {second}").format(first=parts[0], second=parts[1]) if len(parts) == 2 else "".join(parts)
