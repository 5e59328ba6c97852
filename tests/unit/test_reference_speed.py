from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import RunConfig
from pipeline.errors import ModelError
from pipeline.plan import ModelShape, built_shape
from pipeline.reference_speed import mean_lengths, measure_speed, reference_actors, timed_batch
from tests.counts import counts_by_hand

COUNTS = counts_by_hand(pairs=(30, 10, 7), prompt_tokens=(170, 30, 2_000), response_tokens=(700, 100, 70))
BUILD = {"vocab_size": 300, "hidden_size": 16, "num_layers": 1, "num_heads": 2, "context_tokens": 64}


def run_with(model: str = "build:gpt-neox", **sections: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "data": {"path": "pairs.jsonl", "max_prompt_tokens": 20, "max_response_tokens": 40},
            "model": {"path": model, "build": BUILD},
            "sft": {"steps": 1},
        }
        | sections
    )


class Machine:
    """Takes some seconds for a call and some for every pair, by a clock that it moves itself."""

    def __init__(self, call_s: float, pair_s: float, warm_up_s: float = 0.0) -> None:
        self.now, self.sizes = 100.0, list[int]()
        self._call_s, self._pair_s, self._warm_up_s = call_s, pair_s, warm_up_s

    def compute(self, pairs: int) -> None:
        self.now += self._call_s + self._pair_s * pairs + (0 if self.sizes else self._warm_up_s)
        self.sizes.append(pairs)

    def measure(self, largest: int, budget_s: float) -> tuple[int, float]:
        return timed_batch(self.compute, largest, budget_s, lambda: self.now)


def test_the_largest_batch_is_timed_when_there_is_time() -> None:
    machine = Machine(call_s=0.01, pair_s=0.001, warm_up_s=1.0)
    pairs, seconds = machine.measure(20, 10.0)
    assert (pairs, round(seconds, 6)) == (20, 0.03)
    assert machine.sizes == [1, 1, 2, 4, 8, 16, 20, 20, 20]


@pytest.mark.parametrize("pair_s", [0.01, 0.3, 1.0, 3.0, 100.0])
@pytest.mark.parametrize("warm_up_s", [0.0, 2.0])
def test_the_budget_is_kept_but_for_the_first_pair(pair_s: float, warm_up_s: float) -> None:
    machine = Machine(call_s=0.0, pair_s=pair_s, warm_up_s=warm_up_s)
    pairs, seconds = machine.measure(64, 5.0)
    assert seconds >= pair_s * pairs - 1e-6
    assert machine.now - 100.0 <= max(5.0, pair_s + warm_up_s) + 1e-6
    assert len(machine.sizes) >= 1


def test_a_slow_first_pair_is_all_that_is_measured() -> None:
    machine = Machine(call_s=0.0, pair_s=7.0)
    assert machine.measure(64, 5.0) == (1, 7.0)
    assert machine.sizes == [1]


def test_lengths_are_those_of_the_pairs_that_the_pass_computes() -> None:
    """40 pairs with 200 prompt and 800 response tokens: 5 and 10."""
    assert mean_lengths(COUNTS) == (5, 10)


@pytest.mark.parametrize(
    "reference", [{}, {"hidden_rows": "8bit"}, {"tier": "topk", "top_k": 8}, {"tier": "topk", "top_mass": 0.5}]
)
def test_a_model_that_is_not_built_yet_is_measured_by_its_size(reference: dict[str, Any]) -> None:
    run = run_with(reference=reference | {"batch_tokens": 240})
    speed = measure_speed(run, COUNTS, built_shape(run.model.build), None, budget_s=60.0)
    assert speed.tokens_per_s is not None
    assert speed.tokens_per_s > 0
    # Ten pairs of 25 tokens (23 positions, for the last of a response is only predicted) fill a batch of 240.
    assert speed.basis == "measured now on 250 tokens with 1 thread(s)"


def test_the_threads_of_an_actor_are_used_and_given_back() -> None:
    import torch

    before = torch.get_num_threads()
    run = run_with(reference={"threads": before + 1})
    speed = measure_speed(run, COUNTS, built_shape(run.model.build), None, budget_s=0.1)
    assert speed.basis.endswith(f"tokens with {before + 1} thread(s)")
    assert torch.get_num_threads() == before


def test_a_model_on_disk_is_measured_itself(built_model: Path, tmp_path: Path) -> None:
    run = run_with(str(built_model), reference={"batch_tokens": 100})
    shape = ModelShape(parameters=10_000, hidden_size=16, vocab_size=262, exact=True, basis="")
    speed = measure_speed(run, COUNTS, shape, built_model, budget_s=60.0)
    assert speed.basis == "measured now on 100 tokens with 1 thread(s)"
    with pytest.raises(ModelError, match="cannot load a causal language model"):
        measure_speed(run, COUNTS, shape, tmp_path, budget_s=1.0)


def test_what_cannot_be_measured_here_says_why(monkeypatch: pytest.MonkeyPatch, built_model: Path) -> None:
    import torch

    shape = built_shape(run_with().model.build)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    on_gpus = run_with(cluster={"gpus_per_actor": 1})
    assert measure_speed(on_gpus, COUNTS, shape, None).basis == "not measured: the actors run on GPUs"
    absent = measure_speed(run_with("wheel-or-hub/model"), COUNTS, shape, None)
    assert absent == type(absent)(None, "not measured: the model is not there yet")
    huge = ModelShape(parameters=7 * 10**9, hidden_size=4096, vocab_size=128_000, exact=True, basis="")
    large = measure_speed(run_with(str(built_model)), COUNTS, huge, built_model)
    assert large.basis == "not measured: the model's 28 GB of weights are too many to load for a description"


def test_the_actors_are_those_that_the_machine_or_the_limit_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 6)

    def actors(max_actors: int, threads: int = 1, address: str | None = None) -> int:
        run = run_with(reference={"threads": threads}, cluster={"max_actors": max_actors, "address": address})
        return reference_actors(run)[0]

    assert [actors(2), actors(9), actors(9, threads=4), actors(9, threads=8)] == [2, 6, 1, 1]
    assert actors(64, address="head:6379") == 64
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert actors(64) == 64
    assert "cluster.max_actors" in reference_actors(run_with())[1]
