"""report.html: one self-contained page, the same bytes for the same inputs, safe for hostile model output."""

from __future__ import annotations

from typing import Any

import numpy as np
import yaml

from pipeline.catalogue import MEASURES
from pipeline.report import view
from pipeline.report.charts import Line, curve_chart, score_bins, score_chart
from pipeline.report.drawing import FIRST, SECOND, Chart
from pipeline.report.inputs import ReportInputs
from pipeline.report.page import fill
from pipeline.report.summary import strict
from pipeline.report.tokens import risk_scale, token_views

TEMPLATE = "report.html.j2"


def render(inputs: ReportInputs) -> str:
    """The report as one HTML document without scripts or anything to fetch.

    Text of models and data is escaped by the template, and its control characters are made visible.
    """
    evaluation = inputs.evaluation
    compared, single = view.pair_figures(evaluation["pairs"])
    stage_rows, total = view.stage_table(inputs.stages)
    splits = (view.without_dropped(inputs.data_stats), view.without_dropped(inputs.token_stats))
    return fill(
        TEMPLATE,
        recipe=inputs.recipe,
        method=_method(inputs.config),
        evaluation=evaluation,
        verdict=evaluation["verdict"],
        badge=_badge(evaluation["verdict"]),
        figures=view.key_figures(evaluation),
        pair_compared=compared,
        pair_single=single,
        score_charts=_score_charts(inputs),
        training_charts=_training_charts(inputs),
        tokens=token_views(inputs.samples, evaluation["primary_scorer"]),
        legend=risk_scale(inputs.samples).legend(),
        split_rows=view.split_table(*splits),
        data_rows=[*view.other_table(splits[0]), *view.other_table(splits[1])],
        dropped_rows=view.dropped_table(("reading", inputs.data_stats), ("tokenising", inputs.token_stats)),
        notes=inputs.notes,
        stage_rows=stage_rows,
        total=total,
        stages=inputs.stages,
        versions=inputs.versions,
        config_yaml=yaml.safe_dump(strict(inputs.config), sort_keys=False, allow_unicode=True, width=100),
    )


def _badge(verdict: dict[str, Any]) -> tuple[str, str]:
    """The verdict's one word and its style class."""
    if verdict["degenerate"]:
        return "Do not use", "bad"
    if verdict["worse"]:
        mixed = verdict["mean"] == "higher" or verdict["tail"] == "better" or verdict["incidents"] == "fewer"
        return ("Mixed", "unclear") if mixed else ("Worse", "bad")
    return ("Better", "good") if verdict["better"] else ("Not clear", "unclear")


def _method(config: dict[str, Any]) -> str:
    """The loss and, where it has one, the risk measure, in a line."""
    loss, risk = config.get("loss", {}), config.get("risk", {})
    text = f"{loss.get('method', 'unknown')}, beta {loss.get('beta', '?')}"
    if str(loss.get("method", "")).endswith("2"):
        text += f", alpha {loss.get('alpha', '?')}"
    if str(loss.get("method", "")).startswith("ra_dpo"):
        info = MEASURES.get(risk.get("measure", ""))
        level = f" at {risk.get('level', '?')}" if info is not None and info.level is not None else ""
        weight = f", weight {risk.get('weight', '?')}" if info is not None and info.has_weight else ""
        text += f", {risk.get('measure', '?')}{level}{weight}"
    return text


def _training_charts(inputs: ReportInputs) -> list[Chart]:
    start = float(np.log(2))
    sides = (("chosen", FIRST, False), ("rejected", SECOND, True))
    charts = [
        curve_chart(
            inputs.metrics,
            [Line("training", "train", "loss"), Line("validation", "validation", "loss", SECOND, True)],
            title="Loss",
            caption="Every loss starts at ln 2, where policy and reference are equal.",
            level=(start, "ln 2"),
        ),
        curve_chart(
            inputs.metrics,
            [Line("validation", "validation", "reward_accuracy")],
            title="Validation reward accuracy",
            caption="Share of held-out pairs ranked correctly; 0.5 is chance. It says nothing about the text.",
            level=(0.5, "chance"),
        ),
        curve_chart(
            inputs.metrics,
            [Line(side, "validation", f"{side}_kl", colour, dashed) for side, colour, dashed in sides],
            title="Sequential KL",
            caption="Drift from the reference summed over a response, validation pairs, nats.",
        ),
        curve_chart(
            inputs.metrics,
            [Line(side, "validation", f"{side}_risk", colour, dashed) for side, colour, dashed in sides],
            title="Sequential risk",
            caption="The trained risk measure summed over a response, validation pairs, nats.",
        ),
        curve_chart(
            inputs.metrics,
            [Line("learning rate", "train", "lr")],
            title="Learning rate",
            caption="Warm-up, then the schedule of the run.",
        ),
        curve_chart(
            [{"split": "train", **row} for row in inputs.sft_metrics],
            [Line("training", "train", "loss")],
            title="Fine-tuning loss",
            caption="Before alignment: fine-tuning that made the reference, nats per token.",
        ),
    ]
    return [chart for chart in charts if chart is not None]


def _score_charts(inputs: ReportInputs) -> list[Chart]:
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
    tops = [np.histogram(values, bins=score_bins(limits))[0].max() / len(values) for values in scores.values()]
    return [
        score_chart(
            values,
            title=f"Scores of the {model}",
            scorer=scorer,
            tail_fraction=inputs.evaluation["tail_fraction"],
            tail_mean=figures[model]["tail_mean"]["value"],
            mean=figures[model]["mean"]["value"],
            limits=limits,
            top_share=float(max(tops)),
        )
        for model, values in scores.items()
    ]
