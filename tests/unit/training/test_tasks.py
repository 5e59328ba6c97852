from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.config import LossConfig, OptimConfig, RiskConfig, SFTConfig
from pipeline.models.load import final_hidden, output_head
from pipeline.models.sequences import pad_sequences
from pipeline.records import PairTokens, TextTokens
from pipeline.risk.head import HiddenReference, Reference, ScalarReference
from pipeline.training.loop import TAIL, LoopPlan, evaluate, worst_mean
from pipeline.training.preference import PreferenceTask
from pipeline.training.sft import SFTTask, total_steps
from pipeline.training.task import Task

BLOCK = 2**16
PAIRS = [
    PairTokens("a", "g", [1, 2], [3, 4, 5], [6], "x"),
    PairTokens("b", "g", [7], [8, 9], [10, 11, 12, 13], "y"),
    PairTokens("c", "g", [14, 15, 16], [17], [18, 19], "z"),
]


class LiveReference:
    """The reference's numbers from a model at hand."""

    def __init__(self, model: nn.Module, tier: str = "hidden") -> None:
        self._model = model
        self.head = output_head(model)
        self.has_law = tier == "hidden"

    @torch.no_grad()
    def _states(self, row_id: str) -> list[tuple[Tensor, Tensor]]:
        pair = next(pair for pair in PAIRS if pair.row_id == row_id)
        found = []
        for ids in (pair.chosen_ids, pair.rejected_ids):
            batch = pad_sequences([pair.prompt_ids], [ids], 0)
            hidden = final_hidden(self._model, batch["input_ids"], batch["attention_mask"])[batch["mask"]]
            found.append((hidden, batch["labels"][batch["mask"]]))
        return found

    def hidden(self, row_id: str) -> tuple[Tensor, Tensor]:
        (chosen, _), (rejected, _) = self._states(row_id)
        return chosen, rejected

    def logps(self, row_id: str) -> tuple[float, float]:
        weight = output_head(self._model).weight
        chosen, rejected = (
            nn.functional.linear(hidden, weight).log_softmax(-1).gather(-1, labels.unsqueeze(-1)).sum().item()
            for hidden, labels in self._states(row_id)
        )
        return chosen, rejected

    def collate(self, row_ids: Sequence[str | None]) -> dict[str, Tensor]:
        logps = [(0.0, 0.0) if one is None else self.logps(one) for one in row_ids]
        batch = {"ref_logps": torch.tensor([chosen for chosen, _ in logps] + [rejected for _, rejected in logps])}
        if self.has_law:
            hidden = [self.hidden(one) for one in row_ids if one is not None]
            parts = [chosen for chosen, _ in hidden] + [rejected for _, rejected in hidden]
            batch["ref_hidden"] = torch.cat([*parts, torch.empty(0, self.head.weight.shape[1])])
        return batch

    def record(self, batch: Mapping[str, Tensor]) -> Reference:
        if self.has_law:
            return HiddenReference(batch["ref_hidden"], self.head)
        return ScalarReference(batch["ref_logps"])


def objective(task: Task, model: nn.Module, rows: list[int | None]) -> tuple[Tensor, dict[str, float]]:
    batch = task.collate(rows)
    hidden = final_hidden(model, batch["input_ids"], batch["attention_mask"])
    loss, columns = task.objective(hidden, output_head(model), batch)
    return loss, dict(zip(task.metric_names, columns.sum(dim=0).tolist(), strict=True))


def preference(model: nn.Module, method: str = "ra_dpo2", tier: str = "hidden") -> PreferenceTask:
    loss, risk = LossConfig(method=method), RiskConfig(measure="cvar", level=0.3)
    return PreferenceTask(PAIRS, LiveReference(model, tier), loss, risk, 0, BLOCK)


class TestPreferenceCollate:
    def test_chosen_first_then_rejected(self, make_model: Callable[..., nn.Module]) -> None:
        batch = preference(make_model()).collate([2, 0])
        assert batch["labels"][batch["mask"]].tolist() == [17, 3, 4, 5, 18, 19, 6]
        assert batch["weight"].tolist() == [1.0, 1.0]
        assert batch["ref_hidden"].shape == (7, 16)
        assert batch["ref_logps"].shape == (4,)

    def test_the_reference_stands_beside_its_own_rows(self, make_model: Callable[..., nn.Module]) -> None:
        model = make_model()
        reference = LiveReference(model)
        batch = preference(model).collate([1, None, 2])
        expected = [
            reference.hidden("b")[0],
            reference.hidden("c")[0],
            reference.hidden("b")[1],
            reference.hidden("c")[1],
        ]
        torch.testing.assert_close(batch["ref_hidden"], torch.cat(expected))
        (b_chosen, b_rejected), (c_chosen, c_rejected) = reference.logps("b"), reference.logps("c")
        sums = torch.tensor([b_chosen, 0.0, c_chosen, b_rejected, 0.0, c_rejected])
        torch.testing.assert_close(batch["ref_logps"], sums)
        assert batch["weight"].tolist() == [1.0, 0.0, 1.0]

    def test_padding_alone(self, make_model: Callable[..., nn.Module]) -> None:
        batch = preference(make_model()).collate([None, None])
        assert batch["weight"].tolist() == [0.0, 0.0]
        assert batch["ref_hidden"].shape == (0, 16)
        assert not batch["mask"].any()


class TestPreferenceObjective:
    @pytest.mark.parametrize("method", ["dpo", "tdpo1", "tdpo2", "ra_dpo1", "ra_dpo2"])
    def test_the_reference_itself_has_loss_ln_2(self, make_model: Callable[..., nn.Module], method: str) -> None:
        model = make_model()
        loss, metrics = objective(preference(model, method), model, [0, 1, 2])
        assert loss.item() == pytest.approx(3 * math.log(2), rel=1e-4)
        assert metrics["pairs"] == 3
        assert metrics["chosen_kl"] == pytest.approx(0, abs=1e-4)

    @pytest.mark.parametrize(("method", "tier"), [("dpo", "scalar"), ("dpo", "hidden"), ("ra_dpo1", "hidden")])
    def test_padding_changes_neither_loss_nor_metrics_nor_gradient(
        self, make_model: Callable[..., nn.Module], method: str, tier: str
    ) -> None:
        task, policy = preference(make_model(), method, tier), make_model(seed=1)
        found = []
        for rows in ([0, 1, 2], [0, None, 1, 2, None]):
            policy.zero_grad()
            loss, metrics = objective(task, policy, list(rows))
            loss.backward()
            found.append((loss.detach(), metrics, [p.grad.clone() for p in policy.parameters() if p.grad is not None]))
        torch.testing.assert_close(found[0][0], found[1][0])
        assert found[0][1] == pytest.approx(found[1][1], rel=1e-4, abs=1e-4)
        torch.testing.assert_close(found[0][2], found[1][2], rtol=1e-3, atol=1e-4)

    def test_padding_alone_has_no_loss_and_no_gradient(self, make_model: Callable[..., nn.Module]) -> None:
        task, policy = preference(make_model()), make_model(seed=1)
        loss, metrics = objective(task, policy, [None, None])
        loss.backward()
        assert loss.item() == 0
        assert set(metrics.values()) == {0.0}
        assert all(p.grad is None or not p.grad.any() for p in policy.parameters())

    def test_micro_batches_add_up(self, make_model: Callable[..., nn.Module]) -> None:
        task, policy = preference(make_model()), make_model(seed=1)
        whole, metrics = objective(task, policy, [0, 1, 2])
        parts = [objective(task, policy, rows) for rows in ([0], [1, 2])]
        torch.testing.assert_close(whole, parts[0][0] + parts[1][0], rtol=1e-4, atol=1e-4)
        added = {name: parts[0][1][name] + parts[1][1][name] for name in metrics}
        assert metrics == pytest.approx(added, rel=1e-3, abs=1e-4)

    def test_tiers_agree_for_dpo(self, make_model: Callable[..., nn.Module]) -> None:
        reference, policy = make_model(), make_model(seed=1)
        losses = [objective(preference(reference, "dpo", tier), policy, [0, 1, 2])[0] for tier in ("scalar", "hidden")]
        torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-4)


TEXTS = [TextTokens("a", [1, 2, 3], [4, 5]), TextTokens("b", [6], [7, 8, 9]), TextTokens("c", [10, 11], [12])]


class TestSFT:
    @pytest.mark.parametrize(("loss_on", "tokens"), [("response", 6), ("all", 9)])
    def test_loss_and_tokens(self, make_model: Callable[..., nn.Module], loss_on: str, tokens: int) -> None:
        model = make_model()
        task = SFTTask(TEXTS, SFTConfig(loss_on=loss_on, steps=1), 0, BLOCK)
        loss, metrics = objective(task, model, [0, None, 1, 2])
        expected = 0.0
        for row in TEXTS:
            ids = torch.tensor([[*row.prompt_ids, *row.response_ids]])
            logps = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:].unsqueeze(-1)).squeeze(-1)
            expected -= logps[len(row.prompt_ids) - 1 if loss_on == "response" else 0 :].sum().item()
        assert loss.item() == pytest.approx(expected, rel=1e-5)
        assert metrics["tokens"] == tokens == task.normaliser([0, 1, 2])

    @given(st.integers(1, 40), st.integers(1, 10), st.integers(1, 400))
    def test_the_budget_in_tokens_is_reached_with_the_last_step(self, rows: int, batch: int, budget: int) -> None:
        texts = [TextTokens(str(i), [1], [2] * (1 + i % 5)) for i in range(rows)]
        config = SFTConfig(tokens=budget, batch_size=batch)
        steps = total_steps(texts, config)
        longest = 6 * min(batch, rows)
        assert steps >= budget / longest
        assert steps <= budget  # every step sees two tokens or more
        if steps > 1:
            assert total_steps(texts, config.model_copy(update={"tokens": budget - 1})) <= steps

    def test_whole_epochs_are_counted_exactly(self) -> None:
        epoch = sum(len(row.prompt_ids) + len(row.response_ids) for row in TEXTS)
        assert total_steps(TEXTS, SFTConfig(tokens=epoch, batch_size=2)) == 2
        assert total_steps(TEXTS, SFTConfig(tokens=epoch + 1, batch_size=2)) == 3
        assert total_steps(TEXTS, SFTConfig(tokens=3 * epoch, batch_size=2)) == 6

    def test_a_budget_in_steps(self) -> None:
        assert total_steps(TEXTS, SFTConfig(steps=17)) == 17


class OneRank:
    """As much of an engine as a validation by one worker needs."""

    rank, world_size = 0, 1

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def evaluate(self, batches: Iterable[Mapping[str, Tensor]], task: Task) -> Tensor:
        found = []
        for batch in batches:
            hidden = final_hidden(self._model, batch["input_ids"], batch["attention_mask"])
            found.append(task.objective(hidden, output_head(self._model), batch)[1])
        return torch.cat(found)


class TestTails:
    @given(st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=60))
    def test_the_worst_are_the_largest_and_at_least_one(self, values: list[float]) -> None:
        count = max(1, round(TAIL * len(values)))
        assert worst_mean(torch.tensor(values)) == pytest.approx(sum(sorted(values)[-count:]) / count, abs=1e-5)

    @pytest.mark.parametrize(("tier", "micro_batch"), [("hidden", 2), ("hidden", 8), ("scalar", 2)])
    def test_a_validation_has_means_over_all_rows_and_over_the_worst(
        self, make_model: Callable[..., nn.Module], tier: str, micro_batch: int
    ) -> None:
        """Three rows and, in micro-batches of two, a row of padding: the worst tenth is the worst one row."""
        task, policy = preference(make_model(), "dpo", tier), make_model(seed=1)
        plan = LoopPlan(1, 4, micro_batch, 0, 1, OptimConfig())
        found = evaluate(OneRank(policy), task, plan, lambda: None)  # type: ignore[arg-type]
        rows = [objective(task, policy, [row])[1] for row in range(3)]
        assert found["pairs"] == 3
        assert found["reward_margin"] == pytest.approx(sum(row["reward_margin"] for row in rows) / 3, abs=1e-4)
        assert found["worst_reward_margin"] == pytest.approx(min(row["reward_margin"] for row in rows), abs=1e-4)
        assert ("worst_chosen_kl" in found) == (tier == "hidden")
        if tier == "hidden":
            assert found["worst_chosen_kl"] == pytest.approx(max(row["chosen_kl"] for row in rows), abs=1e-4)
        assert set(found) == {*task.metric_names, *task.tails}

    def test_columns_that_are_there(self, make_model: Callable[..., nn.Module]) -> None:
        for tier, names in (
            ("hidden", {"worst_reward_margin", "worst_chosen_kl"}),
            ("scalar", {"worst_reward_margin"}),
        ):
            task = preference(make_model(), "dpo", tier)
            assert set(task.tails) == names
            assert {column for column, _ in task.tails.values()} <= set(task.metric_names)

    def test_every_row_has_its_own_metrics(self, make_model: Callable[..., nn.Module]) -> None:
        task, policy = preference(make_model()), make_model(seed=1)
        batch = task.collate([0, None, 2])
        hidden = final_hidden(policy, batch["input_ids"], batch["attention_mask"])
        columns = task.objective(hidden, output_head(policy), batch)[1]
        assert columns.shape == (3, len(task.metric_names))
        assert not columns[1].any(), "padding counts for nothing"
        for place, row in ((0, 0), (2, 2)):
            alone = objective(task, policy, [row])[1]
            assert columns[place].tolist() == pytest.approx(list(alone.values()), rel=1e-3, abs=1e-4)
