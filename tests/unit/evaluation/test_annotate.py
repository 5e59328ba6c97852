from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pipeline.evaluation.annotate import FIXED_MEASURES, BothModels, reported_measures
from pipeline.records import PairTokens, SampleRow
from pipeline.risk.measures import Measure

TRAINED = Measure("cvar", 0.3)
ROWS = [
    SampleRow("p0", 0, "prompt", "DEF", [1, 2], [3, 4, 5], False, {"length": 3.0}),
    SampleRow("p1", 1, "prompt", "H", [6], [7, 39], True, {"length": 1.0}),
    SampleRow("p2", 0, "prompt", "", [8, 9, 10, 11], [39], True, {"length": 0.0}),
]
PAIRS = [
    PairTokens("a", "g", [1, 2], [3, 4, 39], [5, 39], "x"),
    PairTokens("b", "h", [6], [7, 39], [8, 9, 10, 39], "y"),
]


class Letters:
    eos_token_id = 39
    pad_token_id = None

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return "".join(
            "$" if i == 39 else "é" if i == 5 else chr(65 + i) for i in ids if not (skip_special_tokens and i == 39)
        )


def both(reference: nn.Module, policy: nn.Module, block_bytes: int = 2**16) -> BothModels:
    return BothModels(reference, policy, Letters(), reported_measures(TRAINED), block_bytes, torch.device("cpu"))


@torch.no_grad()
def log_probs(model: nn.Module, prompt: list[int], response: list[int]) -> Tensor:
    """``[T, V]`` in float64, from the model's own logits."""
    return model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)


def sorted_cvar(log_ref: Tensor, log_pi: Tensor, level: float) -> float:
    """Mean of the upper ``level`` mass at one position, by sorting."""
    left, total = level, 0.0
    for ratio, mass in sorted(zip((log_ref - log_pi).tolist(), log_ref.exp().tolist(), strict=True), reverse=True):
        taken = min(left, mass)
        total += taken * ratio
        left -= taken
    return total / level


class TestAgainstPlainComputation:
    def test_samples(self, make_model: Callable[..., nn.Module]) -> None:
        reference, policy = make_model(), make_model(seed=1)
        for row, scored in zip(ROWS, both(reference, policy).samples("policy", ROWS, TRAINED, "set"), strict=True):
            log_ref = log_probs(reference, row.prompt_ids, row.response_ids)
            log_pi = log_probs(policy, row.prompt_ids, row.response_ids)
            labels = torch.tensor(row.response_ids).unsqueeze(-1)
            ratio = (log_pi - log_ref).gather(-1, labels).squeeze(-1)
            kl = (log_ref.exp() * (log_ref - log_pi)).sum(-1)
            risk = [sorted_cvar(a, b, 0.3) for a, b in zip(log_ref, log_pi, strict=True)]
            assert scored.log_ratio == pytest.approx(ratio.tolist(), rel=1e-3, abs=1e-3)
            assert scored.kl == pytest.approx(kl.tolist(), rel=1e-3, abs=1e-3)
            assert scored.risk == pytest.approx(risk, rel=1e-3, abs=1e-3)
            assert scored.max_risk == max(scored.risk)
            assert scored.risk[scored.max_risk_position] == scored.max_risk
            assert (scored.model, scored.prompt_set) == ("policy", "set")
            assert (scored.prompt_id, scored.seed, scored.text) == (row.prompt_id, row.seed, row.text)
            assert (scored.finished, scored.scores) == (row.finished, row.scores)
        assert scored.tokens == ["$"]

    def test_pairs(self, make_model: Callable[..., nn.Module]) -> None:
        reference, policy = make_model(), make_model(seed=1)
        for pair, scored in zip(PAIRS, both(reference, policy).pairs(PAIRS), strict=True):
            assert (scored.row_id, scored.group) == (pair.row_id, pair.group)
            for side in ("chosen", "rejected"):
                ids = getattr(pair, f"{side}_ids")
                log_ref = log_probs(reference, pair.prompt_ids, ids)
                log_pi = log_probs(policy, pair.prompt_ids, ids)
                labels = torch.tensor(ids).unsqueeze(-1)
                assert getattr(scored, f"{side}_logp") == pytest.approx(
                    log_pi.gather(-1, labels).sum().item(), rel=1e-4
                )
                assert getattr(scored, f"{side}_ref_logp") == pytest.approx(
                    log_ref.gather(-1, labels).sum().item(), rel=1e-4
                )
                risk = getattr(scored, f"{side}_risk")
                assert list(risk) == ["kl", "cvar@0.5", "cvar@0.1", "cvar@0.3"]
                for label, level in (("kl", 1.0), ("cvar@0.5", 0.5), ("cvar@0.1", 0.1), ("cvar@0.3", 0.3)):
                    expected = sum(sorted_cvar(a, b, level) for a, b in zip(log_ref, log_pi, strict=True))
                    assert risk[label] == pytest.approx(expected, rel=1e-3, abs=1e-3)

    def test_bytes_count_utf8_without_the_end(self, make_model: Callable[..., nn.Module]) -> None:
        [a, b] = both(make_model(), make_model()).pairs(PAIRS)
        assert (a.chosen_bytes, a.rejected_bytes) == (2, 2)
        assert (b.chosen_bytes, b.rejected_bytes) == (1, 3)


def test_one_model_on_both_sides_gives_zeros(make_model: Callable[..., nn.Module]) -> None:
    model = make_model()
    for row in both(model, model).samples("reference", ROWS, TRAINED, ""):
        assert row.model == "reference"
        assert row.log_ratio == [0.0] * len(row.tokens)
        assert row.kl == pytest.approx([0.0] * len(row.tokens), abs=1e-6)
        assert row.risk == pytest.approx([0.0] * len(row.tokens), abs=1e-6)
    for pair in both(model, model).pairs(PAIRS):
        assert (pair.chosen_logp, pair.rejected_logp) == (pair.chosen_ref_logp, pair.rejected_ref_logp)
        assert [*pair.chosen_risk.values(), *pair.rejected_risk.values()] == pytest.approx([0.0] * 8, abs=1e-6)


def test_batch_and_block_change_rounding_only(make_model: Callable[..., nn.Module]) -> None:
    reference, policy = make_model(), make_model(seed=1)
    together = both(reference, policy).samples("policy", ROWS, TRAINED, "")
    alone = [both(reference, policy, block_bytes=1).samples("policy", [row], TRAINED, "")[0] for row in ROWS]
    for one, other in zip(together, alone, strict=True):
        assert one.risk == pytest.approx(other.risk, rel=1e-4, abs=1e-4)
        assert one.log_ratio == pytest.approx(other.log_ratio, rel=1e-4, abs=1e-4)


def test_a_trained_measure_is_reported_once() -> None:
    assert reported_measures(Measure("cvar", 0.5)) == FIXED_MEASURES
    assert reported_measures(TRAINED) == (*FIXED_MEASURES, TRAINED)
