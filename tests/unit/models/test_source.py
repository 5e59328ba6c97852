from __future__ import annotations

import json
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.config import BUILD_GPT_NEOX, BuildConfig, ModelConfig
from pipeline.errors import ModelError
from pipeline.models.build import build_gpt_neox
from pipeline.models.load import context_tokens, load_model, load_tokenizer
from pipeline.models.source import resolve_model

TEXTS = ["A joy from start to end.", "Dull, long and loud."] * 20
SMALL = BuildConfig(vocab_size=300, hidden_size=16, num_layers=2, num_heads=2, context_tokens=64)


@pytest.fixture
def model_dir(tmp_path: Path, built_model: Path) -> Path:
    return Path(shutil.copytree(built_model, tmp_path / "model"))


def digest(path: Path) -> str:
    return resolve_model(ModelConfig(path=str(path))).digest


class TestLocal:
    def test_the_place_does_not_count(self, model_dir: Path, built_model: Path) -> None:
        assert digest(model_dir) == digest(built_model)
        assert resolve_model(ModelConfig(path=str(model_dir))).path == model_dir.resolve()

    def test_weights_overwritten_in_place_are_another_model(self, model_dir: Path) -> None:
        before = digest(model_dir)
        file = model_dir / "model.safetensors"
        size = file.stat().st_size
        tensors = load_file(file)
        next(iter(tensors.values())).view(-1)[0] += 1
        save_file(tensors, file, metadata={"format": "pt"})
        assert file.stat().st_size == size
        assert digest(model_dir) != before

    @pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
    def test_other_files_count_too(self, model_dir: Path, name: str) -> None:
        before = digest(model_dir)
        with (model_dir / name).open("a") as file:
            file.write("\n")
        assert digest(model_dir) != before

    def test_a_renamed_shard_counts(self, model_dir: Path) -> None:
        before = digest(model_dir)
        (model_dir / "model.safetensors").rename(model_dir / "other.safetensors")
        assert digest(model_dir) != before

    def test_files_of_no_meaning_do_not(self, model_dir: Path) -> None:
        before = digest(model_dir)
        (model_dir / "README.md").write_text("# A model")
        assert digest(model_dir) == before

    def test_no_weights(self, model_dir: Path) -> None:
        (model_dir / "model.safetensors").unlink()
        with pytest.raises(ModelError, match=r"no weights in \*\.safetensors; save the model once"):
            digest(model_dir)

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt"])
    def test_only_weights_that_can_execute_code(self, model_dir: Path, name: str) -> None:
        (model_dir / "model.safetensors").unlink()
        torch.save({}, model_dir / name)
        with pytest.raises(ModelError, match=rf"found {name}, a format that can execute code"):
            digest(model_dir)

    def test_no_tokenizer(self, model_dir: Path) -> None:
        (model_dir / "tokenizer.json").unlink()
        with pytest.raises(ModelError, match="has no tokenizer"):
            digest(model_dir)

    def test_no_configuration(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"no config\.json"):
            digest(tmp_path)

    @pytest.mark.parametrize("path", ["./nowhere", "/nowhere", "~/nowhere-at-all", "a/b/c"])
    def test_no_directory(self, path: str) -> None:
        with pytest.raises(ModelError, match="no model directory at"):
            resolve_model(ModelConfig(path=path))

    def test_a_file(self, model_dir: Path) -> None:
        with pytest.raises(ModelError, match="no model directory at"):
            digest(model_dir / "config.json")

    def test_home_is_expanded(self, model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(model_dir.parent))
        assert resolve_model(ModelConfig(path="~/model")).path == model_dir.resolve()


class TestHub:
    """Without a network: the hub's own client runs, against nothing."""

    def fails(self, repo: str, message: str) -> float:
        started = time.monotonic()
        with pytest.raises(ModelError, match=message):
            resolve_model(ModelConfig(path=repo))
        return time.monotonic() - started

    @pytest.fixture(autouse=True)
    def _empty_cache(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))

    def test_offline(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert self.fails("EleutherAI/pythia-14m", r"cannot download .*check the network, or set model\.path") < 5

    def test_a_hub_that_refuses_connections(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{port}")
        monkeypatch.setattr("huggingface_hub.constants._HF_DEFAULT_ENDPOINT", f"http://127.0.0.1:{port}")
        assert self.fails("EleutherAI/pythia-14m", "the hub cannot be reached") < 30

    def test_a_hub_that_is_silent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
            monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
            monkeypatch.setattr("huggingface_hub.constants._HF_DEFAULT_ENDPOINT", endpoint)
            monkeypatch.setattr("pipeline.models.source._HUB_TIMEOUT_S", 0.2)
            assert self.fails("EleutherAI/pythia-14m", "the hub cannot be reached") < 10

    def test_a_cached_model_needs_no_hub(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, built_model: Path
    ) -> None:
        cached = tmp_path / "cache" / "models--someone--small"
        shutil.copytree(built_model, cached / "snapshots" / ("0" * 40))
        (cached / "refs").mkdir()
        (cached / "refs" / "main").write_text("0" * 40)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        found = resolve_model(ModelConfig(path="someone/small"))
        assert found.path == cached / "snapshots" / ("0" * 40)
        assert found.digest == digest(built_model)

    def test_a_download_keeps_the_name_of_its_revision(
        self, monkeypatch: pytest.MonkeyPatch, built_model: Path
    ) -> None:
        """Asked for by its commit, a model would be in the cache but could not be found there without the hub."""
        asked = []

        def download(repo: str, **options: object) -> str:
            asked.append((repo, options["revision"]))
            return str(built_model)

        monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: SimpleNamespace(sha="0" * 40))
        monkeypatch.setattr("huggingface_hub.snapshot_download", download)
        resolve_model(ModelConfig(path="someone/small"))
        resolve_model(ModelConfig(path="someone/small", revision="v2"))
        assert asked == [("someone/small", None), ("someone/small", "v2")]

    @pytest.mark.parametrize("repo", ["no such model", "--x", "a..b"])
    def test_neither_directory_nor_hub_id(self, repo: str) -> None:
        self.fails(repo, "neither a directory nor a hub id")


class TestBuild:
    def test_it_can_be_loaded(self, built_model: Path) -> None:
        model = load_model(built_model, torch.float32)
        tokenizer = load_tokenizer(built_model)
        assert model.config.vocab_size == len(tokenizer)
        assert tokenizer.decode(tokenizer("A joy, über!")["input_ids"]) == "A joy, über!"
        assert tokenizer.eos_token_id is not None
        assert context_tokens(built_model) == 64

    def test_equal_texts_and_seed_give_equal_files(self, tmp_path: Path, built_model: Path) -> None:
        size = build_gpt_neox(SMALL, iter(TEXTS), tmp_path / "again")
        assert digest(tmp_path / "again") == digest(built_model)
        assert size == sum(p.numel() for p in load_model(built_model, torch.float32).parameters())

    def test_another_seed_gives_other_weights(self, tmp_path: Path, built_model: Path) -> None:
        build_gpt_neox(SMALL.model_copy(update={"seed": 1}), TEXTS, tmp_path / "other")
        assert digest(tmp_path / "other") != digest(built_model)
        assert (tmp_path / "other" / "tokenizer.json").read_bytes() == (built_model / "tokenizer.json").read_bytes()

    def test_a_model_to_be_built_is_named_by_its_options(self) -> None:
        def source(**changes: int) -> str:
            found = resolve_model(ModelConfig(path=BUILD_GPT_NEOX, build=SMALL.model_copy(update=changes)))
            assert found.path is None
            return found.digest

        assert source() == source()
        assert len({source(), source(seed=1), source(hidden_size=32), source(vocab_size=301)}) == 4

    @pytest.mark.parametrize("change", [{"model_type": "no_such_model"}, {"architectures": None, "model_type": None}])
    def test_a_configuration_nobody_knows(
        self, model_dir: Path, change: dict[str, object], recwarn: pytest.WarningsRecorder
    ) -> None:
        config = json.loads((model_dir / "config.json").read_text()) | change
        (model_dir / "config.json").write_text(json.dumps(config))
        with pytest.raises(ModelError, match="cannot read the model configuration"):
            context_tokens(model_dir)


def test_the_cold_path_imports_nothing_heavy(run_python: Callable[[str], str]) -> None:
    assert run_python("import sys, pipeline.models.source; print('torch' in sys.modules)") == "False\n"
