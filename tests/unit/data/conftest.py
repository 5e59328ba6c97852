from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = ["Review of a film:\nA joy from start to end.", "Dull, long and loud; the worst of the year. Ünïcode"] * 20


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """Makes a byte-level BPE tokenizer; ``adds_bos`` gives it a BOS that it puts before every text."""

    def make(adds_bos: bool = False, chat_template: str | None = None, **special: str) -> PreTrainedTokenizerFast:
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=["<eos>", "<bos>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(CORPUS, trainer)
        backend.add_special_tokens([AddedToken("<eos>", special=True), AddedToken("<bos>", special=True)])
        special = special or {"eos_token": "<eos>"}
        if adds_bos:
            special["bos_token"] = "<bos>"
            backend.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 1)])
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
        tokenizer.chat_template = chat_template
        return tokenizer

    return make


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows to a JSON lines file."""

    def write(rows: list[dict[str, Any]], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write
