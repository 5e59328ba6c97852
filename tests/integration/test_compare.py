"""Comparing by the command line: models that a real job has trained, versions of a registry, and files of outputs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import job
from conftest import FinishedRun

from pipeline.data.tables import read_table
from pipeline.records import PromptTokens, SampleRow

TEXTS = {"good": "A bright and clever film.", "bad": "A dull and awful film.", "so": "A film."}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def outputs(path: Path, words: list[str]) -> str:
    return write(path, [{"prompt": f"Film {i}?", "output": TEXTS[word]} for i, word in enumerate(words)])


def compare(*arguments: str) -> tuple[int, str]:
    code, said = job.run(list(arguments), script="compare.py")
    assert "Traceback" not in said
    return code, said


def result(said: str) -> dict[str, Any]:
    [page] = [line.partition(":")[2].strip() for line in said.splitlines() if line.startswith("page:")]
    assert Path(page).read_text().startswith("<!DOCTYPE html>")
    found: dict[str, Any] = json.loads((Path(page).parent / "compare.json").read_text())
    return found


def test_files_of_outputs_need_no_ray(tmp_path: Path) -> None:
    a = outputs(tmp_path / "a.jsonl", ["bad", "so", "bad", "so"] * 3)
    b = outputs(tmp_path / "b.jsonl", ["good", "so", "good", "bad"] * 3)
    storage = ("--storage", str(tmp_path / "runs"))
    code, said = compare(a, b, *storage)
    assert code == 0, said
    assert "Ray on this machine" not in said
    assert "12 prompts with 1 seed: 12 outputs of each" in said
    found = result(said)
    assert f"verdict: {found['headline']}" in said
    assert found["outputs"] == {"higher": 6, "lower": 3, "equal": 3, "same_text": 3}
    assert [one["b"]["text"] for one in found["regressions"]] == [TEXTS["bad"]] * 3
    assert found["why_no_drift"] == "outputs"
    code, turned = compare(b, a, *storage)
    assert code == 0
    assert result(turned)["outputs"]["higher"] == 3


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    a, other = outputs(tmp_path / "a.jsonl", ["good"]), write(tmp_path / "o.jsonl", [{"prompt": "x", "output": "y"}])
    for arguments, said in (
        ((a, str(tmp_path / "none.jsonl")), "error: B: there is nothing at"),
        ((a, a), "are files with the same content: there is nothing to compare"),
        ((a, other), "error: no prompt is in common (1 in A"),
        ((a, "production"), "error: B: there is no registry at"),
        ((a, str(tmp_path)), "has no config.json, so it is not a Hugging Face model directory"),
    ):
        code, told = compare(*arguments, "--storage", str(tmp_path / "runs"))
        assert code == 1, told
        assert said in told


def test_a_version_against_its_reference(finished_run: FinishedRun, tmp_path: Path) -> None:
    registry = finished_run.storage / "registry"
    common = ("--recipe", str(finished_run.recipe), "--registry.root", str(registry))
    arguments = ("reference", "candidate", *common, "--storage", str(tmp_path / "runs"))
    code, planned = compare(*arguments, "--dry-run")
    assert code == 0, planned
    assert "sample A: to do" in planned
    assert not (tmp_path / "runs").exists()
    code, said = compare(*arguments)
    assert code == 0, said
    assert "B: version 1 (candidate" in said
    assert "started Ray" in said
    found = result(said)
    assert found["drift"]["between"]["a"]["mean"]["value"] > 0
    assert found["drift"]["from_reference"] is None, "one of them is the reference"
    assert all(row["b"]["tokens"] for row in found["regressions"])
    samples = job.summary(finished_run.storage)["evaluation"]
    for side, model in (("a", "reference"), ("b", "policy")):
        mean = found["scorers"]["vader"][side]["mean"]["value"]
        assert mean == pytest.approx(samples["scorers"]["vader"][model]["mean"]["value"]), "the same prompts and noise"

    code, again = compare(*arguments)
    assert code == 0, again
    assert "started Ray" not in again
    assert again.count("reused") == 3
    assert result(again) == found

    # Its own outputs from a file are the same outputs: the model is sampled with the noise of the same prompts.
    [artifact] = (tmp_path / "runs" / "artifacts" / "compare_sample").glob(found["artifacts"]["sample B"])
    rows = read_table(artifact / "samples.parquet", SampleRow)
    own = write(tmp_path / "own.jsonl", [{"prompt": row.prompt, "output": row.text, "seed": row.seed} for row in rows])
    code, said = compare(own, *arguments[1:])
    assert code == 0, said
    assert "started Ray" not in said
    assert result(said)["outputs"]["same_text"] == len(rows)
    prompts = read_table(next(registry.glob("*/models/*/prompts.parquet")), PromptTokens)
    assert {row.prompt_id for row in rows} <= {prompt.prompt_id for prompt in prompts}
