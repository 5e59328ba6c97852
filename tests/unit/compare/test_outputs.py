"""Files of any system's outputs."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.compare.outputs import read_outputs
from pipeline.errors import DataError


def write(path: Path, *rows: dict[str, Any] | str) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def row(prompt: str, output: str, seed: int | None = None) -> dict[str, Any]:
    return {"prompt": prompt, "output": output} | ({} if seed is None else {"seed": seed})


def test_the_i_th_output_of_a_prompt_is_its_seed_i(tmp_path: Path) -> None:
    file = write(tmp_path / "out.jsonl", row("a", "1"), row("b", "2"), row("a", "3"), row("a", "", 7))
    assert read_outputs(file) == {"a": {0: "1", 1: "3", 7: ""}, "b": {0: "2"}}
    assert list(read_outputs(file)) == ["a", "b"], "in the order of the file"


def test_half_a_character_becomes_a_whole_one(tmp_path: Path) -> None:
    file = write(tmp_path / "out.jsonl", '{"prompt": "a\\ud800", "output": "b\\udfff"}')
    assert read_outputs(file) == {"a\ufffd": {0: "b\ufffd"}}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([row("a", "1"), '{"prompt": "a", '], ":2 is not valid JSON"),
        ([row("a", "1"), "[1]"], ":2 is list, not a JSON object"),
        ([row("a", "1"), {"prompt": "a", "outptu": "x"}], ":2 has no 'output' (it has prompt, outptu)"),
        ([{"output": "x"}], ":1 has no 'prompt' (it has output)"),
        ([{"prompt": "a", "output": None}], ":1: 'output' is NoneType, not text"),
        ([{"prompt": [{"role": "user"}], "output": "x"}], ":1: 'prompt' is list, not text"),
        ([row("", "x")], ":1: 'prompt' is empty"),
        ([row("a", "1", 0), row("a", "2", 0)], ":2 has the prompt and the seed 0 of "),
        ([row("a", "1"), row("a", "2", 0)], ":2 has the prompt and the seed 0 of "),
        ([row("a", "1", -1)], ":1: 'seed' is -1"),
        ([{"prompt": "a", "output": "1", "seed": True}], ":1: 'seed' is True"),
        ([{"prompt": "a", "output": "1", "seed": 0.5}], ":1: 'seed' is 0.5"),
        ([], "holds no outputs"),
        ([row("a", " "), row("b", "")], "all 2 outputs are empty"),
    ],
)
def test_a_faulty_row_is_named(tmp_path: Path, rows: list[Any], said: str) -> None:
    file = write(tmp_path / "out.jsonl", *rows)
    with pytest.raises(DataError) as caught:
        read_outputs(file)
    assert str(file) in str(caught.value)
    assert said in str(caught.value)


def test_another_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "out.txt").write_text("hello")
    with pytest.raises(DataError, match="is no file of outputs: one of"):
        read_outputs(tmp_path / "out.txt")


def test_a_table_is_as_good(tmp_path: Path) -> None:
    (tmp_path / "out.csv").write_text("prompt,output,seed\na,yes,3\nb,no,\n")
    assert read_outputs(tmp_path / "out.csv") == {"a": {3: "yes"}, "b": {0: "no"}}
