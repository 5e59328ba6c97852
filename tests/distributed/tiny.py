"""A tiny model, random pairs and the whole-vocabulary computation that the pipeline must agree with.

Not a test: shared by the tests of this folder and by the worker processes that they start.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from pipeline.config import LossConfig, RiskConfig
from pipeline.records import PairTokens

VOCAB = 97
PARTITIONED_VOCAB = 3_200
"""With this one embedding and head hold more numbers than DeepSpeed leaves whole on every rank (100,000)."""
PAD = 0


def save_model(path: Path, *, vocab_size: int = VOCAB, tied: bool = False, seed: int = 0) -> None:
    torch.manual_seed(seed)
    config = GPTNeoXConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        # Larger than the default, so that distributions are far from uniform.
        initializer_range=0.2,
        # Training must leave it off, or policy and reference differ from the start.
        hidden_dropout=0.1,
        attention_dropout=0.1,
    )
    GPTNeoXForCausalLM(config).save_pretrained(path)


def random_pairs(count: int, seed: int = 0) -> list[PairTokens]:
    rng = np.random.default_rng(seed)

    def ids(low: int, high: int) -> list[int]:
        return rng.integers(1, VOCAB, rng.integers(low, high)).tolist()

    pairs = []
    for index in range(count):
        prompt, chosen, rejected = ids(2, 8), ids(3, 20), ids(3, 20)
        content = hashlib.sha256(str((prompt, chosen, rejected)).encode()).hexdigest()
        pairs.append(PairTokens(f"row{index:04d}", f"group{index % 7}", prompt, chosen, rejected, content))
    return pairs


def plain_sums(model: nn.Module, reference: nn.Module, pair: PairTokens, ids: list[int], risk: RiskConfig) -> Tensor:
    """[logp, ref logp, sequential KL, sequential CVaR] of one response, one sequence at a time, with a sort."""
    tokens = torch.tensor([[*pair.prompt_ids, *ids]])
    start = len(pair.prompt_ids) - 1
    log_pi = model(tokens).logits[0, start:-1].log_softmax(-1)
    with torch.no_grad():
        log_ref = reference(tokens).logits[0, start:-1].log_softmax(-1)
    labels = torch.tensor(ids).unsqueeze(-1)
    ratio, p = log_ref - log_pi, log_ref.exp()
    # The tail by a sort; entries tied with the VaR share its remaining mass in proportion to pi_ref.
    fixed = ratio.detach()
    order = fixed.argsort(-1, descending=True)
    position = (p.gather(-1, order).cumsum(-1) < risk.level).sum(-1, keepdim=True).clamp_max(p.shape[-1] - 1)
    var = fixed.gather(-1, order.gather(-1, position))
    tied = (fixed - var).abs() <= 1e-5 * (1 + var.abs())
    above = (fixed > var) & ~tied
    rest = risk.level - (p * above).sum(-1, keepdim=True)
    q = (p * above + p * tied * rest / (p * tied).sum(-1, keepdim=True)) / risk.level
    cvar = (q * ratio).sum(-1)
    return torch.stack(
        [
            log_pi.gather(-1, labels).sum(),
            log_ref.gather(-1, labels).sum(),
            (p * ratio).sum(),
            cvar.sum(),
        ]
    )


def plain_loss(
    model: nn.Module, reference: nn.Module, pairs: list[PairTokens], loss: LossConfig, risk: RiskConfig
) -> Tensor:
    """Mean loss of a batch of pairs, from the equations, with a live reference."""
    total = torch.zeros(())
    for pair in pairs:
        chosen = plain_sums(model, reference, pair, pair.chosen_ids, risk)
        rejected = plain_sums(model, reference, pair, pair.rejected_ids, risk)
        z = loss.beta * ((chosen[0] - chosen[1]) - (rejected[0] - rejected[1]))
        if loss.method == "ra_dpo2":
            z = z - loss.alpha * loss.beta * (rejected[3] - chosen[3].detach())
        elif loss.method == "ra_dpo1":
            z = z - loss.beta * (rejected[3] - chosen[3])
        total = total - torch.nn.functional.logsigmoid(z)
    return total / len(pairs)
