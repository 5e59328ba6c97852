"""What the version and its reference say of production's outputs: the actor that hosts both."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.actors import Call, Pool, StandingActors
from pipeline.config import RunConfig
from pipeline.errors import PipelineError
from pipeline.traffic import LogRow
from pipeline.watch.rules import KL, RISK, TOKENS
from pipeline.watch.scored import NO_TOKENS, NOT_SCORED, Scored
from pipeline.watch.subject import Subject

_ROWS_PER_CALL = 64


class WatchActor:
    """Hosts version and reference, tokenises, and scores."""

    def __init__(self, run: dict[str, Any], reference_dir: str, model_dir: str, tokenizer: str) -> None:
        from pipeline.data.encode import Encoder
        from pipeline.evaluation.annotate import BothModels
        from pipeline.evaluation.scorers import load_scorers
        from pipeline.evaluation.stage import actor_device
        from pipeline.models.load import context_tokens, load_model, load_tokenizer, torch_dtype, vocabulary_size
        from pipeline.risk.measures import Measure, trained_measure

        self._run = config = RunConfig.model_validate(run)
        device, dtype, path = actor_device(config.cluster), torch_dtype(config.model.dtype), Path(model_dir)
        self._trained, kl = trained_measure(config.loss, config.risk), Measure("mean")
        loaded = load_tokenizer(path)
        self._both = BothModels(
            load_model(Path(reference_dir), dtype).to(device),
            load_model(path, dtype).to(device),
            loaded,
            (kl,) if self._trained.label == kl.label else (kl, self._trained),
            config.train.head_block_bytes,
            device,
        )
        self._decode: Callable[[list[int]], str] = loaded.decode
        self._scorers = load_scorers(config.evaluation.scorers)
        self._encode = _Encode(Encoder(config.data, loaded), tokenizer, context_tokens(path), vocabulary_size(path))

    def score(self, rows: list[LogRow]) -> list[Scored | str]:
        """Every row scored, or the reason why it is not."""
        from pipeline.models.batches import token_batches

        found: list[Scored | str] = [NO_TOKENS] * len(rows)
        encoded = [self._encode(row) for row in rows]
        usable = [i for i, one in enumerate(encoded) if one.output]
        lengths = [len(encoded[i].prompt) + len(encoded[i].output) for i in usable]
        for batch in token_batches(lengths, self._run.reference.batch_tokens):
            chosen = [usable[i] for i in batch]
            for i, one in zip(chosen, self._batch([(rows[i], encoded[i]) for i in chosen]), strict=True):
                found[i] = one
        return found

    def _batch(self, rows: list[tuple[LogRow, _Ids]]) -> list[Scored | str]:
        try:
            return [one if _is_finite(one) else f"{NOT_SCORED} (not a finite number)" for one in self._scored(rows)]
        except PipelineError as error:
            if len(rows) > 1:  # one of them is to blame, and the others are not
                return [one for row in rows for one in self._batch([row])]
            return [f"{NOT_SCORED} ({type(error).__name__})"]

    def _scored(self, rows: list[tuple[LogRow, _Ids]]) -> list[Scored]:
        token_scores = self._both.score([ids.prompt for _, ids in rows], [ids.output for _, ids in rows])
        prompts, texts = [row.prompt for row, _ in rows], [row.output for row, _ in rows]
        scores = {name: scorer.score(prompts, texts) for name, scorer in self._scorers.items()}
        found = []
        for i, ((_, ids), one) in enumerate(zip(rows, token_scores, strict=True)):
            risks = one.risk[self._trained.label]
            measures = {
                RISK: float(risks.double().sum()),
                KL: float(one.risk["kl"].double().sum()),
                TOKENS: float(len(ids.output)),
                **{name: values[i] for name, values in scores.items()},
            }
            tokens = [self._decode([token]) for token in ids.output]
            found.append(Scored(measures, tokens, risks.tolist(), ids.cut, ids.anew))
        return found


def _is_finite(scored: Scored) -> bool:
    """Neither a rank nor JSON can hold others."""
    return all(map(math.isfinite, scored.measures.values()))


@dataclass(frozen=True)
class _Ids:
    prompt: list[int]
    output: list[int]
    cut: bool
    anew: bool


class _Encode:
    """Rows to ids. Those that came with a row are taken as they are where they are this tokenizer's; a text is
    tokenised as in training, and ends with an EOS unless the row says that it was cut. What is longer than the context
    is cut as in training too: a prompt keeps its end, an output its beginning."""

    def __init__(self, encoder: Any, tokenizer: str, context: int, vocabulary: int) -> None:
        self._encoder, self._tokenizer, self._context, self._vocabulary = encoder, tokenizer, context, vocabulary

    def __call__(self, row: LogRow) -> _Ids:
        prompt, output = self._given(row, row.prompt_ids), self._given(row, row.output_ids)
        anew = (row.prompt_ids is not None and prompt is None) or (row.output_ids is not None and output is None)
        cut = False
        if not prompt:
            [whole] = self._encoder.prompts([row.prompt])
            prompt = self._encoder.fit_prompt(whole)
            cut = len(prompt) < len(whole)
        if output is None:
            [output] = self._encoder.responses([row.output])
            if row.finished is not False:
                output = [*output, self._encoder.eos]
        if len(prompt) + len(output) > self._context:
            prompt = self._encoder.fit_prompt(prompt)
            room = self._context - len(prompt)
            output, cut = output[:room], True
        return _Ids(prompt, output, cut, anew)

    def _given(self, row: LogRow, ids: tuple[int, ...] | None) -> list[int] | None:
        ours = ids is not None and row.tokenizer == self._tokenizer and max(ids, default=0) < self._vocabulary
        return list(ids) if ids is not None and ours else None


class Scorers:
    """Actors that host one subject; a context.

    Args:
        say: a line for the console, when an actor died.
    """

    def __init__(self, subject: Subject, pool: Pool, say: Callable[[str], None]) -> None:
        run = subject.run.model_dump(mode="json")
        arguments = (run, str(subject.reference), str(subject.model), subject.tokenizer)
        lower = "reference.batch_tokens of the version's run, --cluster.max_actors"
        self._actors, self._say = StandingActors(WatchActor, arguments, pool, lower), say

    def __enter__(self) -> Scorers:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._actors.__exit__(*exc_info)

    def score(self, rows: Sequence[LogRow]) -> list[Scored | str]:
        """Every row scored, in order, or the reason why it is not.

        Raises:
            PipelineError: when actors die again and again, or the models cannot be loaded.
        """
        calls = [
            Call(
                "score",
                (list(rows[start : start + _ROWS_PER_CALL]),),
                f"outputs {start + 1} to {start + _ROWS_PER_CALL}",
            )
            for start in range(0, len(rows), _ROWS_PER_CALL)
        ]
        return [one for part in self._actors.map(calls, self._on_death) for one in part]

    def _on_death(self, what: str) -> None:
        self._say(f"an actor died while it scored {what}; another one scores them again")
