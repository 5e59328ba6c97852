"""What A and B are: a version of the registry, a model directory, or a file of outputs. Pure.

A bare name (``production``, ``3``) is always a version; whatever has a slash or an ending is a path.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pipeline.compare.outputs import read_outputs
from pipeline.compare.prompts import Prompt, read_prompts
from pipeline.digests import digest_file, digest_json
from pipeline.errors import DataError, ModelError, RegistryError
from pipeline.models.contents import tokenizer_contents, weights_contents
from pipeline.models.source import check_directory
from pipeline.release.registry import open_registry

_VERSION = re.compile(r"[0-9]+|[a-z][a-z0-9_-]{0,30}")
VERSION_PROMPTS = "prompts.parquet"
"""In a version's directory: the prompts that it was judged by."""


@dataclass(frozen=True)
class Model:
    """A side that is sampled from."""

    label: str
    path: Path
    reference: Path | None = None
    """The model that this version's line began with."""

    @cached_property
    def weights(self) -> str:
        """Digest of configuration and weights."""
        return weights_contents(self.path)

    @cached_property
    def tokenizer(self) -> str:
        """Digest of the tokenizer's files."""
        return tokenizer_contents(self.path)

    @cached_property
    def digest(self) -> str:
        """Digest of what the side is."""
        return digest_json({"weights": self.weights, "tokenizer": self.tokenizer})

    @cached_property
    def prompts(self) -> Sequence[Prompt]:
        """Those that the version was judged by; none of a plain directory, nor of the reference."""
        file = self.path / VERSION_PROMPTS
        return read_prompts(file) if file.is_file() else ()


@dataclass(frozen=True)
class Outputs:
    """A side whose outputs are there already."""

    label: str
    path: Path
    rows: Mapping[str, Mapping[int, str]] = field(repr=False)

    @cached_property
    def digest(self) -> str:
        """Digest of the file."""
        return digest_file(self.path)


Side = Model | Outputs


@dataclass(frozen=True)
class Versions:
    """Where versions are looked for.

    Args:
        root: of the registry.
        line: its name or the beginning of it; None is the only one.
        into: where copies go when the registry is on an object store.
    """

    root: str
    line: str | None
    into: Path

    def fetch(self, spec: str) -> Model:
        """A version, every byte of it verified.

        Raises:
            RegistryError: when there is none.
        """
        line = open_registry(self.root).line(self.line)
        found = line.fetch(spec, self.into)
        reference = found if found.version == 0 else line.fetch("reference", self.into)
        return Model(found.label, found.path, reference.path)


def resolve(spec: str, name: str, versions: Versions) -> Side:
    """What an argument names.

    Args:
        name: "A" or "B", for messages.

    Raises:
        DataError: when there is nothing at a path, or the file holds no outputs.
        ModelError: for a directory that is no model.
        RegistryError: for a version that is not there.
    """
    path = Path(spec).expanduser()
    if _VERSION.fullmatch(spec):
        try:
            return versions.fetch(spec)
        except RegistryError as error:
            hint = f" (for the path of that name write ./{spec})" if path.exists() else ""
            raise RegistryError(f"{name}: {error}{hint}") from error
    if path.is_dir():
        try:
            check_directory(path)
        except ModelError as error:
            raise ModelError(f"{name}: {str(error).removeprefix('model.path: ')}") from error
        return Model(spec, path.resolve())
    if path.is_file():
        return Outputs(spec, path.resolve(), read_outputs(path))
    raise DataError(
        f"{name}: there is nothing at {spec!r}: give a version of the registry (a number or an alias such as "
        "production), a model directory, or a JSONL file of outputs"
    )
