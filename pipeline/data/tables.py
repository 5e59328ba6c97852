"""Records on disk: lists of frozen dataclasses as Parquet with an explicit schema, or as JSON lines.

The Arrow schema follows from the dataclass alone, so an empty list of rows and a full one have the same
columns. Integers inside lists are int32 (token ids) and floats inside lists float32; scalars keep 64 bits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints, overload

from pipeline.errors import ArtifactError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

T = TypeVar("T")

_ROWS_PER_GROUP = 1024
"""Rows that `read_rows` cannot avoid to read together."""


def arrow_schema(cls: type[Any]) -> pa.Schema:
    """The Arrow schema of a record class, one non-null column per field in the order of the fields.

    str, bool, int (int64), float (float64), Literal of strings, list[str], list[int] (int32),
    list[float] (float32) and dict[str, float] (a map) are known; any other annotation is a TypeError.
    """
    import pyarrow as pa

    hints = get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    return pa.schema([pa.field(name, _arrow_type(hints[name], f"{cls.__name__}.{name}"), False) for name in names])


def write_table(path: Path, rows: Iterable[T], cls: type[T]) -> None:
    """Write records of ``cls`` as one Parquet file; equal rows give equal bytes.

    Raises ArtifactError when the file cannot be stored, TypeError when a row is not a ``cls``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = list(rows)
    for row in rows:
        if type(row) is not cls:
            raise TypeError(f"{path.name} holds {cls.__name__} rows, got {type(row).__name__}")
    schema = arrow_schema(cls)
    columns = []
    for field in schema:
        values = [getattr(row, field.name) for row in rows]
        if pa.types.is_map(field.type):
            values = [list(value.items()) for value in values]
        columns.append(pa.array(values, field.type))
        if columns[-1].null_count:
            raise TypeError(f"{path.name}: {cls.__name__}.{field.name} is None in a row")
    try:
        pq.write_table(pa.table(columns, schema=schema), path, compression="zstd", row_group_size=_ROWS_PER_GROUP)
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {error}") from error


def read_table(path: Path, cls: type[T]) -> list[T]:
    """Read what `write_table` wrote, in the same order.

    Raises ArtifactError when the file is missing, is damaged, or holds other columns than ``cls``.
    """
    return read_rows(path, cls, 0, None)


def read_rows(path: Path, cls: type[T], start: int, stop: int | None) -> list[T]:
    """Rows ``start`` to ``stop`` (None: to the end), reading no more of the file than holds them; otherwise as
    `read_table`."""
    with _reading(path) as file:
        first, groups = _groups(file.metadata, start, stop)
        table = file.read_row_groups(groups).slice(start - first, None if stop is None else stop - start)
    return _records(table, cls, path)


def read_numbered(path: Path, cls: type[T], numbers: Sequence[int]) -> list[T]:
    """The rows with these numbers, in their order, a group of rows of the file in memory at a time; otherwise as
    `read_table`."""
    found: dict[int, T] = {}
    with _reading(path) as file:
        first = 0
        for group in range(file.metadata.num_row_groups):
            end = first + file.metadata.row_group(group).num_rows
            mine = sorted({number for number in numbers if first <= number < end})
            if mine:
                table = file.read_row_group(group).take([number - first for number in mine])
                found.update(zip(mine, _records(table, cls, path), strict=True))
            first = end
    return [found[number] for number in numbers]


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[pq.ParquetFile]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        yield pq.ParquetFile(path)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing: delete its artefact and run the job again") from error
    except (OSError, pa.ArrowException) as error:
        raise ArtifactError(
            f"{path} is damaged and cannot be read as Parquet ({error}): delete its artefact and run the job again"
        ) from error


def _records(table: pa.Table, cls: type[T], path: Path) -> list[T]:
    schema = arrow_schema(cls)
    if table.schema.names != schema.names or any(
        not _same_type(have.type, want.type) for have, want in zip(table.schema, schema, strict=True)
    ):
        raise ArtifactError(
            f"{path} does not hold {cls.__name__} rows: it has {_columns(table.schema)}, needed are "
            f"{_columns(schema)}; it was written by another version, delete its artefact and run the job again"
        )
    columns = [_to_python(table.column(name).combine_chunks()) for name in schema.names]
    return [cls(*values) for values in zip(*columns, strict=True)]


def _groups(metadata: Any, start: int, stop: int | None) -> tuple[int, list[int]]:
    """Row groups that hold the rows, and the number of the first row in them."""
    first, begin = 0, start
    groups: list[int] = []
    for group in range(metadata.num_row_groups):
        end = first + metadata.row_group(group).num_rows
        if end > start and (stop is None or first < stop):
            begin = begin if groups else first
            groups.append(group)
        first = end
    return begin, groups


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write dataclass records or mappings as JSON lines (UTF-8, one object a line, no NaN)."""
    try:
        with path.open("w", encoding="utf-8", newline="\n") as file:
            for row in rows:
                value = dict(row) if isinstance(row, Mapping) else dataclasses.asdict(row)
                file.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {error}") from error


@overload
def read_jsonl(path: Path) -> list[dict[str, Any]]: ...
@overload
def read_jsonl(path: Path, cls: type[T]) -> list[T]: ...
def read_jsonl(path: Path, cls: type[Any] | None = None) -> list[Any]:
    """Read JSON lines as records of ``cls``, or as dictionaries without it.

    Raises ArtifactError naming the line that is not a JSON object or does not fit ``cls``.
    """
    rows: list[Any] = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                try:
                    value = json.loads(line)
                    rows.append(dict(**value) if cls is None else cls(**value))
                except (ValueError, TypeError) as error:
                    raise ArtifactError(
                        f"{path}:{number} is damaged ({error}): delete its artefact and run the job again"
                    ) from error
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing: delete its artefact and run the job again") from error
    return rows


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write one readable JSON object (keys in the given order, no NaN)."""
    try:
        path.write_text(json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {error}") from error


def _arrow_type(hint: Any, where: str) -> pa.DataType:
    import pyarrow as pa

    scalars = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
    inside_lists = {str: pa.string(), int: pa.int32(), float: pa.float32()}
    if hint in scalars:
        return scalars[hint]
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal and all(isinstance(value, str) for value in args):
        return pa.string()
    if origin is list and args[0] in inside_lists:
        return pa.list_(inside_lists[args[0]])
    if origin is dict and args == (str, float):
        return pa.map_(pa.string(), pa.float64())
    name = hint if isinstance(hint, types.GenericAlias) else getattr(hint, "__name__", hint)
    raise TypeError(f"{where}: no column type for {name}")


def _same_type(have: pa.DataType, want: pa.DataType) -> bool:
    """Whether two column types hold the same values (names of inner fields do not matter)."""
    import pyarrow as pa

    if pa.types.is_list(have) and pa.types.is_list(want):
        return bool(have.value_type == want.value_type)
    if pa.types.is_map(have) and pa.types.is_map(want):
        return bool(have.key_type == want.key_type and have.item_type == want.item_type)
    return bool(have == want)


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)


def _to_python(column: Any) -> list[Any]:
    """One column as Python values; numeric lists go through numpy, which is many times faster for token ids."""
    import pyarrow as pa

    if pa.types.is_map(column.type):
        return list(column.to_pylist(maps_as_pydicts="strict"))
    if pa.types.is_list(column.type) and pa.types.is_primitive(column.type.value_type):
        values = column.flatten().to_numpy(zero_copy_only=False).tolist()
        offsets = column.offsets.to_numpy().tolist()
        first = offsets[0] if offsets else 0
        return [values[a - first : b - first] for a, b in pairwise(offsets)]
    return list(column.to_pylist())
