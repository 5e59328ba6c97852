"""The hidden tier gives the loss and gradients of a live reference (fp32, 1e-5), and so does a top-k of all."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.config import LossConfig, RiskConfig
from pipeline.training.policy import PolicyWithObjective
from pipeline.training.preference import PreferenceTask

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "distributed")]
import caches
import tiny


@pytest.mark.parametrize("tier", [{}, {"tier": "topk", "top_k": tiny.VOCAB}], ids=["hidden", "top-k of all"])
@pytest.mark.parametrize("method", ["dpo", "ra_dpo1", "ra_dpo2"])
@pytest.mark.parametrize("moved", [False, True], ids=["at the reference", "after training"])
def test_loss_and_gradients_of_a_live_reference(tmp_path: Path, method: str, moved: bool, tier: dict[str, Any]) -> None:
    tiny.save_model(tmp_path / "model")
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    if moved:
        torch.manual_seed(1)
        with torch.no_grad():
            for one, two in zip(policy.parameters(), plain.parameters(), strict=True):
                noise = 0.03 * torch.randn_like(one)
                one += noise
                two += noise
    pairs = tiny.random_pairs(6)
    # Batches of the reference pass are composed differently from those of training.
    place = caches.write_cache(
        tmp_path / "cache", reference, {"train": pairs}, rows_per_shard=4, batch_tokens=100, **tier
    )
    reader = caches.read_rows(place, "train", pairs)
    loss, risk = LossConfig(method=method), RiskConfig()
    task = PreferenceTask(pairs, reader, loss, risk, tiny.PAD, 50_000)

    order = [3, 0, None, 5, 1]
    total, columns = PolicyWithObjective(policy)(task.collate(order), task)
    (total / 4).backward()
    expected = tiny.plain_loss(plain, reference, [pairs[row] for row in order if row is not None], loss, risk)
    assert total.item() / 4 == pytest.approx(expected.item(), abs=1e-5)
    metrics = dict(zip(task.metric_names, columns.sum(dim=0).tolist(), strict=True))
    assert metrics["pairs"] == 4
    if not moved:
        assert total.item() / 4 == pytest.approx(math.log(2), abs=1e-5)
        assert metrics["chosen_kl"] == pytest.approx(0, abs=1e-4)
    expected.backward()
    for (name, ours), theirs in zip(policy.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-5), name
