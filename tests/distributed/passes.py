"""Preparing, running and killing reference passes in processes of their own (not a test: shared by tests)."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import tiny
from transformers import AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM

from pipeline.data.splits import in_hash_order
from pipeline.data.tables import read_table, write_table
from pipeline.records import PairTokens

SCRIPT = Path(__file__).parent / "reference_pass.py"
SETTINGS = {"RAY_AUTH_MODE": "token", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def prepare(
    root: Path, tokenizer: Path, pairs: int, *, hidden: int = 32, validation: int | None = None
) -> dict[str, Any]:
    """A model directory, tables of tokens (a tenth as many validation pairs, if nothing else is said) and the options
    of a pass over them."""
    model = root / "model"
    tiny.save_model(model)
    if hidden != 32:  # large enough that a shard takes a while
        size = {
            "hidden_size": hidden,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 4 * hidden,
        }
        GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=tiny.VOCAB, max_position_embeddings=64, **size)).save_pretrained(
            model
        )
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(model)
    tokens = root / "tokens"
    tokens.mkdir()
    write_table(tokens / "train.parquet", tiny.random_pairs(pairs, seed=1), PairTokens)
    held_out = max(2, pairs // 10) if validation is None else validation
    write_table(tokens / "validation.parquet", tiny.random_pairs(held_out, seed=2), PairTokens)
    return {
        "model": str(model),
        "tokens": str(tokens),
        "storage": str(root),
        "root": str(root / "references"),
        "reference": {"rows_per_shard": 2, "batch_tokens": 128},
    }


def start(options: dict[str, Any], folder: Path, **environment: str) -> subprocess.Popen[str]:
    """Start a pass; its output goes to a fresh log (`log_of`)."""
    number = len(list(folder.glob("pass-*.json")))
    path = folder / f"pass-{number:03d}.json"
    path.write_text(json.dumps(options))
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(path)],
        stdout=path.with_suffix(".log").open("w"),
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=os.environ | SETTINGS | environment,
    )
    process.log = path.with_suffix(".log")  # type: ignore[attr-defined]
    return process


class Session:
    """Passes in one process, whose Ray is started once. Leaving the block ends it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = folder / "session.log"
        self._process: subprocess.Popen[str] | None = None
        self._passes = 0

    def __enter__(self) -> Session:
        self._process = subprocess.Popen(
            [sys.executable, str(SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=self._log.open("w"),
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env=os.environ | SETTINGS,
        )
        return self

    def run(self, options: dict[str, Any], timeout_s: float = 120.0) -> str:
        """Run a pass to its end, which must be a good one; returns what was said meanwhile."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._passes += 1
        path = self._folder / f"session-{self._passes}.json"
        path.write_text(json.dumps(options))
        said = len(self._log.read_text())
        print(path, file=self._process.stdin, flush=True)
        deadline = time.monotonic() + timeout_s
        while True:
            output = self._log.read_text()[said:]
            lines = output.splitlines()
            if output.endswith("\n") and lines and lines[-1].startswith("done "):
                return output
            assert self._process.poll() is None, output[-4000:]
            assert time.monotonic() < deadline, output[-4000:]
            time.sleep(0.05)

    def __exit__(self, *error: object) -> None:
        assert self._process is not None
        kill(self._process)


def log_of(process: subprocess.Popen[str]) -> str:
    text: str = process.log.read_text()  # type: ignore[attr-defined]
    return text


def finish(process: subprocess.Popen[str], timeout_s: float = 120.0) -> str:
    """Wait for the end, which must be a good one; returns the output."""
    try:
        process.wait(timeout_s)
    finally:
        kill(process)
    output = log_of(process)
    assert process.returncode == 0, output[-4000:]
    return output


def run(options: dict[str, Any], folder: Path) -> list[str]:
    """Run a pass to its end; returns the words of its last line: done, computed, seconds, driver's and actor's peak
    USS, place."""
    return finish(start(options, folder)).splitlines()[-1].split()


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL the driver with all that Ray started for it."""
    family = []
    if process.poll() is None:
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=20)


def kill_driver(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """SIGKILL the driver alone; its actors are left to find out by themselves. Returns what else it had started."""
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    return family


def actors(process: subprocess.Popen[str]) -> Iterator[psutil.Process]:
    """Processes of the pass's actors."""
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if "_Host" in " ".join(child.cmdline()):
                yield child
        except psutil.Error:
            continue


def committed(options: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """The files that are there, and what tells whether one was written again: inode and time."""
    found = Path(options["root"]).glob("*/*.safetensors")
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def contents(options: dict[str, Any]) -> dict[str, bytes]:
    """Bytes of all files of the finished cache, the manifest included."""
    [cache] = (path for path in Path(options["root"]).iterdir() if path.is_dir())
    return {path.name: path.read_bytes() for path in cache.iterdir() if path.suffix in (".safetensors", ".json")}


def survive(options: dict[str, Any], folder: Path, kills: int, seed: int) -> dict[str, int]:
    """Run a pass under ``kills`` SIGKILLs of actors and driver in turn, at random times; returns what was counted.

    Asserted on the way: a file that was there before a kill is the very same file at the end.
    """
    rng = random.Random(seed)
    counted = {"driver": 0, "actor": 0, "started": 0}
    seen: dict[str, tuple[int, int]] = {}
    orphans: list[psutil.Process] = []
    process = None
    try:
        while counted["driver"] + counted["actor"] < kills:
            if process is None:
                process = start(options, folder)
                counted["started"] += 1
            before = len(committed(options))
            if not _progress(process, options, before + rng.randint(0, 3)):
                raise AssertionError(f"the pass ended after {counted} kills: give it more pairs\n{log_of(process)}")
            time.sleep(rng.random() * 0.1)
            seen |= {name: mark for name, mark in committed(options).items() if name not in seen}
            assert all(committed(options).get(name) == mark for name, mark in seen.items()), "a file was written again"
            hosts = list(actors(process))
            if hosts and counted["actor"] <= counted["driver"]:
                rng.choice(hosts).kill()
                counted["actor"] += 1
            else:
                orphans += kill_driver(process)
                process = None
                counted["driver"] += 1
        finish(process or start(options, folder))
        process = None
    finally:
        if process is not None:
            kill(process)
        for orphan in orphans:
            if orphan.is_running():
                orphan.kill()
    final = committed(options)
    assert all(final[name] == mark for name, mark in seen.items()), "a committed file was written again"
    return counted | {"files": len(final), "seen before a kill": len(seen)}


def _progress(process: subprocess.Popen[str], options: dict[str, Any], files: int) -> bool:
    """Wait until so many files are committed; False when the pass is over."""
    deadline = time.monotonic() + 60
    while process.poll() is None:
        if len(committed(options)) >= files and any(True for _ in actors(process)):
            return True
        assert time.monotonic() < deadline, log_of(process)[-4000:]
        time.sleep(0.02)
    return False


def grown(options: dict[str, Any], folder: Path, train: int, validation: int) -> dict[str, Any]:
    """The options of a pass over the same pairs and as many more of both splits, which stand between them."""
    tokens = folder / "grown"
    tokens.mkdir()
    for split, seed, more in (("train", 1, train), ("validation", 2, validation)):
        there = read_table(Path(options["tokens"]) / f"{split}.parquet", PairTokens)
        pairs = tiny.random_pairs(len(there) + more, seed=seed)
        assert pairs[: len(there)] == sorted(there, key=lambda pair: pair.row_id)
        write_table(tokens / f"{split}.parquet", in_hash_order(pairs), PairTokens)
    return options | {"tokens": str(tokens)}


def rows(output: str) -> tuple[int, int]:
    """Pairs that passed the model, and pairs that were taken over."""
    [line] = [line for line in output.splitlines() if line.startswith("rows ")]
    return int(line.split()[1]), int(line.split()[2])


def shards(cache: Path) -> dict[str, bytes]:
    """Bytes of a cache's shards, by the digest in their names: in another cache they may have another number."""
    return {path.stem.rsplit("-")[-1]: path.read_bytes() for path in cache.glob("*-*-*.safetensors")}


def grown_elsewhere(options: dict[str, Any], donor: dict[str, Any], root: Path) -> dict[str, Any]:
    """The options of the same pass at a root of its own, on which only a copy of the donor lies."""
    [cache] = (path for path in Path(donor["root"]).iterdir() if path.is_dir())
    shutil.copytree(cache, root / cache.name, ignore=shutil.ignore_patterns(".*"))
    return options | {"root": str(root)}
