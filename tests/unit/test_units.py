from __future__ import annotations

import pytest

from pipeline.units import bytes_text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1_000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (63_700_000, "63.7 MB"),
        (1_600_000_000_000, "1.6 TB"),
        (2 * 10**18, "2,000.0 PB"),
    ],
)
def test_bytes_are_written_in_decimal_units(count: int, text: str) -> None:
    assert bytes_text(count) == text
