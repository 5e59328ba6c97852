"""Amounts in words."""

from __future__ import annotations


def bytes_text(count: int) -> str:
    """Bytes for a reader, in decimal units: ``512 B``, ``63.7 MB``, ``1.6 TB``."""
    size, units = float(count), ["B", "kB", "MB", "GB", "TB", "PB"]
    while size >= 999.95 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{count} B" if units[0] == "B" else f"{size:,.1f} {units[0]}"
