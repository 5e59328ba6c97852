from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.digests import digest_file, digest_files, digest_json, digest_tensors, seal, unseal

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5), VALUES, max_size=4), st.randoms())
def test_the_order_of_keys_does_not_count(value: dict, random: object) -> None:
    keys = list(value)
    random.shuffle(keys)
    assert digest_json({key: value[key] for key in keys}) == digest_json(value)


def test_a_known_value() -> None:
    expected = hashlib.sha256('{"a":[1,2.5,null],"é":"x"}'.encode()).hexdigest()
    assert digest_json({"é": "x", "a": [1, 2.5, None]}) == expected


@pytest.mark.parametrize(
    "other", [{"a": 2}, {"a": 1.0}, {"a": "1"}, {"a": True}, {"a": [1]}, {"b": 1}, {"a": 1, "b": None}, {}]
)
def test_different_values_differ(other: dict) -> None:
    assert digest_json(other) != digest_json({"a": 1})


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_json_does_not_know_is_refused(number: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        digest_json({"a": number})


def test_hash_randomisation_does_not_count() -> None:
    program = "from pipeline.digests import digest_json; print(digest_json({k: k for k in {'a', 'b', 'c', 'd'}}))"
    root = Path(__file__).parents[2]
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert len(found) == 1


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_a_file_is_read_whole(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)
    assert digest_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_files_count_by_relative_name_and_content(tmp_path: Path) -> None:
    for root in (tmp_path / "one", tmp_path / "two"):
        root.mkdir()
        (root / "a").write_text("1")
        (root / "b").write_text("2")
    one, two = tmp_path / "one", tmp_path / "two"
    digest = digest_files(one, [one / "a", one / "b"])
    assert digest == digest_files(two, [two / "b", two / "a"])
    (two / "a").write_text("2")
    (two / "b").write_text("1")
    assert digest != digest_files(two, [two / "a", two / "b"])


def test_tensors_count_by_name_bytes_type_and_shape() -> None:
    base = ("w", b"1234", "torch.float32", (1, 1))
    digest = digest_tensors([base, ("v", b"", "torch.float32", (0,))])
    assert digest == digest_tensors([("v", b"", "torch.float32", (0,)), base])
    others = [("x", *base[1:]), (base[0], b"1235", *base[2:]), (*base[:2], "torch.int32", (1, 1)), (*base[:3], (1,))]
    assert len({digest_tensors([other]) for other in (base, *others)}) == 5


SEALED: dict[str, object] = {"name": 'ünïcode "x"', "rate": 1e-7, "list": [1, [2.5, None]], "nested": {"a": True}}


def test_what_is_sealed_comes_back() -> None:
    assert unseal(seal(SEALED)) == SEALED


def test_any_other_byte_breaks_the_seal() -> None:
    data = seal(SEALED)
    for position in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[position] ^= 1 << bit
            with pytest.raises(ValueError):  # noqa: PT011 (JSON, Unicode and digest errors are all of this class)
                unseal(bytes(changed))
    for other in (b"", b"[]", b"{}", b'{"seal": 1}', data + b" ", data[:-1]):
        with pytest.raises(ValueError):  # noqa: PT011
            unseal(other)
