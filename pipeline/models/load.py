"""Load a causal language model and its tokenizer, split it into backbone and head, and digest its weights."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.digests import digest_tensors
from pipeline.errors import ModelError
from pipeline.models.source import TOKENIZER_FILES
from pipeline.risk.head import Head


def import_transformers() -> None:
    """Before stages run side by side: transformers looks for its parts when they are first asked for, and fails when
    two threads do that at once."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer  # noqa: F401


def torch_dtype(name: str) -> torch.dtype:
    """``float32`` or ``bfloat16`` (``auto`` was decided when the run was planned)."""
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def load_model(path: Path, dtype: torch.dtype) -> nn.Module:
    """Load from a local safetensors directory, on CPU, in evaluation mode.

    Raises:
        ModelError: when transformers cannot load it as a causal language model, or leaves weights uninitialised.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,  # code beside the weights is refused; unset, a question on the console decides
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelError(f"cannot load a causal language model from {path}: {_first_line(error)}") from error
    if report["missing_keys"]:
        names = sorted(report["missing_keys"])
        raise ModelError(
            f"{path} lacks weights for {len(names)} parameters ({', '.join(names[:3])}...): "
            "they would start from random numbers; is it the right model class?"
        )
    model.eval()
    return model


def load_tokenizer(path: Path) -> Any:
    """Load the tokenizer saved beside the weights.

    Raises:
        ModelError: when there is none, or it has no end-of-sequence token.
    """
    from transformers import AutoTokenizer

    # Without files transformers would make an empty tokenizer of the model's family.
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        raise ModelError(f"cannot load a tokenizer from {path}: it has none of {', '.join(TOKENIZER_FILES)}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"cannot load a tokenizer from {path}: {_first_line(error)}") from error
    if tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer in {path} has no end-of-sequence token; set eos_token in its configuration")
    return tokenizer


def context_tokens(path: Path) -> int:
    """Longest sequence the model accepts (``max_position_embeddings``), from its config.json alone.

    Raises:
        ModelError: when transformers does not know the model that config.json describes.
    """
    return int(getattr(_text_config(path), "max_position_embeddings", None) or 1 << 30)


def vocabulary_size(path: Path) -> int:
    """Rows of the model's output head, from its config.json alone. Raises as `context_tokens`."""
    return int(_text_config(path).vocab_size)


def _text_config(path: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False).get_text_config()
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"cannot read the model configuration in {path}: {_first_line(error)}") from error


def output_head(model: nn.Module) -> Head:
    """The output head of a causal language model (tied to the embeddings or not).

    Raises:
        ModelError: when the model has none.
    """
    linear = model.get_output_embeddings()  # type: ignore[operator]
    if linear is None:
        raise ModelError(f"{type(model).__name__} has no output head over a vocabulary; use a causal language model")
    config = model.config.get_text_config()  # type: ignore[union-attr, operator]
    # Gemma caps its logits, Cohere multiplies them and Granite divides them.
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    return Head(linear.weight, getattr(linear, "bias", None), scale, float(cap) if cap else None)


def final_hidden(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None = None
) -> Tensor:
    """Hidden states ``[B, T, d]`` after the final norm: what the output head is applied to.

    ``attention_mask`` is ``[B, T]``, or ``[B, 1, T, T]`` to be added to the attention scores.
    """
    positions = {} if position_ids is None else {"position_ids": position_ids}
    output = model.base_model(  # type: ignore[operator]
        input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **positions
    )
    return output.last_hidden_state


@torch.no_grad()
def check_head(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> None:
    """Refuse an architecture whose logits are not those of `output_head` on the final hidden states.

    Some architectures adapt their logits on the way out in ways of their own. Losses, reference and evaluation all
    form logits from hidden states and head: with such a model they would silently be about another distribution.

    Raises:
        ModelError: when the two differ by more than rounding.
    """
    hidden = final_hidden(model, input_ids, attention_mask)
    head = output_head(model)
    rebuilt = nn.functional.linear(hidden, head.weight, head.bias).float() * head.scale
    if head.softcap is not None:
        rebuilt = head.softcap * torch.tanh(rebuilt / head.softcap)
    logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits.float()
    error = "shapes differ"
    if rebuilt.shape == logits.shape:
        tolerance = 1e-4 if hidden.dtype == torch.float32 else 3e-2
        worst = (rebuilt - logits).abs().max().item() / (1 + logits.abs().max().item())
        if worst <= tolerance:
            return
        error = f"largest relative difference {worst:.2g}"
    raise ModelError(
        f"{type(model).__name__} does not compute its logits from its final hidden states and head alone ({error}), "
        "which the losses do; set model.path to another model"
    )


def weights_digest(named: Iterable[tuple[str, Tensor]]) -> str:
    """sha256 over names, dtypes, shapes and bytes of the given (whole, not partitioned) tensors."""
    return digest_tensors(
        (
            name,
            tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes(),
            str(tensor.dtype),
            tuple(tensor.shape),
        )
        for name, tensor in named
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
