"""Decoding a batch token by token. Each row has its own settings and its own noise.

A sample is argmax(logits / temperature + Gumbel noise), and the noise of a prompt and a seed is that of
`pipeline.evaluation.sampling`: what a row samples does not depend on its neighbours, and a request with a seed gets,
up to rounding, the very output that the version was judged by.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.serving.text import Detokenizer, Stops

Reason = Literal["stop", "length"]
"""Why an output ended: at its EOS or a stop sequence, or at its longest length."""


@dataclass(frozen=True)
class Settings:
    """How one row is sampled."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stops: tuple[str, ...] = ()
    logprobs: int | None = None
    """How many alternatives to tell beside each token's own log-probability; None for nothing."""
    stream: bool = False
    """Tell the text token by token, and not only at the end."""


@dataclass(frozen=True)
class TokenInfo:
    """Log-probabilities (nats) under the model itself, whatever temperature and top_p are."""

    id: int
    text: str
    logprob: float
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Piece:
    """What a step adds to an output. ``reason`` is set in its last one."""

    text: str
    tokens: tuple[TokenInfo, ...] = ()
    reason: Reason | None = None


class Row:
    """One output on its way.

    Args:
        prompt_ids: at least one.
        settings: how it is sampled.
        seed: of its noise (`pipeline.evaluation.sampling.row_seed`).
        tell: is given every piece as it comes, in the decoding thread.
    """

    def __init__(
        self, prompt_ids: Sequence[int], settings: Settings, seed: int, tell: Callable[[Piece | Exception], None]
    ) -> None:
        self.prompt_ids, self.settings, self.tell = tuple(prompt_ids), settings, tell
        self.noise = np.random.Generator(np.random.Philox(seed))
        self.ids: list[int] = []
        """What was sampled, with the EOS at the end if it came to that."""
        self.finished = False
        """Whether the output ended with its EOS."""
        self.cancelled = False
        """Set by whoever asked and does not want it any more."""


@dataclass
class _Progress:
    """A row within a batch."""

    row: Row
    words: Detokenizer
    stops: Stops
    over: bool = False
    text: str = ""
    """Not told yet."""
    waiting: list[TokenInfo] = field(default_factory=list)


class Batch:
    """Rows of one model that are decoded together; a row that has ended makes the batch smaller.

    Args:
        model: in evaluation mode.
        tokenizer: its own.
        device: where the model is.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, rows: Sequence[Row], device: torch.device) -> None:
        self._model, self._tokenizer, self._device = model, tokenizer, device
        self._rows = [_Progress(row, Detokenizer(tokenizer), Stops(row.settings.stops)) for row in rows]
        self._cache: Any = None
        known = inspect.signature(model.forward).parameters
        self._positions, self._last_only = "position_ids" in known, "logits_to_keep" in known
        width = max(len(row.prompt_ids) for row in rows)
        # Padded on the left, so that every row's next token is at the same position.
        ids = torch.zeros((len(rows), width), dtype=torch.int64)
        attention = torch.zeros((len(rows), width), dtype=torch.int64)
        for number, row in enumerate(rows):
            ids[number, width - len(row.prompt_ids) :] = torch.tensor(row.prompt_ids)
            attention[number, width - len(row.prompt_ids) :] = 1
        self._ids, self._attention = ids.to(device), attention.to(device)

    def __len__(self) -> int:
        return len(self._rows)

    @torch.inference_mode()
    def step(self) -> None:
        """One more token for every row."""
        logits = self._forward()
        tokens = next_tokens(logits, [one.row for one in self._rows])
        told = _logprobs(logits, tokens, [one.row.settings.logprobs for one in self._rows], self._tokenizer)
        for one, token, info in zip(self._rows, tokens.tolist(), told, strict=True):
            self._push(one, token, info)
        self._ids = tokens.to(self._device)[:, None]
        self._attention = torch.cat([self._attention, torch.ones_like(self._attention[:, :1])], dim=1)
        keep = [number for number, one in enumerate(self._rows) if not (one.over or one.row.cancelled)]
        if 0 < len(keep) < len(self._rows):
            chosen = torch.tensor(keep, device=self._device)
            self._cache.batch_select_indices(chosen)
            self._ids, self._attention = self._ids[chosen], self._attention[chosen]
        self._rows = [self._rows[number] for number in keep]

    def fail(self, error: Exception) -> None:
        """Tell every row that there is nothing more to come."""
        for one in self._rows:
            one.row.tell(error)
        self._rows = []

    def _forward(self) -> Tensor:
        """Logits ``[B, V]`` of every row's next token."""
        inputs: dict[str, Any] = {"input_ids": self._ids, "attention_mask": self._attention}
        if self._positions:
            positions = (self._attention.cumsum(dim=1) - 1).clamp(min=0)
            inputs["position_ids"] = positions[:, -self._ids.shape[1] :]
        if self._last_only:
            inputs["logits_to_keep"] = 1
        output = self._model(**inputs, past_key_values=self._cache, use_cache=True)
        self._cache = output.past_key_values
        logits: Tensor = output.logits[:, -1].float()
        return logits

    def _push(self, one: _Progress, token: int, info: TokenInfo | None) -> None:
        row = one.row
        row.ids.append(token)
        row.finished = token == self._tokenizer.eos_token_id
        text, one.text = one.text, ""
        if not row.finished:
            one.words.add(token)
            if row.settings.stream or row.settings.stops:
                text += one.stops.push(one.words.text())
        over: Reason | None = "stop" if row.finished or one.stops.stopped else None
        if over is None and len(row.ids) >= row.settings.max_tokens:
            over = "length"
        if over is not None and not one.stops.stopped:
            text += one.stops.push(one.words.text(last=True))
            over = "stop" if one.stops.stopped else over
            text += one.stops.rest()
        if info is not None and not row.finished:
            one.waiting.append(info)
        if over is not None or (text and row.settings.stream):
            one.row.tell(Piece(text, tuple(one.waiting), over))
            one.waiting.clear()
        else:
            one.text = text
        one.over = over is not None


def next_tokens(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """The next token of every row, ``[B]`` on the CPU.

    Args:
        logits: ``[B, V]``, float32.
    """
    tokens = logits.argmax(dim=1).cpu()
    for number, row in enumerate(rows):
        settings = row.settings
        if settings.temperature == 0:
            continue
        scaled = logits[number] / settings.temperature
        noise = torch.from_numpy(row.noise.gumbel(size=logits.shape[1])).to(scaled.device, torch.float32)
        if settings.top_p < 1:
            scaled = scaled.masked_fill(~_nucleus(scaled, settings.top_p), float("-inf"))
        tokens[number] = (scaled + noise).argmax()
    return tokens


def _nucleus(scaled: Tensor, top_p: float) -> Tensor:
    """The smallest set of likeliest tokens with this much probability, as a mask ``[V]``."""
    probabilities, order = torch.softmax(scaled, dim=0).sort(descending=True)
    inside = probabilities.cumsum(dim=0) - probabilities < top_p
    return torch.zeros_like(inside).scatter(0, order, inside)


def _logprobs(logits: Tensor, tokens: Tensor, wanted: Sequence[int | None], tokenizer: Any) -> list[TokenInfo | None]:
    if all(number is None for number in wanted):
        return [None] * len(wanted)
    logps = torch.log_softmax(logits, dim=1)

    def told(row: int, count: int | None) -> TokenInfo | None:
        if count is None:
            return None
        token = int(tokens[row])
        values, ids = logps[row].topk(min(count, logps.shape[1]))
        top = tuple(zip((tokenizer.decode([one]) for one in ids.tolist()), values.tolist(), strict=True))
        return TokenInfo(token, tokenizer.decode([token]), float(logps[row, token]), top)

    return [told(row, count) for row, count in enumerate(wanted)]
