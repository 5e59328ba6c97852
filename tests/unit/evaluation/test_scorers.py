"""Scorers: shipped ones on real text, the user's own by name, and every way to get them wrong."""

import math
from pathlib import Path

import pytest

from pipeline.config import EvaluationConfig
from pipeline.errors import EvaluationError
from pipeline.evaluation.scorers import SHIPPED, check_scorers, load_scorers

OWN = '''
def exclaim(prompts, texts):
    """Exclamation marks."""
    return [text.count("!") for text in texts]
exclaim.larger_is_better = False
exclaim.score_range = (0, 500)

def too_few(prompts, texts):
    return [0.0]

def not_finite(prompts, texts):
    return [float("nan") for _ in texts]

def words(prompts, texts):
    return ["good" for _ in texts]

def fails(prompts, texts):
    raise KeyError("no such word")

def backwards(prompts, texts):
    return [0.0 for _ in texts]
backwards.score_range = (1.0, -1.0)

def endless(prompts, texts):
    return [0.0 for _ in texts]
endless.score_range = (0.0, float("inf"))

def wordy(prompts, texts):
    return [0.0 for _ in texts]
wordy.score_range = "from 0 to 1"
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's in the working directory."""
    (tmp_path / "own_scorers_of_a_test.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/somewhere/else"])
    return "own_scorers_of_a_test"


def score(name: str, *texts: str) -> list[float]:
    return load_scorers([name])[name].score(["a prompt"] * len(texts), list(texts))


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_every_shipped_scorer_takes_empty_and_odd_texts(name: str) -> None:
    values = score(name, "", " \n", "\x00\x1b[31m", "schön 🎬", "word " * 2000)
    assert len(values) == 5
    assert all(math.isfinite(value) for value in values)
    assert score(name) == []


def test_vader_and_profanity_order_texts_as_expected() -> None:
    good, bad = score("vader", "A wonderful, moving film.", "An awful, horrible mess.")
    assert good > 0.3
    assert bad < -0.3
    rude, polite = score("profanity", "you stupid fucking idiot", "a quiet film about a lighthouse")
    assert rude > 0.9 > 0.2 > polite


def test_repetition_by_hand() -> None:
    """abcdabcd: 5 four-grams, 4 distinct; eight equal words: 5 four-grams, 1 distinct."""
    assert score("repetition", "a b c d A B c d", "x " * 8, "a b c", "one two three four") == [0.2, 0.8, 0.0, 0.0]


def test_length_counts_characters() -> None:
    assert score("length", "", "schön") == [0.0, 5.0]


def test_own_scorer_from_the_working_directory(own: str) -> None:
    name = f"{own}:exclaim"
    scorer = load_scorers([name])[name]
    assert scorer.score(["p", "p"], ["Wow!!", "hm"]) == [2.0, 0.0]
    assert scorer.larger_is_better is False
    assert scorer.description == "Exclamation marks."
    assert scorer.range == (0.0, 500.0)
    assert load_scorers([f"{own}:fails"])[f"{own}:fails"].range is None


@pytest.mark.parametrize("function", ["backwards", "endless", "wordy"])
def test_a_range_that_is_none_is_refused(own: str, function: str) -> None:
    with pytest.raises(EvaluationError, match=r"score_range is .*two finite numbers") as caught:
        load_scorers([f"{own}:{function}"])
    assert function in str(caught.value)


def test_shipped_scorers_stay_in_their_range() -> None:
    """The worst and the best of texts; a length has no largest value."""
    texts = ["", "awful horrible hate kill " * 300, "love wonderful best " * 300, "fucking shit " * 300, "x " * 5000]
    for name, scorer in SHIPPED.items():
        if scorer.range is None:
            assert name == "length"
        else:
            low, high = scorer.range
            assert all(low <= value <= high for value in score(name, *texts))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("too_few", "returned 1 values for 2 texts"),
        ("not_finite", "not a finite number"),
        ("words", "returned 'good' for text 0"),
        ("fails", "KeyError"),
    ],
)
def test_a_faulty_own_scorer_is_named(own: str, function: str, message: str) -> None:
    name = f"{own}:{function}"
    with pytest.raises(EvaluationError, match=message) as caught:
        score(name, "one", "two")
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vadr", "did you mean 'vader'"),
        ("zzz", "Shipped: vader, profanity"),
        ("no_such_module_here:score", "cannot be imported"),
        ("math:sqart", "did you mean 'math:sqrt'"),
    ],
)
def test_a_wrong_name_is_refused(name: str, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        load_scorers([name])


@pytest.mark.parametrize("name", ["length", "profanity"])
def test_the_primary_scorer_must_be_one_of_which_larger_is_better(name: str) -> None:
    config = EvaluationConfig(scorers=("vader", name), primary_scorer=name)
    with pytest.raises(EvaluationError, match="for instance 'vader'"):
        check_scorers(config)
    assert list(check_scorers(EvaluationConfig())) == list(EvaluationConfig().scorers)
