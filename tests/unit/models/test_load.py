from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.errors import ModelError
from pipeline.models.load import (
    check_head,
    final_hidden,
    load_model,
    load_tokenizer,
    output_head,
    weights_digest,
)

SIZE = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA = {**SIZE, "intermediate_size": 32, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
GPT2 = {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
IDS = torch.tensor([[3, 5, 7, 9, 0], [4, 6, 8, 10, 12]])
MASK = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])


def tiny(family: str, options: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**options)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture
def model_dir(tmp_path: Path, built_model: Path) -> Path:
    return Path(shutil.copytree(built_model, tmp_path / "model"))


class TestCheckHead:
    @pytest.mark.parametrize(
        ("family", "options"),
        [
            ("Llama", LLAMA),
            ("Llama", LLAMA | {"tie_word_embeddings": True}),
            ("GPT2", GPT2),
            ("GPTNeoX", SIZE | {"intermediate_size": 32}),
            ("Phi", SIZE | {"intermediate_size": 32}),  # its head has a bias
            ("Granite", LLAMA | {"logits_scaling": 8.0}),  # divides its logits
            ("Cohere", LLAMA | {"logit_scale": 0.0625}),  # multiplies them
            # A cap far below the largest logit, so that leaving it out would show.
            ("Gemma2", LLAMA | {"final_logit_softcapping": 0.05}),
            ("Gemma2", LLAMA | {"final_logit_softcapping": None}),
        ],
    )
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_heads_that_are_reproduced(self, family: str, options: dict[str, Any], dtype: Any) -> None:
        check_head(tiny(family, options).to(dtype), IDS, MASK)

    @pytest.mark.parametrize(
        ("family", "options"),
        [
            ("Bert", SIZE | {"intermediate_size": 32, "is_decoder": True}),  # transforms its hidden states first
            (
                "RecurrentGemma",  # caps its logits under a name of its own
                LLAMA | {"lru_width": 16, "logits_soft_cap": 0.05, "eos_token_id": 1},
            ),
        ],
    )
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_logits_made_in_a_way_of_their_own(self, family: str, options: dict[str, Any], dtype: Any) -> None:
        model = tiny(family, options).to(dtype)
        with pytest.raises(ModelError, match=rf"{type(model).__name__} does not compute .*model\.path"):
            check_head(model, IDS, MASK)

    @pytest.mark.parametrize(
        ("family", "options", "expected"),
        [
            ("Llama", LLAMA, (1.0, None)),
            ("Granite", LLAMA | {"logits_scaling": 8.0}, (0.125, None)),
            ("Cohere", LLAMA | {"logit_scale": 0.0625}, (0.0625, None)),
            ("Gemma2", LLAMA | {"final_logit_softcapping": 30.0}, (1.0, 30.0)),
        ],
    )
    def test_scale_and_cap_are_found(
        self, family: str, options: dict[str, Any], expected: tuple[float, float | None]
    ) -> None:
        head = output_head(tiny(family, options))
        assert (head.scale, head.softcap) == expected

    def test_a_bias_is_found(self) -> None:
        model = tiny("Phi", SIZE | {"intermediate_size": 32})
        head = output_head(model)
        assert head.bias is not None
        with torch.no_grad():
            head.bias.uniform_()
        check_head(model, IDS, MASK)

    def test_a_tied_head_is_the_embedding(self) -> None:
        model = tiny("Llama", LLAMA | {"tie_word_embeddings": True})
        assert output_head(model).weight is model.get_input_embeddings().weight  # type: ignore[operator]
        assert output_head(model).bias is None

    def test_a_model_without_a_head(self) -> None:
        with pytest.raises(ModelError, match="GPT2Model has no output head"):
            output_head(transformers.GPT2Model(transformers.GPT2Config(**GPT2)))

    def test_padding_does_not_change_hidden_states(self, make_model: Callable[..., nn.Module]) -> None:
        model = make_model()
        alone = final_hidden(model, IDS[:1, :4], MASK[:1, :4])
        padded = final_hidden(model, IDS, MASK)
        torch.testing.assert_close(padded[0, :4], alone[0], rtol=1e-5, atol=1e-5)


class TestLoadModel:
    def test_weights_are_those_of_the_file(self, model_dir: Path) -> None:
        model = load_model(model_dir, torch.float32)
        stored = load_file(model_dir / "model.safetensors")
        assert not model.training
        backbone = {name: tensor for name, tensor in model.named_parameters() if name in stored}
        assert len(backbone) >= len(stored) - 1  # the head has another name in the file
        assert all(torch.equal(tensor, stored[name]) for name, tensor in backbone.items())
        assert torch.equal(output_head(model).weight, stored["embed_out.weight"])

    def test_in_bfloat16(self, model_dir: Path) -> None:
        model = load_model(model_dir, torch.bfloat16)
        assert {tensor.dtype for tensor in model.parameters()} == {torch.bfloat16}

    def test_missing_weights(self, model_dir: Path) -> None:
        file = model_dir / "model.safetensors"
        tensors = {name: tensor for name, tensor in load_file(file).items() if "layers.1" not in name}
        save_file(tensors, file, metadata={"format": "pt"})
        with pytest.raises(ModelError, match=r"lacks weights for \d+ parameters .*layers\.1.*random numbers"):
            load_model(model_dir, torch.float32)

    def test_weights_of_other_shapes(self, model_dir: Path) -> None:
        file = model_dir / "model.safetensors"
        tensors = {name: tensor[..., :8].contiguous() for name, tensor in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
        with pytest.raises(ModelError, match="cannot load a causal language model"):
            load_model(model_dir, torch.float32)

    @pytest.mark.parametrize("keep", [0, 4, 1000])
    def test_torn_weights(self, model_dir: Path, keep: int) -> None:
        file = model_dir / "model.safetensors"
        file.write_bytes(file.read_bytes()[:keep])
        with pytest.raises(ModelError, match=rf"cannot load a causal language model from {model_dir}: ."):
            load_model(model_dir, torch.float32)

    def test_no_causal_language_model(self, tmp_path: Path) -> None:
        config = transformers.ViTConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        )
        transformers.ViTModel(config).save_pretrained(tmp_path)
        with pytest.raises(ModelError, match="cannot load a causal language model"):
            load_model(tmp_path, torch.float32)

    def test_no_directory(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError):
            load_model(tmp_path / "nowhere", torch.float32)


class TestLoadTokenizer:
    def test_no_tokenizer(self, model_dir: Path) -> None:
        for file in model_dir.glob("tokenizer*"):
            file.unlink()
        with pytest.raises(ModelError, match=r"cannot load a tokenizer .* it has none of"):
            load_tokenizer(model_dir)

    def test_a_torn_tokenizer(self, model_dir: Path) -> None:
        (model_dir / "tokenizer.json").write_text('{"version": ')
        with pytest.raises(ModelError, match="cannot load a tokenizer"):
            load_tokenizer(model_dir)

    def test_no_end_of_sequence(self, model_dir: Path) -> None:
        config = json.loads((model_dir / "tokenizer_config.json").read_text())
        config["eos_token"] = None
        (model_dir / "tokenizer_config.json").write_text(json.dumps(config))
        with pytest.raises(ModelError, match="no end-of-sequence token; set eos_token"):
            load_tokenizer(model_dir)


class TestWeightsDigest:
    def test_order_layout_and_place_do_not_count(self) -> None:
        a, b = torch.randn(4, 6), torch.randn(3, dtype=torch.bfloat16)
        assert weights_digest([("a", a), ("b", b)]) == weights_digest([("b", b), ("a", a.T.contiguous().T)])

    def test_one_bit_one_name_one_shape_and_one_type_count(self) -> None:
        weight = torch.ones(2, 3)
        changed = weight.clone()
        changed[1, 2] = torch.nextafter(changed[1, 2], torch.tensor(2.0))
        variants = [
            ("w", weight),
            ("w", changed),
            ("v", weight),
            ("w", weight.reshape(3, 2)),
            ("w", weight.view(torch.int32)),
        ]
        assert len({weights_digest([variant]) for variant in variants}) == 5

    def test_scalars_and_empty_tensors(self) -> None:
        assert weights_digest([("s", torch.tensor(1.0))]) != weights_digest([("s", torch.tensor(2.0))])
        assert weights_digest([("e", torch.empty(0))])
