from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.models.batches import token_batches
from pipeline.models.sequences import pad_sequences

PAD = 99
IDS = st.lists(st.integers(0, 9), min_size=1, max_size=6)
ROWS = st.lists(st.tuples(IDS, IDS), min_size=1, max_size=5)


class TestPadSequences:
    def test_by_hand(self) -> None:
        batch = pad_sequences([[1, 2], [3]], [[4, 5], [6]], PAD)
        assert batch["input_ids"].tolist() == [[1, 2, 4], [3, 6, PAD]]
        assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
        assert batch["labels"].tolist() == [[2, 4, 5], [6, PAD, PAD]]
        assert batch["mask"].tolist() == [[False, True, True], [True, False, False]]

    @given(ROWS)
    def test_the_mask_selects_the_responses_in_order(self, rows: list[tuple[list[int], list[int]]]) -> None:
        batch = pad_sequences([prompt for prompt, _ in rows], [response for _, response in rows], PAD)
        assert batch["labels"][batch["mask"]].tolist() == [token for _, response in rows for token in response]
        assert batch["mask"].sum(-1).tolist() == [len(response) for _, response in rows]

    @given(ROWS)
    def test_every_position_predicts_the_next_token(self, rows: list[tuple[list[int], list[int]]]) -> None:
        batch = pad_sequences([prompt for prompt, _ in rows], [response for _, response in rows], PAD)
        for row, (prompt, response) in enumerate(rows):
            tokens = [*prompt, *response]
            length = len(tokens) - 1
            assert batch["input_ids"][row, :length].tolist() == tokens[:-1]
            assert batch["labels"][row, :length].tolist() == tokens[1:]
            assert batch["attention_mask"][row, :length].all()
            # The last token of a row shorter than the longest is an input too, and nothing after it is.
            assert batch["attention_mask"][row].sum() == min(len(tokens), batch["input_ids"].shape[1])
        assert batch["input_ids"].shape[1] == max(len(p) + len(r) for p, r in rows) - 1

    @given(ROWS)
    def test_prompts_are_scored_except_their_first_token(self, rows: list[tuple[list[int], list[int]]]) -> None:
        batch = pad_sequences([p for p, _ in rows], [r for _, r in rows], PAD, score_prompt=True)
        assert batch["labels"][batch["mask"]].tolist() == [token for p, r in rows for token in [*p, *r][1:]]

    def test_rows_of_padding_alone(self) -> None:
        batch = pad_sequences([[], []], [[], []], PAD)
        assert not batch["mask"].any()
        assert batch["attention_mask"][:, 0].all()
        assert batch["input_ids"].shape == (2, 1)

    def test_types(self) -> None:
        batch = pad_sequences([[1]], [[2]], PAD)
        types = {name: tensor.dtype for name, tensor in batch.items()}
        assert types.pop("mask") == torch.bool
        assert set(types.values()) == {torch.int64}


class TestTokenBatches:
    @given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 120))
    def test_a_partition_within_the_budget(self, lengths: list[int], budget: int) -> None:
        batches = token_batches(lengths, budget)
        assert sorted(position for batch in batches for position in batch) == list(range(len(lengths)))
        for batch in batches:
            assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget

    @given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 120))
    def test_rows_of_a_batch_are_of_similar_length(self, lengths: list[int], budget: int) -> None:
        ordered = [lengths[i] for batch in token_batches(lengths, budget) for i in batch]
        assert ordered == sorted(ordered)

    @given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 120))
    def test_no_two_neighbours_would_fit_in_one_batch(self, lengths: list[int], budget: int) -> None:
        batches = token_batches(lengths, budget)
        for one, other in itertools.pairwise(batches):
            assert (len(one) + 1) * lengths[other[0]] > budget

    def test_equal_lengths_keep_their_order(self) -> None:
        assert token_batches([5, 5, 5, 3], 10) == [[3, 0], [1, 2]]
