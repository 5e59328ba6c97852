"""The written policy: what each rule asks for, which rule wins, and that nothing is done without a reason."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.realign.accuracy import Accuracy
from pipeline.realign.policy import Batch, Facts, decide, wants_measure
from pipeline.realign_config import RealignConfig

QUIET = Facts(production=3, new=0, evaluated_days=2.0, aligned_days=9.0)
GOOD, BAD, WORSE = Accuracy(50, 64), Accuracy(18, 64), Accuracy(30, 64)
JUDGED = Accuracy(150, 200)


def facts(*, batch: int = 0, measured: Accuracy | None = None, **changed: Any) -> Facts:
    """Quiet ones with something changed, and with one batch if it has pairs."""
    batches = (Batch("b" * 16, batch, measured),) if batch else ()
    return Facts(**{**QUIET.__dict__, "batches": batches, **changed})


def policy(**options: Any) -> RealignConfig:
    return RealignConfig(**options)


def test_nothing_new_is_nothing_to_do() -> None:
    decision = decide(QUIET, policy())
    assert decision.nothing
    assert decision.notes == ()


@pytest.mark.parametrize(("new", "asked"), [(99, False), (100, True), (5000, True)])
def test_so_many_new_pairs_are_worth_it(new: int, asked: bool) -> None:
    decision = decide(facts(new=new, batch=0), policy())
    assert bool(decision.realign) == asked
    assert bool(decision.notes) != asked, "what waits is said"


def test_pairs_that_contradict_production_are_held_and_not_counted() -> None:
    found = facts(new=120, batch=64, measured=BAD, judged=JUDGED)
    decision = decide(found, policy())
    assert list(decision.hold) == ["b" * 16]
    assert "contradict what version 3 has learnt: its accuracy on them is 0.28" in decision.hold["b" * 16]
    assert decision.realign == (), "neither 56 other pairs nor the drop of a batch that may be faulty"
    assert decide(facts(new=164, batch=64, measured=BAD, judged=JUDGED), policy()).realign, "100 others are"
    assert not decide(found, policy(suspect_below=None)).hold
    assert "preferences have changed" in decide(found, policy(suspect_below=None)).realign[1]


def test_each_batch_is_judged_by_itself() -> None:
    """Good pairs that came earlier do not hide a bad batch, and are counted without it."""
    two = (Batch("1" * 16, 60, Accuracy(55, 60)), Batch("2" * 16, 40, Accuracy(8, 40)))
    decision = decide(facts(new=160, batches=two, judged=JUDGED), policy())
    assert list(decision.hold) == ["2" * 16]
    assert "120 new pairs" in decision.realign[0]
    assert "0.92 of 60 pairs" in decision.notes[0]
    together = facts(new=100, batch=100, measured=Accuracy(63, 100), judged=JUDGED)
    assert not decide(together, policy()).hold, "as one batch it would pass"


def test_small_batches_that_contradict_production_together_are_held() -> None:
    """A schedule that calls daily finds a swapped source four pairs at a time: none of them shows anything alone."""
    few = tuple(Batch(str(number) * 16, 4, Accuracy(0, 4)) for number in range(5))
    assert not decide(facts(new=4, batches=few[:1], judged=JUDGED), policy()).hold
    decision = decide(facts(new=20, batches=few, judged=JUDGED), policy())
    assert set(decision.hold) == {batch.digest for batch in few}
    assert "5 batches together: 20 new pairs contradict what version 3 has learnt" in decision.hold["0" * 16]
    assert decision.realign == (), "least of all since preferences have changed"
    good = Batch("9" * 16, 40, Accuracy(38, 40))
    assert not decide(facts(new=60, batches=(*few, good), judged=JUDGED), policy()).hold


def test_a_weak_batch_is_not_held_when_chance_may_have_made_it() -> None:
    few = Accuracy(3, 8)
    assert few.value < 0.5 < few.upper(0.95)
    assert not decide(facts(new=8, batch=8, measured=few, judged=JUDGED), policy()).hold


def test_a_demonstrable_drop_asks_for_a_realignment_before_there_is_enough() -> None:
    dropped = facts(new=64, batch=64, measured=WORSE, judged=JUDGED)
    assert decide(dropped, policy(max_accuracy_drop=0.02)).realign
    assert not decide(dropped, policy(max_accuracy_drop=0.1)).realign, "0.28 are not shown to be more than 0.1"
    assert not decide(dropped, policy(max_accuracy_drop=None)).realign
    assert not decide(facts(new=64, batch=64, measured=GOOD, judged=JUDGED), policy()).realign
    assert not decide(facts(new=64, batch=64, measured=WORSE), policy(max_accuracy_drop=0.0)).realign, "from what?"


def test_ages() -> None:
    assert decide(facts(evaluated_days=30.5), policy()).evaluate
    assert not decide(facts(evaluated_days=30.0), policy()).evaluate
    assert decide(facts(evaluated_days=None), policy()).evaluate
    assert not decide(facts(evaluated_days=900.0), policy(max_age_days=None)).evaluate
    assert decide(facts(aligned_days=90.0), policy(realign_after_days=90.0)).realign
    assert not decide(facts(aligned_days=900.0), policy()).realign


def test_alerts_do_what_the_policy_says() -> None:
    alerted = facts(alerts=("risk rose",))
    assert "risk rose" in decide(alerted, policy()).evaluate[0]
    assert "risk rose" in decide(alerted, policy(on_alert="realign")).realign[0]


def test_a_realignment_judges_production_too() -> None:
    decision = decide(facts(new=100, alerts=("risk rose",), evaluated_days=99.0), policy())
    assert decision.realign
    assert not decision.evaluate
    assert sum("the gate judges production, too" in note for note in decision.notes) == 2


def test_the_reference_in_production_is_measured_and_evaluated_against_nothing() -> None:
    found = facts(production=0, new=64, batch=64, alerts=("risk rose",), evaluated_days=None)
    assert not wants_measure(found, policy())
    decision = decide(found, policy())
    assert decision.nothing
    assert any("without a log-ratio" in note for note in decision.notes)
    assert any("nothing to evaluate it against" in note for note in decision.notes)


def test_what_is_measured() -> None:
    assert wants_measure(facts(new=30, batch=30), policy())
    assert not wants_measure(facts(new=29, batch=29), policy())
    assert wants_measure(facts(new=105, batch=5), policy()), "before it is trained on, however little it is"
    assert wants_measure(facts(new=5, batch=5, aligned_days=90.0), policy(realign_after_days=90.0)), (
        "whatever the reason"
    )
    assert wants_measure(facts(new=5, batch=5, alerts=("risk rose",)), policy(on_alert="realign"))
    assert not wants_measure(facts(new=5, batch=5, alerts=("risk rose",)), policy())
    assert not wants_measure(facts(new=105, batch=0), policy())
    assert not wants_measure(facts(new=105, batch=64, measured=GOOD), policy())
    assert not wants_measure(facts(new=64, batch=64), policy(suspect_below=None, max_accuracy_drop=None))


@given(
    st.builds(
        Facts,
        production=st.integers(0, 3),
        new=st.integers(0, 300),
        alerts=st.lists(st.just("x"), max_size=2).map(tuple),
        evaluated_days=st.none() | st.floats(0, 100),
        aligned_days=st.none() | st.floats(0, 100),
    )
)
def test_never_both_and_never_without_a_reason(found: Facts) -> None:
    decision = decide(found, policy(realign_after_days=50.0))
    assert not (decision.evaluate and decision.realign)
    assert found.production or not decision.evaluate
    assert all(decision.evaluate + decision.realign + decision.notes)
    fewer = decide(Facts(**{**found.__dict__, "new": 0}), policy(realign_after_days=50.0))
    assert bool(fewer.realign) <= bool(decision.realign), "more pairs never ask for less"


def test_what_contradicts_itself_is_refused() -> None:
    with pytest.raises(ValidationError, match="pairs would be trained on before they are measured"):
        policy(min_batch_pairs=50, min_new_pairs=40)
