"""Whether two sides can be compared token by token. Pure."""

from __future__ import annotations

from pipeline.compare.sides import Model, Side

OUTPUTS = "outputs"
TOKENIZERS = "tokenizers"
VOCABULARIES = "vocabularies"


def why_no_drift(a: Side, b: Side) -> str | None:
    """Why no drift between A and B is defined, or None when it is.

    ``outputs``: a file of outputs has no distribution; ``tokenizers``: other tokens stand for a text; ``vocabularies``:
    the output heads have other sizes.
    """
    if not (isinstance(a, Model) and isinstance(b, Model)):
        return OUTPUTS
    if not same_tokenizer(a, b):
        return TOKENIZERS
    from pipeline.models.load import vocabulary_size

    return None if vocabulary_size(a.path) == vocabulary_size(b.path) else VOCABULARIES


def same_tokenizer(a: Model, b: Model) -> bool:
    """Whether the same tokens stand for the same ids, whatever else the tokenizers' files say."""
    if a.tokenizer == b.tokenizer:
        return True
    from pipeline.models.load import load_tokenizer

    mine, other = load_tokenizer(a.path), load_tokenizer(b.path)
    return bool(mine.get_vocab() == other.get_vocab() and mine.eos_token_id == other.eos_token_id)
