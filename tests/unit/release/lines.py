"""Small lines of versions for the tests of the registry (not a test: shared by tests)."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

from pipeline.release.line import Line
from pipeline.release.registry import open_registry

NAME = "0123456789abcdef"
ALIAS = "production"


def write_model(directory: Path, number: int, weights_bytes: int = 16) -> Path:
    """A model directory of a few hundred bytes; ``number`` (0 to 255) makes its weights differ from others."""
    directory.mkdir(parents=True)
    header = {"w": {"dtype": "U8", "shape": [weights_bytes], "data_offsets": [0, weights_bytes]}}
    text = json.dumps(header).encode()
    weights = struct.pack("<Q", len(text)) + text + bytes([number]) * weights_bytes
    (directory / "model.safetensors").write_bytes(weights)
    (directory / "config.json").write_text('{"model_type": "gpt_neox"}')
    (directory / "tokenizer.json").write_text("{}")
    (directory / "README.md").write_text(f"Model {number}.")
    return directory


def begin(root: str, models: Path, name: str = NAME) -> Line:
    """A line whose reference is model 0; the directories of all its models lie below ``models``."""
    reference = models / "0"
    if not reference.exists():
        write_model(reference, 0)
    return open_registry(root).begin(name, reference, "a tiny model", {"from": "a test"})


def register(line: Line, models: Path, number: int) -> int:
    """The version of model ``number``."""
    directory = models / str(number)
    if not directory.exists():
        write_model(directory, number)
    return line.register(directory, {"from": "a test"}, why=f"model {number}").version


def begin_with_history(root: str, models: Path) -> Line:
    """Four versions, of which production points to 2, came from 1, and one (3) is the candidate: nine records."""
    line = begin(root, models)
    for number in (1, 2):
        register(line, models, number)
        line.decide(ALIAS, number, number, seen=line.alias(ALIAS).moved_by, why="it holds", details={"gate": {}})
    register(line, models, 3)
    line.decide(ALIAS, 3, None, seen=0, why="it does not hold", details={})
    register(line, models, 4)
    line.remove("4", why="for its space")
    return line


def copy_of(history: Path, folder: Path) -> Path:
    """The directory of the line in a copy of a registry, which becomes ``registry`` in ``folder``."""
    shutil.copytree(history, folder / "registry")
    return folder / "registry" / NAME


def files_of(root: Path) -> dict[str, bytes]:
    """Every file below a directory but temporary ones."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and ".scratch" not in path.parts
    }
