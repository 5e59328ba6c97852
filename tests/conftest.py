"""Threads for the whole test run, set before torch or tokenizers are imported, and a tiny model for every test.

More threads than cores only get in each other's way, and tests compare runs to the last bit.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from transformers import GPTNeoXForCausalLM

    from tests.s3 import S3Server

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


@pytest.fixture(scope="session")
def make_model() -> Callable[..., GPTNeoXForCausalLM]:
    """Makes a GPT-NeoX of two layers, width 16 and 40 tokens whose distributions are far from uniform."""

    def make(seed: int = 0, **options: object) -> GPTNeoXForCausalLM:
        import torch
        from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

        torch.manual_seed(seed)
        size = {
            "vocab_size": 40,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "max_position_embeddings": 64,
            "initializer_range": 0.3,
        }
        return GPTNeoXForCausalLM(GPTNeoXConfig(**(size | options))).eval()

    return make


@pytest.fixture(scope="session")
def built_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a built GPT-NeoX of width 16 with its tokenizer; copy it before you change anything."""
    from pipeline.config import BuildConfig
    from pipeline.models.build import build_gpt_neox

    directory = tmp_path_factory.mktemp("built") / "model"
    size = BuildConfig(vocab_size=300, hidden_size=16, num_layers=2, num_heads=2, context_tokens=64)
    build_gpt_neox(size, ["A joy from start to end.", "Dull, long and loud."] * 20, directory)
    return directory


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system in memory with the given options, or skips the test where that is forbidden."""
    mounted: list[Path] = []

    def do(options: str) -> Path:
        place = tmp_path / f"disk-{len(mounted)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(place)]
        if os.geteuid() or shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting a file system needs root and the right to mount")
        mounted.append(place)
        return place

    yield do
    for place in mounted:
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An object store that listens on this machine, with one bucket, 'tests'."""
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    from tests import s3

    server = s3.start(tmp_path_factory.mktemp("s3"))
    try:
        server.make_bucket("tests")
        yield server
    finally:
        server.stop()


@pytest.fixture
def s3_url(s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A URL below which nothing lies yet. This process and those it starts find the store through the environment."""
    import s3fs

    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    yield f"s3://tests/{tmp_path.parent.name}-{tmp_path.name}"
    s3fs.S3FileSystem.clear_instance_cache()
