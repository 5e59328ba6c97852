"""The figures of a benchmark: ratios to the baseline within each round, and the table people read."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from pipeline.bench.config import BASELINE, BenchmarkConfig


def figures(
    config: BenchmarkConfig,
    vocab_size: int,
    seconds: Mapping[str, Sequence[float | None]],
    peaks: Mapping[str, int | None],
) -> list[dict[str, Any]]:
    """One record a subject: seconds, their ratio to the baseline's of the same round (median, lowest, highest),
    peak bytes above the inputs."""
    records = []
    for name, times in seconds.items():
        pairs = [(own, base) for own, base in zip(times, seconds[BASELINE], strict=True) if own and base]
        ratios = [own / base for own, base in pairs]
        records.append(
            {
                "vocabulary": vocab_size,
                "positions": config.positions,
                "subject": name,
                "seconds": statistics.median(own for own, _ in pairs) if pairs else None,
                "ratio": statistics.median(ratios) if ratios else None,
                "ratio_lowest": min(ratios, default=None),
                "ratio_highest": max(ratios, default=None),
                "rounds": len(ratios),
                "peak_bytes": peaks.get(name),
            }
        )
    return records


def table(records: Sequence[Mapping[str, Any]], texts: Mapping[str, str], title: str) -> Table:
    """The records as a table for the terminal."""
    drawn = Table(title=title, title_justify="left")
    drawn.add_column("vocabulary", justify="right")
    drawn.add_column("head", no_wrap=True)
    for name in ("seconds", "x cross-entropy", "lowest to highest", "peak MiB"):
        drawn.add_column(name, justify="right")
    last = None
    for record in records:
        is_new = record["vocabulary"] != last
        if is_new and last is not None:
            drawn.add_section()
        last = record["vocabulary"]
        if record["ratio"] is None:
            cells = ["does not fit", "", ""]
        else:
            spread = f"{record['ratio_lowest']:.2f} to {record['ratio_highest']:.2f}"
            cells = [f"{record['seconds']:.3f}", f"{record['ratio']:.2f}", spread]
        peak = "" if record["peak_bytes"] is None else f"{record['peak_bytes'] / 2**20:,.0f}"
        drawn.add_row(f"{last:,}" if is_new else "", texts[record["subject"]], *cells, peak)
    return drawn
