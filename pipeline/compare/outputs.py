"""A file of any system's outputs: rows with ``prompt``, ``output`` and perhaps ``seed``. Pure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.compare.prompts import storable
from pipeline.data.files import KNOWN_ENDINGS, ending, read_file
from pipeline.errors import DataError

SHAPE = '{"prompt": "...", "output": "...", "seed": 0}'


def read_outputs(file: Path) -> dict[str, dict[int, str]]:
    """Outputs by prompt, in the order of the file, and seed. The i-th output of a prompt is its seed i, counted from
    0, where its row names none.

    Raises:
        DataError: naming file and row, for a row that cannot be used or that has the prompt and seed of another; for
            a file without rows, or of nothing but empty outputs.
    """
    if ending(file) is None:
        raise DataError(f"{file} is no file of outputs: one of {', '.join(KNOWN_ENDINGS)} is needed, rows as {SHAPE}")
    found: dict[str, dict[int, str]] = {}
    places: dict[tuple[str, int], str] = {}
    counts: dict[str, int] = {}
    for where, row in read_file(file, str(file)):
        prompt, output = _text(row, "prompt", where), _text(row, "output", where)
        if not prompt:
            raise DataError(f"{where}: 'prompt' is empty: an output needs the prompt that it answers")
        seed = _seed(row, where, counts.get(prompt, 0))
        counts[prompt] = counts.get(prompt, 0) + 1
        if (prompt, seed) in places:
            raise DataError(
                f"{where} has the prompt and the seed {seed} of {places[prompt, seed]}: give each output of a prompt a "
                "seed of its own, or leave 'seed' out of all rows"
            )
        places[prompt, seed] = where
        found.setdefault(prompt, {})[seed] = output
    if not found:
        raise DataError(f"{file} holds no outputs: give rows such as {SHAPE}")
    if not any(output.strip() for outputs in found.values() for output in outputs.values()):
        raise DataError(f"{file}: all {len(places)} outputs are empty: there is nothing to compare")
    return found


def _text(row: dict[str, Any], name: str, where: str) -> str:
    if name not in row:
        have = ", ".join(map(str, row)) or "nothing"
        raise DataError(f"{where} has no {name!r} (it has {have}): a row is {SHAPE}")
    if not isinstance(row[name], str):
        raise DataError(f"{where}: {name!r} is {type(row[name]).__name__}, not text: a row is {SHAPE}")
    return storable(row[name])


def _seed(row: dict[str, Any], where: str, otherwise: int) -> int:
    seed = row.get("seed")
    if seed is None or seed == "":
        return otherwise
    if isinstance(seed, str) and seed.isdecimal():  # a cell of CSV
        return int(seed)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise DataError(f"{where}: 'seed' is {seed!r}: give a whole number, 0 or more, or leave it out")
    return seed
