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


def seal(value: Mapping[str, Any]) -> bytes:
    """A JSON document that carries its own digest (under ``seal``): `unseal` finds any change of a single byte."""
    assert "seal" not in value
    sealed = {**value, "seal": digest_json(value)}
    return json.dumps(sealed, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False).encode() + b"\n"


def unseal(data: bytes) -> dict[str, Any]:
    """What was sealed.

    Raises:
        ValueError: when the bytes are not those that `seal` gave.
    """
    value = json.loads(data)
    if not isinstance(value, dict) or not isinstance(value.pop("seal", None), str) or seal(value) != data:
        raise ValueError("its content differs from its own digest")
    return value


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
