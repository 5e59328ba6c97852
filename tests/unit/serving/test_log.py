"""The comparison log: whole lines, files of a bounded size, and nobody waits for it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from pipeline.serving.log import LogWriter
from pipeline.traffic import LogRow, parse


def rows_in(directory: Path) -> list[LogRow]:
    files = sorted(directory.glob("*.jsonl"))
    return [parse(text) for path in files for text in path.read_bytes().splitlines(keepends=True)]


def test_files_end_at_their_size_and_with_the_day(tmp_path: Path) -> None:
    days = iter([*[datetime(2026, 11, 27, 23, 59, tzinfo=UTC)] * 10, *[datetime(2026, 11, 28, tzinfo=UTC)] * 90])
    writer = LogWriter(tmp_path / "log", lambda count: None, file_bytes=200, now=lambda: next(days))
    rows = [LogRow("a prompt", "o" * 50, id=str(number)) for number in range(20)]
    for row in rows:
        writer.write(row)
    writer.close()
    assert rows_in(tmp_path / "log") == rows
    names = [path.name for path in sorted((tmp_path / "log").iterdir())]
    assert {name[:8] for name in names} == {"20261127", "20261128"}
    assert all(path.stat().st_size < 300 for path in (tmp_path / "log").iterdir())


def test_a_full_disk_loses_rows_and_counts_them(small_disk: Callable[[str], Path]) -> None:
    directory, lost = small_disk("size=64k") / "log", []
    writer = LogWriter(directory, lost.append)
    rows = [LogRow("a prompt", "o" * 1000, id=str(number)) for number in range(100)]
    for row in rows:
        writer.write(row)
    writer.close()
    whole = 0
    for path in directory.glob("*.jsonl"):
        for text in path.read_bytes().splitlines(keepends=True):
            assert text.endswith(b"\n"), "no line is cut off"
            assert parse(text) in rows
            whole += 1
    assert 0 < whole < 100
    assert sum(lost) == 100 - whole
    assert len(list(directory.glob("*.jsonl"))) == 1, "a full disk is not filled with files"
