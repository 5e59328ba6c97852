"""Two jobs on one storage at the same time."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import job


def end_of_stages(recipe: Path, storage: Path, folder: Path) -> list[dict[str, str]]:
    """Run two jobs together; returns for each how every stage ended: ✓ computed, = reused."""
    logs = [folder / f"{number}.log" for number in range(2)]
    processes = [job.start(["--recipe", str(recipe), "--storage", str(storage)], log) for log in logs]
    try:
        codes = [process.wait(timeout=500) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    said = [log.read_text() for log in logs]
    assert codes == [0, 0], "\n".join(said)
    assert any("another job computes this (process " in text for text in said)
    last = {text.strip().splitlines()[-1] for text in said}
    assert len(last) == 1, "both publish the same report"
    assert list((storage / "claims").iterdir()) == []
    return [{name: mark for mark, name in re.findall(r"^([✓=]) (\w+)  ", text, re.MULTILINE)} for text in said]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_every_stage_of_a_fresh_storage_is_computed_once(tmp_path: Path) -> None:
    ends = end_of_stages(job.write_recipe(tmp_path), tmp_path / "runs", tmp_path)
    for stage in job.STAGES:
        assert sorted(marks[stage] for marks in ends) == ["=", "✓"], stage
