"""Build a small GPT-NeoX with its own tokenizer, for runs without any pretrained model at hand."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import BuildConfig

if TYPE_CHECKING:
    from transformers import GPTNeoXForCausalLM

END_OF_TEXT = "<|endoftext|>"


def build_gpt_neox(config: BuildConfig, texts: Iterable[str], out_dir: Path) -> int:
    """Train a byte-level BPE on ``texts``, initialise the model from ``config.seed``, save both as a Hugging Face
    directory, and return the number of parameters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=config.context_tokens,
    )
    fast.save_pretrained(out_dir)

    # A short text may not fill the vocabulary: the head must not score tokens that cannot occur.
    model = random_gpt_neox(config, len(fast), fast.eos_token_id)
    model.save_pretrained(out_dir)
    return sum(parameter.numel() for parameter in model.parameters())


def random_gpt_neox(config: BuildConfig, vocab_size: int, end_id: int) -> GPTNeoXForCausalLM:
    """The model with random weights from ``config.seed``; ``end_id`` is begin, end and padding of a text."""
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(config.seed)
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            intermediate_size=4 * config.hidden_size,
            max_position_embeddings=config.context_tokens,
            bos_token_id=end_id,
            eos_token_id=end_id,
            pad_token_id=end_id,
        )
    )
