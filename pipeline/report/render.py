"""report.html: one self-contained page, the same bytes for the same inputs, safe for hostile model output."""

from __future__ import annotations

from typing import Any

import numpy as np
import yaml

from pipeline.report import view
from pipeline.report.charts import Line, curve_chart, score_bins, score_chart
from pipeline.report.decision import DecisionView, decision_view
from pipeline.report.drawing import FIRST, SECOND, Chart
from pipeline.report.inputs import ReportInputs
from pipeline.report.language import Translate, sense, translator
from pipeline.report.method import method_text
from pipeline.report.page import fill
from pipeline.report.summary import strict
from pipeline.report.tokens import risk_scale, token_views

TEMPLATE = "report.html.j2"


def render(inputs: ReportInputs) -> str:
    """The report as one HTML document without scripts or anything to fetch.

    Text of models and data is escaped by the template, and its control characters are made visible.
    """
    tr = translator(inputs.language)
    evaluation = inputs.evaluation
    verdict = inputs.verdict or evaluation["verdict"]
    compared, single = view.pair_figures(evaluation["pairs"], tr)
    stage_rows, total = view.stage_table(inputs.stages, tr)
    splits = (view.without_dropped(inputs.data_stats), view.without_dropped(inputs.token_stats))
    return fill(
        TEMPLATE,
        inputs.language,
        recipe=inputs.recipe,
        method=method_text(inputs.config, tr),
        evaluation=evaluation,
        split=tr(sense("split", evaluation["split"])),
        described={name: tr(scorer["description"]) for name, scorer in evaluation["scorers"].items()},
        verdict=verdict,
        badge=_badge(verdict, tr),
        decision=_decision(inputs, tr),
        figures=view.key_figures(evaluation, tr),
        pair_compared=compared,
        pair_single=single,
        score_charts=_score_charts(inputs, tr),
        training_charts=_training_charts(inputs, tr),
        tokens=token_views(inputs.samples, evaluation["primary_scorer"], tr),
        legend=risk_scale(inputs.samples).legend(tr),
        split_rows=view.split_table(*splits, tr=tr),
        data_rows=[*view.other_table(splits[0], tr), *view.other_table(splits[1], tr)],
        dropped_rows=view.dropped_table(
            (tr("reading"), inputs.data_stats), (tr("tokenising"), inputs.token_stats), tr=tr
        ),
        notes=[tr(note) for note in inputs.notes],
        stage_rows=stage_rows,
        total=total,
        stages=inputs.stages,
        versions=inputs.versions,
        config_yaml=yaml.safe_dump(strict(inputs.config), sort_keys=False, allow_unicode=True, width=100),
    )


def _decision(inputs: ReportInputs, tr: Translate) -> DecisionView | None:
    if inputs.gate is None or inputs.gate_words is None or inputs.release is None:
        return None
    return decision_view(inputs.gate, inputs.gate_words, inputs.release, tr)


def _badge(verdict: dict[str, Any], tr: Translate) -> tuple[str, str]:
    """The verdict's one word and its style class."""
    if verdict["degenerate"]:
        return tr("Do not use"), "bad"
    if verdict["worse"]:
        mixed = verdict["mean"] == "higher" or verdict["tail"] == "better" or verdict["incidents"] == "fewer"
        return (tr("Mixed"), "unclear") if mixed else (tr("Worse"), "bad")
    return (tr("Better"), "good") if verdict["better"] else (tr("Not clear"), "unclear")


def _training_charts(inputs: ReportInputs, tr: Translate) -> list[Chart]:
    start = float(np.log(2))
    sides = (
        ("chosen", tr(sense("answer", "chosen")), FIRST, False),
        ("rejected", tr(sense("answer", "rejected")), SECOND, True),
    )
    charts = [
        curve_chart(
            inputs.metrics,
            [
                Line(tr(sense("split", "training")), "train", "loss"),
                Line(tr(sense("split", "validation")), "validation", "loss", SECOND, True),
            ],
            title=tr("Loss"),
            caption=tr("Every loss starts at ln 2, where policy and reference are equal."),
            level=(start, "ln 2"),
            tr=tr,
        ),
        curve_chart(
            inputs.metrics,
            [Line(tr(sense("split", "validation")), "validation", "reward_accuracy")],
            title=tr("Validation reward accuracy"),
            caption=tr("Share of held-out pairs ranked correctly; 0.5 is chance. It says nothing about the text."),
            level=(0.5, tr("chance")),
            tr=tr,
        ),
        curve_chart(
            inputs.metrics,
            [Line(words, "validation", f"{side}_kl", colour, dashed) for side, words, colour, dashed in sides],
            title=tr("Sequential KL"),
            caption=tr("Drift from the reference summed over a response, validation pairs, nats."),
            tr=tr,
        ),
        curve_chart(
            inputs.metrics,
            [Line(words, "validation", f"{side}_risk", colour, dashed) for side, words, colour, dashed in sides],
            title=tr("Sequential risk"),
            caption=tr("The trained risk measure summed over a response, validation pairs, nats."),
            tr=tr,
        ),
        curve_chart(
            inputs.metrics,
            [Line(tr("learning rate"), "train", "lr")],
            title=tr("Learning rate"),
            caption=tr("Warm-up, then the schedule of the run."),
            tr=tr,
        ),
        curve_chart(
            [{"split": "train", **row} for row in inputs.sft_metrics],
            [Line(tr(sense("split", "training")), "train", "loss")],
            title=tr("Fine-tuning loss"),
            caption=tr("Before alignment: fine-tuning that made the reference, nats per token."),
            tr=tr,
        ),
    ]
    return [chart for chart in charts if chart is not None]


def _score_charts(inputs: ReportInputs, tr: Translate) -> list[Chart]:
    """One histogram a model on common axes."""
    scorer = inputs.evaluation["primary_scorer"]
    figures = inputs.evaluation["scorers"][scorer]
    scores = {
        model: sorted(sample.scores[scorer] for sample in inputs.samples if sample.model == model)
        for model in ("reference", "policy")
    }
    every = [score for values in scores.values() for score in values]
    if not all(scores.values()):
        return []
    low, high = min(every), max(every)
    margin = 0.02 * (high - low) or 0.5
    limits = low - margin, high + margin
    titles = {"reference": tr("Scores of the reference"), "policy": tr("Scores of the policy")}
    tops = [np.histogram(values, bins=score_bins(limits))[0].max() / len(values) for values in scores.values()]
    return [
        score_chart(
            values,
            title=titles[model],
            scorer=scorer,
            tail_fraction=inputs.evaluation["tail_fraction"],
            tail_mean=figures[model]["tail_mean"]["value"],
            mean=figures[model]["mean"]["value"],
            limits=limits,
            top_share=float(max(tops)),
            tr=tr,
        )
        for model, values in scores.items()
    ]
