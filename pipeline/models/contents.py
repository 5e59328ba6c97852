"""Digests of what a model directory holds: its weights and its tokenizer apart.

A cache of what a model says belongs to these contents, wherever the directory lies and whatever it is called;
overwriting it in place gives other digests.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.digests import digest_files

_WEIGHTS = ("config.json", "*.safetensors", "*.safetensors.index.json")
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "chat_templates/*.jinja",
)


def weights_contents(directory: Path) -> str:
    """sha256 over the model's configuration and weight files."""
    return _digest(directory, _WEIGHTS)


def tokenizer_contents(directory: Path) -> str:
    """sha256 over the tokenizer's files, its chat template included."""
    return _digest(directory, _TOKENIZER)


def _digest(directory: Path, patterns: tuple[str, ...]) -> str:
    return digest_files(directory, {path for pattern in patterns for path in directory.glob(pattern)})
