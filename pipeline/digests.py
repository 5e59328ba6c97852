"""Content digests: the same bytes give the same name, on every machine and in every process."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_CHUNK_BYTES = 1 << 20


def digest_json(value: Mapping[str, Any]) -> str:
    """sha256 (hex) of a JSON value in canonical form: sorted keys, no spaces, no NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_file(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def digest_files(root: Path, files: Iterable[Path]) -> str:
    """sha256 over the names relative to ``root`` and the contents of ``files``, in name order."""
    return digest_json({str(path.relative_to(root)): digest_file(path) for path in files})


def digest_tensors(named: Iterable[tuple[str, bytes, str, tuple[int, ...]]]) -> str:
    """sha256 over tensors given as (name, raw bytes, dtype, shape), in name order."""
    return digest_json(
        {name: [hashlib.sha256(raw).hexdigest(), dtype, list(shape)] for name, raw, dtype, shape in named}
    )
