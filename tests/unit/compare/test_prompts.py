"""Which prompts and seeds two sides have in common."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.compare.prompts import Answers, Prompt, common, prompt_of, read_prompts
from pipeline.data.tables import write_table
from pipeline.errors import DataError
from pipeline.records import PromptTokens


def prompts(*texts: str) -> list[Prompt]:
    return [prompt_of(text) for text in texts]


class TestReading:
    def test_text_alone_and_each_once(self, tmp_path: Path) -> None:
        file = tmp_path / "prompts.jsonl"
        file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("b", "a", "b")))
        assert read_prompts(file) == prompts("b", "a")

    def test_tokens_come_along(self, tmp_path: Path) -> None:
        rows = [PromptTokens("id1", "g", "one", [1, 2]), PromptTokens("id2", "h", "two", [3])]
        write_table(tmp_path / "prompts.parquet", rows, PromptTokens)
        assert read_prompts(tmp_path / "prompts.parquet") == [Prompt("one", "id1", (1, 2)), Prompt("two", "id2", (3,))]

    def test_one_id_for_two_prompts(self, tmp_path: Path) -> None:
        rows = [PromptTokens("id1", "g", "one", [1, 2]), PromptTokens("id1", "h", "two", [3])]
        write_table(tmp_path / "prompts.parquet", rows, PromptTokens)
        with pytest.raises(DataError, match=r"parquet:2 has the prompt_id 'id1' of another prompt"):
            read_prompts(tmp_path / "prompts.parquet")

    @pytest.mark.parametrize(
        ("name", "text", "said"),
        [
            ("p.jsonl", '{"prompt": ["a"]}\n', "p.jsonl:1 has no text in 'prompt'"),
            ("p.jsonl", '{"prompt": "a"}\n{"text": "b"}\n', "p.jsonl:2 has no text in 'prompt'"),
            ("p.jsonl", "", "holds no prompt"),
            ("p.parquet", "no table", "cannot be read as Parquet"),
            ("p.txt", "a", "is no file of prompts"),
        ],
    )
    def test_a_faulty_file(self, tmp_path: Path, name: str, text: str, said: str) -> None:
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError) as caught:
            read_prompts(tmp_path / name)
        assert said in str(caught.value)


class TestInCommon:
    def test_two_models_take_the_first_prompts_of_their_source(self) -> None:
        found = common({"A": prompts("a", "b", "c")}, {}, (2, 0), 2)
        assert [one.text for one in found.prompts] == ["a", "b"]
        assert (found.seeds, found.more_prompts, found.left_out) == ((0, 2), 1, {})

    def test_two_versions_are_compared_on_what_both_were_judged_by(self) -> None:
        found = common({"A": prompts("a", "b", "c"), "B": prompts("c", "d", "b")}, {}, (0,), 80)
        assert [one.text for one in found.prompts] == ["b", "c"]
        assert found.left_out == {"A": 1, "B": 1}

    def test_tokens_are_taken_from_whoever_has_them(self) -> None:
        known = Prompt("b", "known", (4, 5))
        found = common({"--prompts": prompts("a", "b")}, {}, (0,), 80, [known])
        assert found.prompts == (prompt_of("a"), known)

    def test_a_file_of_outputs_and_a_model(self) -> None:
        answers: dict[str, Answers] = {"A": {"a": {0: "x", 1: "y", 9: "z"}, "b": {0: "x", 1: "y"}, "c": {1: "x"}}}
        found = common({}, answers, (0, 1, 2), 2)
        assert [one.text for one in found.prompts] == ["a", "b"]
        assert (found.seeds, found.more_prompts, found.outputs_left_out) == ((0, 1), 1, 1)

    def test_two_files_of_outputs_are_compared_whole(self) -> None:
        mine: Answers = {str(number): {5: "x", 6: "y"} for number in range(100)}
        other: Answers = {str(number): {5: "x"} for number in range(50, 150)}
        found = common({}, {"A": mine, "B": other}, (0, 1), 80)
        assert [one.text for one in found.prompts] == [str(number) for number in range(50, 100)]
        assert (found.seeds, found.left_out, found.outputs_left_out) == ((5,), {"A": 50, "B": 50}, 50)

    def test_a_prompt_with_other_seeds_leaves_those_that_all_have(self) -> None:
        answers: dict[str, Answers] = {
            "A": {"a": {0: "", 1: ""}, "b": {1: ""}},
            "B": {"a": {0: "", 1: ""}, "b": {1: ""}},
        }
        assert common({}, answers, (0,), 80).seeds == (1,)

    def test_nothing_in_common(self) -> None:
        with pytest.raises(DataError, match=r"no prompt is in common \(1 in A, 2 in B\)"):
            common({"A": prompts("a")}, {"B": {"b": {0: ""}, "a ": {0: ""}}}, (0,), 80)

    def test_no_seed_in_common(self) -> None:
        with pytest.raises(DataError, match=r"no seed is in common.*A has 7, 8.*evaluation.seeds are 0, 1"):
            common({}, {"A": {"a": {7: "", 8: ""}}}, (0, 1), 80)
        with pytest.raises(DataError, match="no seed is in common"):
            common({}, {"A": {"a": {0: ""}}, "B": {"a": {1: ""}}}, (0, 1), 80)

    @given(
        st.dictionaries(st.sampled_from("abcdef"), st.sets(st.integers(0, 4), min_size=1), min_size=1),
        st.dictionaries(st.sampled_from("abcdef"), st.sets(st.integers(0, 4), min_size=1), min_size=1),
    )
    def test_every_compared_output_is_there_on_both_sides(self, a: dict[str, set[int]], b: dict[str, set[int]]) -> None:
        answers: dict[str, Answers] = {
            name: {prompt: dict.fromkeys(seeds, "") for prompt, seeds in side.items()}
            for name, side in (("A", a), ("B", b))
        }
        shared = set(a) & set(b)
        try:
            found = common({}, answers, (0,), 80)
        except DataError:
            assert not shared or not set.intersection(*(a[one] & b[one] for one in shared))
            return
        assert {one.text for one in found.prompts} == shared
        for prompt in found.prompts:
            assert set(found.seeds) <= a[prompt.text] & b[prompt.text]
        kept = 2 * len(found.prompts) * len(found.seeds)
        assert kept + found.outputs_left_out == sum(len(side[one]) for side in (a, b) for one in shared)
