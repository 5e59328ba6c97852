"""A line of a production log: what is written is read, and what is no row is refused with its reason."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.traffic import LogRow, dump, parse

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ids = st.none() | st.lists(st.integers(0, (1 << 31) - 1), max_size=5).map(tuple)
rows = st.builds(
    LogRow,
    prompt=texts,
    output=texts,
    id=st.none() | texts,
    time=st.sampled_from([None, "2026-11-27T08:00:00+00:00", "2026-11-27T08:00:00.250000+00:00"]),
    line=st.none() | texts,
    version=st.none() | st.integers(0, 10**6),
    tokenizer=st.none() | texts,
    prompt_ids=ids,
    output_ids=ids,
    finished=st.none() | st.booleans(),
)


@given(rows)
def test_what_is_written_is_read(row: LogRow) -> None:
    line = dump(row)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert parse(line) == row


def test_only_prompt_and_output_are_asked_for() -> None:
    assert parse(b'{"output": "b", "prompt": "a", "user": {"name": 1}}') == LogRow("a", "b")
    assert parse(b'{"prompt": "a", "output": "", "id": 7, "time": "2026-11-27T09:00:00+01:00"}') == LogRow(
        "a", "", id="7", time="2026-11-27T08:00:00+00:00"
    )
    assert parse(b'{"prompt": "a", "output": "b", "time": "2026-11-27 09:00:00"}').time == "2026-11-27T09:00:00+00:00"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"\xff", "not UTF-8"),
        (b"", "not JSON"),
        (b'{"prompt": "a", "outp', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"output": "b"}', "no prompt"),
        (b'{"prompt": "a", "output": null}', "output is not text"),
        (b'{"prompt": ["a"], "output": "b"}', "prompt is not text"),
        (b'{"prompt": "\\ud800", "output": "b"}', "prompt is not text that UTF-8 can hold"),
        (b'{"prompt": "a", "output": "b", "id": true}', "id is not text"),
        (b'{"prompt": "a", "output": "b", "time": "yesterday"}', "time is not ISO 8601"),
        (b'{"prompt": "a", "output": "b", "time": "0001-01-01T00:00:00+14:00"}', "time is not ISO 8601"),
        (b'{"prompt": "a", "output": "b", "version": "v3"}', "version is not a whole number"),
        (b'{"prompt": "a", "output": "b", "version": true}', "version is not a whole number"),
        (b'{"prompt": "a", "output": "b", "finished": 1}', "finished is neither true nor false"),
        (b'{"prompt": "a", "output": "b", "output_ids": [1, -1]}', "output_ids is not a list of token ids"),
        (b'{"prompt": "a", "output": "b", "prompt_ids": "12"}', "prompt_ids is not a list of token ids"),
        (b'{"prompt": "a", "output": "b", "prompt_ids": [true]}', "prompt_ids is not a list of token ids"),
    ],
)
def test_what_is_no_row_is_refused_with_its_reason(line: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{reason}$"):
        parse(line)


def test_a_number_of_any_size_is_no_trouble() -> None:
    with pytest.raises(ValueError, match=r"^not JSON$"):
        parse(json.dumps({"prompt": "a", "output": "b"}).encode()[:-1] + b', "n": ' + b"9" * 5000 + b"}")
