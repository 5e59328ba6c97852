"""What a card says, as headings, sentences and tables: made once, written as Markdown and as HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.catalogue import MEASURES
from pipeline.release_config import Language
from pipeline.report import view
from pipeline.report.language import Translate, sense, translator
from pipeline.report.method import method_text


@dataclass(frozen=True)
class CardInputs:
    """Everything that a card is made from: plain data of finished stages.

    ``evaluation`` (evaluation.json), ``verdict`` (its verdict with the sentences in the card's language) and
    ``explanation`` (`pipeline.release.explain`) are None for the reference, which is what others are compared with.
    ``unseen_share`` is the share of prompts that could show a fault that no prompt of the evaluation showed.
    ``notes`` are sentences about the model.
    """

    name: str
    config: Mapping[str, Any]
    provenance: Mapping[str, Any]
    language: Language = "en"
    evaluation: dict[str, Any] | None = None
    verdict: dict[str, Any] | None = None
    unseen_share: float | None = None
    explanation: Mapping[str, Any] | None = None
    data_stats: Mapping[str, Any] = field(default_factory=dict)
    token_stats: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Table:
    """Rows under a header; the first column names the row."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


Block = str | tuple[str, ...] | Table
"""A paragraph, a list, or a table."""


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    heading: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Card:
    """A whole card."""

    title: str
    lead: str
    sections: tuple[Section, ...]


def build(inputs: CardInputs) -> Card:
    """The content of a card in its language."""
    tr = translator(inputs.language)
    policy = inputs.evaluation is not None
    lead = (
        tr(
            "A language model aligned with preferences by {method}, judged beside the reference it started from."
        ).format(method=method_text(inputs.config, tr))
        if policy
        else tr("The reference: the model that alignment starts from, and to which every roll-back leads in the end.")
    )
    sections = [
        Section(tr("Data"), tuple(_data(inputs, tr))),
        *([Section(tr("Method and level"), tuple(_method(inputs, tr)))] if policy else []),
        *([Section(tr("Evaluation"), tuple(_evaluation(inputs, inputs.evaluation, tr)))] if inputs.evaluation else []),
        *([Section(tr("Where the risk lies"), tuple(_risk(inputs.explanation, tr)))] if inputs.explanation else []),
        Section(tr("Limits"), (tuple(_limits(inputs, tr)),)),
        Section(tr("Lineage"), tuple(_lineage(inputs, tr))),
        Section(tr("Use"), tuple(_use(policy, tr))),
    ]
    return Card(inputs.name, lead, tuple(sections))


def _data(inputs: CardInputs, tr: Translate) -> list[Block]:
    blocks: list[Block] = [
        tr("Preference pairs from {source} (format {format}), split by group into train, validation and test.").format(
            source=inputs.config["data"]["path"], format=inputs.config["data"]["format"]
        )
    ]
    rows = view.split_table(view.without_dropped(inputs.data_stats), view.without_dropped(inputs.token_stats), tr=tr)
    if rows:
        header = (tr("By split"), tr("Train"), tr("Validation"), tr("Test"))
        blocks.append(Table(header, tuple((name, *values) for name, values in rows)))
    blocks += [tr(note) for note in inputs.notes]
    return blocks


def _method(inputs: CardInputs, tr: Translate) -> list[Block]:
    config = inputs.config
    loss, risk, train = config["loss"], config["risk"], config["train"]
    blocks: list[Block] = [
        tr("Loss: {method}. Trained for {epochs} epoch(s), {batch} pairs a step, rate {rate}, seed {seed}.").format(
            method=method_text(config, tr),
            epochs=train["epochs"],
            batch=train["batch_size"],
            rate=train["optim"]["lr"],
            seed=train["seed"],
        )
    ]
    if str(loss["method"]).startswith("ra_dpo"):
        if info := MEASURES.get(risk["measure"]):
            blocks.append(
                tr("{measure}: {meaning}.").format(measure=risk["measure"], meaning=tr(info.text).replace("`", ""))
            )
        blocks.append(
            tr("Why this measure and level: {reason}").format(reason=risk["reason"])
            if risk["reason"]
            else tr("Why this measure and level: no reason was written down (option risk.reason).")
        )
    return blocks


def _evaluation(inputs: CardInputs, evaluation: dict[str, Any], tr: Translate) -> list[Block]:
    verdict = inputs.verdict or evaluation["verdict"]
    header = (
        tr("Figure"),
        tr(sense("model", "Reference")),
        tr(sense("model", "Policy")),
        tr("Difference"),
        tr("Reading"),
    )
    compared, single = view.pair_figures(evaluation["pairs"], tr)
    rows = [
        (row.name, _cell(row.reference), _cell(row.policy), _cell(row.difference), row.reading)
        for row in (*view.key_figures(evaluation, tr), *compared)
    ]
    return [
        verdict["headline"],
        (*verdict["reasons"], *verdict["warnings"]),
        tr(
            "{prompts} held-out prompts ({split}), {seeds} samples each from both models, and {pairs} held-out pairs. "
            "Ranges are 95% intervals over prompts or groups."
        ).format(
            prompts=evaluation["num_prompts"],
            split=tr(sense("split", evaluation["split"])),
            seeds=len(evaluation["seeds"]),
            pairs=evaluation["pairs"]["num_pairs"],
        ),
        Table(header, tuple(rows)),
        Table(
            (tr("Policy against reference"), tr("Value"), tr("95% interval")),
            tuple((name, value, interval) for name, value, interval in single),
        ),
    ]


def _cell(figure: tuple[str, str]) -> str:
    value, interval = figure
    return f"{value} ({interval})" if interval else value


def _risk(explanation: Mapping[str, Any], tr: Translate) -> list[Block]:
    header = (tr("Token"), tr("Times"), tr("Share of the risk"), tr("Mean risk there"), tr("Mean risk elsewhere"))
    rows = [
        (
            repr(one["text"]),
            f"{one['count']:,}",
            f"{one['share']:.1%}",
            view.number(one["mean"]),
            view.number(one["mean_elsewhere"]),
        )
        for one in explanation["tokens"]
    ]
    return [
        tr(
            "The tokens that carry most risk in the {count} worst outputs. Risk is the trained measure of the "
            "log-ratio of reference and policy, in nats."
        ).format(count=explanation["num_worst"]),
        Table(header, tuple(rows)),
    ]


def _limits(inputs: CardInputs, tr: Translate) -> list[str]:
    found = []
    if evaluation := inputs.evaluation:
        found += [
            tr("It was judged by automatic scores ({scorers}), which are a rough judge: read its outputs.").format(
                scorers=tr(", ").join(evaluation["scorers"])
            ),
            tr(
                "With {prompts} prompts a fault that shows in up to {share} of them may have been missed (95% bound)."
            ).format(prompts=evaluation["num_prompts"], share=f"{inputs.unseen_share or 1.0:.1%}"),
            tr("Prompts unlike those of the data were not tried, nor any kind of attack."),
        ]
    found.append(
        tr("Outputs have at most {tokens} tokens in the evaluation.").format(
            tokens=inputs.config["evaluation"]["max_new_tokens"]
        )
    )
    found.append(tr("Fitness for a purpose was not examined: that is up to those who put it to use."))
    return found


def _lineage(inputs: CardInputs, tr: Translate) -> list[Block]:
    made = inputs.provenance
    rows = [
        (tr("Model"), str(made["model"])),
        (tr("Recipe"), str(made["recipe"])),
        *([(tr("Reference (version 0)"), str(made["reference"]))] if "reference" in made else []),
        (tr("Digest of the data"), str(made["data"])),
        *([(tr("Digest of the configuration"), str(made["config"]))] if "config" in made else []),
        (tr("Digest of the code"), str(made["code"])),
        *(
            (tr("Stage {name}").format(name=view.stage_name(name, tr)), str(key))
            for name, key in made["stages"].items()
        ),
        *((name, str(version)) for name, version in made["libraries"].items()),
    ]
    return [Table((tr("Part"), tr("Digest or version")), tuple(rows))]


def _use(policy: bool, tr: Translate) -> list[Block]:
    loads = tr("This directory is a Hugging Face model: AutoModelForCausalLM.from_pretrained loads it as it is.")
    decided = tr("What was decided of it, when and why, stands in the audit trail: python jobs/registry.py export.")
    back = tr("If something is wrong with it: python jobs/rollback.py, which takes production back at once.")
    return [loads, decided, back] if policy else [loads]
