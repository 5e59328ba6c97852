"""One local data file to located rows: JSON lines, JSON, CSV and Parquet.

Cells keep the type that the file gives them. CSV has only text, so it is read as text: a parser that guesses
would turn the answer "42" into a number and the answer "None" into nothing.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from pipeline.errors import DataError

KNOWN_ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".parquet", ".csv", ".csv.gz")
_CSV_CELL_LIMIT = 2**31 - 1
"""Python's own limit of 128 KiB a cell is below what a long conversation takes."""


def ending(file: Path) -> str | None:
    """The known ending of a data file's name (".csv.gz", ...), or None for another kind of file."""
    return next((known for known in KNOWN_ENDINGS if file.name.lower().endswith(known)), None)


def read_file(file: Path, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of one file as ("name:line", row). Raises DataError for a file that is not what its name says."""
    kind = file.name.lower().removesuffix(".gz").removesuffix(".bz2").rpartition(".")[2]
    try:
        yield from _READERS[kind](file, name)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{name} is cut off or not compressed as its name says ({error}): write it again") from error
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}") from error


def _open(file: Path) -> IO[bytes]:
    openers: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open}
    return cast(IO[bytes], openers.get(file.suffix.lower(), open)(file, "rb"))


def _json_lines(file: Path, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    # Read as bytes: text mode would also break lines at the separators that may stand inside a JSON string.
    with _open(file) as stream:
        for number, line in enumerate(stream, start=1):
            where = f"{name}:{number}"
            text = _decode(line, where)
            if text.strip():
                yield where, _as_object(_parse(text, where), where)


def _json(file: Path, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    with _open(file) as stream:
        text = _decode(stream.read(), name)
    if not text.strip():
        return
    try:
        rows = json.loads(text)
    except ValueError as error:
        # Many tools write JSON lines under this ending.
        if "Extra data" not in str(error) or len(text.splitlines()) < 2:
            raise _not_json(name, error) from error
        yield from _json_lines(file, name)
        return
    if not isinstance(rows, list):
        raise DataError(f"{name} is JSON but not a list of rows: write a list of objects, or .jsonl")
    for number, row in enumerate(rows, start=1):
        yield f"{name}:{number}", _as_object(row, f"{name}:{number}")


def _csv(file: Path, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(_CSV_CELL_LIMIT)
    with _open(file) as stream, io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text:
        reader = csv.reader(text, strict=True)
        header: list[str] | None = None
        while True:
            where = f"{name}:{reader.line_num + 1}"
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise DataError(f"{where} is no valid CSV ({error}): see whether a quote is missing") from error
            except UnicodeDecodeError as error:
                raise _not_utf8(where, error) from error
            if cells is None:
                return
            if header is None:
                header = _header(cells, where)
            elif cells and len(cells) != len(header):
                raise DataError(
                    f"{where} has {len(cells)} cells, the header has {len(header)}: "
                    "quote cells that hold commas or line breaks"
                )
            elif cells:
                yield where, dict(zip(header, cells, strict=True))


def _header(cells: list[str], where: str) -> list[str]:
    if len(set(cells)) != len(cells):
        raise DataError(f"{where}: the header names a column twice ({', '.join(cells)}): rename one")
    return cells


def _parquet(file: Path, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=4096):
            for row in batch.to_pylist():
                number += 1
                yield f"{name}:{number}", row
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{name} cannot be read as Parquet ({error}): write it again or convert it") from error


_READERS: dict[str, Callable[[Path, str], Iterator[tuple[str, dict[str, Any]]]]] = {
    "jsonl": _json_lines,
    "json": _json,
    "csv": _csv,
    "parquet": _parquet,
}


def _decode(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(where, error) from error


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise _not_json(where, error) from error


def _as_object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{where} is {type(value).__name__}, not a JSON object: a row is an object of columns")
    return value


def _not_json(where: str, error: ValueError) -> DataError:
    return DataError(f"{where} is not valid JSON ({error}): correct or remove it")


def _not_utf8(where: str, error: UnicodeDecodeError) -> DataError:
    return DataError(f"{where} is not UTF-8 text ({error.reason} at byte {error.start}): convert the file to UTF-8")
