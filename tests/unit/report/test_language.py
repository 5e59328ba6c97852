"""Reports in Japanese: the catalogue holds what the code says and no more, and a page of it is Japanese throughout."""

import re
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib as mpl
import pytest
from babel.messages.catalog import Catalog
from babel.messages.extract import extract
from babel.messages.pofile import read_po
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parent))
from html_page import VOID
from sweep_content import EDGES, make_sweep

from pipeline.catalogue import MEASURES
from pipeline.config import BUILD_GPT_NEOX, SMOLLM2, RunConfig
from pipeline.data import checks, encode, tokenise
from pipeline.evaluation.scorers import SHIPPED
from pipeline.evaluation.verdict import verdict_of
from pipeline.report.card import CardInputs, card_html
from pipeline.report.drawing import STYLE, to_svg
from pipeline.report.inputs import ReportInputs
from pipeline.report.language import CATALOGUES, english, sense, translator
from pipeline.report.render import render
from pipeline.report.sweep import render_sweep
from pipeline.report.sweep.decision import decide
from pipeline.stages import notes

PIPELINE = Path(__file__).parents[3] / "pipeline"
SPOKEN = ("report", "release", "compare", "selection", "evaluation/verdict.py", "releasing.py")
"""Where sentences for pages are made."""
KEYWORDS = {"tr": None, "sense": ((1, "c"), 2)}
Message = tuple[str | None, str]

STAGES = (
    *("data", "base", "tokens", "sft", "sample_reference", "reference", "align", "sample_policy", "evaluate"),
    *("sample_incumbent", "evaluate_incumbent", "gate", "register", "report", "other"),
)
STATISTICS = (
    *("rows read", "pairs", "groups", "characters", "tokens", "sft", "rows", "prompt", "prompts", "prompts cut"),
    *("chosen", "rejected", "response", "train", "validation", "test"),
)
ENGLISH = re.compile(r"[A-Za-z][A-Za-z'’]*(?:[ ,;:]+[A-Za-z][A-Za-z'’]*){3,}")


def run_of(model: str) -> RunConfig:
    data = {"path": "pairs.jsonl", "max_prompt_tokens": 8, "max_response_tokens": 8}
    return RunConfig.model_validate({"data": data, "model": {"path": model}, "sft": {"steps": 3}})


def in_code() -> Iterator[Message]:
    """The literals given to ``tr`` and ``sense``, in modules and templates."""
    for name in SPOKEN:
        place = PIPELINE / name
        for path in [place] if place.suffix else sorted([*place.rglob("*.py"), *place.rglob("*.j2")]):
            with path.open("rb") as file:
                for _, found, _, context in extract("jinja2" if path.suffix == ".j2" else "python", file, KEYWORDS):
                    # A call with further arguments gives the literal and a None for each of these.
                    yield context, found if isinstance(found, str) else found[0]


def in_data() -> Iterator[Message]:
    """What is translated on a page but said elsewhere: by scorers, measures, stages and the data's statistics."""
    yield from ((None, one.description) for one in SHIPPED.values())
    yield from ((None, one.text) for one in MEASURES.values())
    yield from ((None, one.level.meaning) for one in MEASURES.values() if one.level is not None)
    yield from ((None, note) for model in (BUILD_GPT_NEOX, SMOLLM2) for note in notes(run_of(model)))
    yield from (("stage", name) for name in STAGES)
    reasons = [value for part in (checks, encode, tokenise) for name, value in vars(part).items() if name.isupper()]
    yield from (("statistic", name) for name in (*STATISTICS, *reasons) if isinstance(name, str))
    yield from (("split", name) for name in ("train", "validation", "test"))
    yield from (("setting", role) for role in ("chosen", "runner-up"))
    yield from (("state", state) for state in ("finished", "failed", "stopped early"))


@pytest.fixture(scope="module")
def catalogue() -> Catalog:
    with (CATALOGUES / "ja.po").open("rb") as file:
        return read_po(file, locale="ja", abort_invalid=True)


def test_every_message_is_in_the_catalogue_and_nothing_else(catalogue: Catalog) -> None:
    kept = {(one.context, str(one.id)) for one in catalogue if one.id}
    said = {*in_code(), *in_data()}
    assert len(said) > 500, "the extraction sees the modules and the templates"
    assert said - kept == set(), "not translated"
    assert kept - said == set(), "stale"
    assert not catalogue.obsolete


def test_translations_are_whole_and_keep_their_places(catalogue: Catalog) -> None:
    for one in catalogue:
        if not one.id:
            continue
        message, words = str(one.id), str(one.string)
        assert words.strip(), message
        assert not one.fuzzy, message
        places = [sorted(re.findall(r"\{(\w*)\}", text)) for text in (message, words)]
        assert places[0] == places[1], message
        tags = [sorted(re.findall(r"</?\w+>", text)) for text in (message, words)]
        assert tags[0] == tags[1], message
        words.format(**dict.fromkeys(places[1], ""))
        assert not ENGLISH.search(re.sub(r"[\w.]+[._][\w.]+|\w+/\w+\.py", "", words)), words


class Shown(HTMLParser):
    """What a reader of a page sees or hears, but for code, text of models and what programs said."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.language: str | None = None
        self.words: list[str] = []
        self._open: list[tuple[str, bool]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag == "html":
            self.language = named.get("lang")
        hidden = tag in ("style", "code", "pre") or bool({"text", "words"} & set((named.get("class") or "").split()))
        if tag not in VOID:
            self._open.append((tag, hidden))
        self.words += [value for name in ("aria-label", "title") if (value := named.get(name))]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if not any(hidden for _, hidden in self._open):
            self.words.append(data)

    def english(self) -> list[str]:
        return [" ".join(words.split()) for words in self.words if ENGLISH.search(words)]


def japanese(inputs: ReportInputs) -> ReportInputs:
    return replace(inputs, language="ja", verdict=verdict_of(inputs.evaluation, translator("ja")))


@pytest.mark.filterwarnings("error")
def test_a_report_is_japanese_throughout(build: Callable[..., ReportInputs]) -> None:
    page = Shown(render(japanese(build(notes=notes(run_of(BUILD_GPT_NEOX))))))
    assert page.language == "ja"
    assert page.english() == []
    text = "".join(page.words)
    for words in (
        "主要指標",
        "vader：下位10%の平均（CVaR）",
        "1分35秒",
        "95%信頼区間",
        "以前の実行結果を再利用",
        "最適化ステップ",
    ):
        assert words in text


def test_a_report_of_nothing_but_the_evaluation_is_japanese(inputs: ReportInputs) -> None:
    page = Shown(render(japanese(ReportInputs("r", {}, inputs.evaluation, [], []))))
    assert page.english() == []
    assert "学習の記録はありません。" in "".join(page.words)


def test_a_card_is_japanese_throughout(inputs: ReportInputs) -> None:
    told = japanese(inputs)
    made = {"model": "m", "recipe": "r", "reference": "0f", "data": "da", "config": "c0", "code": "c1"}
    tokens = [{"text": " bad", "count": 4, "risk": 2.0, "share": 0.25, "mean": 0.5, "mean_elsewhere": None}]
    card = CardInputs(
        "reviews",
        inputs.config,
        {**made, "stages": {"align": "a1"}, "libraries": {"torch": "2.13.0"}},
        language="ja",
        evaluation=inputs.evaluation,
        verdict=told.verdict,
        unseen_share=0.2,
        explanation={"num_worst": 3, "tokens": tokens},
        data_stats=inputs.data_stats,
        token_stats=inputs.token_stats,
        notes=notes(run_of(SMOLLM2)),
    )
    for one in (card, replace(card, evaluation=None, verdict=None, explanation=None)):
        page = Shown(card_html(one))
        assert page.language == "ja"
        assert page.english() == []


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["usual", "nothing qualifies", "all failed", "gaps", "chosen on test"])
def test_the_page_of_a_sweep_is_japanese_throughout(name: str) -> None:
    tr = translator("ja")
    sweep = EDGES[name]() | {"language": "ja"}
    for one in (*sweep["settings"], *sweep["test"]):
        one["limits_broken"] = [tr("its text shows signs of decay (allow_decayed)") for _ in one["limits_broken"]]
    for one in sweep["test"]:
        one["verdict"] = [tr("The policy is not clearly different from the reference.") for _ in one["verdict"]]
    for one in sweep["trials"]:
        one["reason"] = one["reason"] and "OutOfMemoryError"
    page = Shown(render_sweep(sweep))
    assert page.language == "ja"
    # The names of the settings are made of names of options: "method ra_dpo2, beta 0.01, measure evar".
    assert [one for one in page.english() if "method ra_dpo2" not in one] == []


def test_a_name_that_begins_a_japanese_sentence_keeps_its_letters() -> None:
    first = decide(make_sweep(), translator("ja")).points[0]
    assert first.startswith("vaderの平均スコア：0.287（95%信頼区間 0.237〜0.337）")


def test_the_verdict_is_made_again_from_the_evaluation_alone(inputs: ReportInputs) -> None:
    assert verdict_of(inputs.evaluation) == inputs.evaluation["verdict"]
    again = verdict_of(inputs.evaluation, translator("ja"))
    sentences = ("headline", "reasons", "warnings")
    assert {name: one for name, one in again.items() if name not in sentences} == {
        name: one for name, one in inputs.evaluation["verdict"].items() if name not in sentences
    }
    for ours, theirs in zip(again["reasons"], inputs.evaluation["verdict"]["reasons"], strict=True):
        assert sorted(re.findall(r"[+−]\d[\d.]*", ours)) == sorted(re.findall(r"[+−]\d[\d.]*", theirs))


def test_a_message_without_a_translation_stays_english() -> None:
    tr = translator("ja")
    assert tr("Nobody said this.") == "Nobody said this."
    assert tr(sense("stage", "own_stage")) == english(sense("stage", "own_stage")) == "own_stage"
    assert tr(sense("answer", "chosen")) != tr(sense("setting", "chosen"))
    assert translator("en") is english


def test_japanese_words_of_a_chart_stay_text_and_have_room() -> None:
    """The browser draws them in a font of the reader's; matplotlib has none: it warns and leaves too little room."""
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = Figure(figsize=(4, 2), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], label="参照モデル <A&B>")
        axes.set_xlabel("最適化ステップ")
        legend = axes.legend()
        svg = to_svg(figure, "損失")
    assert ">参照モデル &lt;A&amp;B&gt;</text>" in svg
    assert ">最適化ステップ</text>" in svg
    assert 'aria-label="損失"' in svg
    assert "—" not in svg
    size = legend.get_texts()[0].get_fontsize() * figure.dpi / 72
    assert legend.get_window_extent().width > 5 * size, "five characters of one em each"
