"""The decoding thread: who is taken, who has to wait, what happens when something breaks."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.models.load import load_model, load_tokenizer
from pipeline.serving import engine as serving_engine
from pipeline.serving.decoding import Batch, Piece, Row, Settings
from pipeline.serving.engine import Engine, FullError, Loaded

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def loaded(version_models: list[Path]) -> Loaded:
    path = version_models[0]
    return Loaded(1, "id", load_model(path, torch.float32), load_tokenizer(path), "digest", 64, 285, CPU)


class Client:
    """Makes rows and waits for their ends."""

    def __init__(self) -> None:
        self.ends: queue.Queue[tuple[int, Piece | Exception]] = queue.Queue()

    def row(self, number: int, tokens: int = 30) -> Row:
        return Row([40 + number], Settings(tokens), number, lambda piece: self.ends.put((number, piece)))

    def wait(self, count: int) -> dict[int, Piece | Exception]:
        return dict(self.ends.get(timeout=20) for _ in range(count))


def engine(**options: Any) -> Engine:
    usual = {"max_rows": 2, "max_batch_tokens": 1000, "max_batches": 2, "max_waiting": 8, "batch_wait_s": 0.0}
    return Engine(**{**usual, **options})


def test_everybody_s_turn_comes(loaded: Loaded) -> None:
    client, works = Client(), engine(max_waiting=100)
    other = replace(loaded, version=2)
    for number in range(20):
        works.submit(loaded if number % 3 else other, [client.row(number)])
    assert sorted(client.wait(20)) == list(range(20))
    assert works.load().waiting == 0
    works.close()


def test_what_is_too_much_is_not_taken_at_all(loaded: Loaded) -> None:
    client, works = Client(), engine(max_waiting=4)
    with pytest.raises(FullError, match="0 outputs wait already, 4 may"):
        works.submit(loaded, [client.row(number) for number in range(5)])
    works.submit(loaded, [client.row(9)])
    assert list(client.wait(1)) == [9]
    assert client.ends.empty()
    works.close()


def test_a_short_output_does_not_wait_for_a_long_one(loaded: Loaded) -> None:
    client, works = Client(), engine(max_rows=1)
    works.submit(loaded, [client.row(0, tokens=60)])
    works.submit(loaded, [client.row(1, tokens=2)])
    assert [client.ends.get(timeout=20)[0] for _ in range(2)] == [1, 0]
    works.close()


def test_what_breaks_ends_its_own_batch_only(loaded: Loaded) -> None:
    client, works = Client(), engine()
    broken = replace(loaded, model=torch.nn.Linear(2, 2))
    works.submit(broken, [client.row(0), client.row(1)])
    works.submit(loaded, [client.row(2)])
    ends = client.wait(3)
    assert isinstance(ends[0], Exception)
    assert isinstance(ends[1], Exception)
    assert isinstance(ends[2], Piece)
    works.close()


def test_at_the_end_everybody_is_told(loaded: Loaded) -> None:
    client, works = Client(), engine(max_batches=1)
    for number in range(6):
        works.submit(loaded, [client.row(number, tokens=60)])
    works.close()
    assert sorted(client.wait(6)) == list(range(6))


def test_who_has_left_is_not_taken(loaded: Loaded) -> None:
    client, works = Client(), engine(max_batches=1, max_rows=1)
    works.submit(loaded, [client.row(0, tokens=40)])
    left = client.row(1)
    left.cancelled = True
    works.submit(loaded, [left])
    works.submit(loaded, [client.row(2)])
    assert sorted(client.wait(2)) == [0, 2]
    assert left.ids == []
    works.close()


def test_long_rows_do_not_go_into_one_batch(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 1 + 30 tokens a row two fit into 62, and at 1 + 60 none beside another; alone each is decoded."""
    sizes: list[int] = []

    class Seen(Batch):
        def __init__(self, model: Any, tokenizer: Any, rows: Sequence[Row], device: torch.device) -> None:
            sizes.append(len(rows))
            super().__init__(model, tokenizer, rows, device)

    monkeypatch.setattr(serving_engine, "Batch", Seen)
    client, works = Client(), engine(max_rows=4, max_batch_tokens=62, max_batches=1)
    works.submit(loaded, [client.row(number) for number in range(4)] + [client.row(n, tokens=60) for n in (4, 5)])
    assert sorted(client.wait(6)) == list(range(6))
    assert sizes == [2, 2, 1, 1]
    works.close()


def test_a_batch_that_cannot_be_made_ends_nobody_else(loaded: Loaded) -> None:
    client, works = Client(), engine(max_rows=1)
    works.submit(replace(loaded, device="no device"), [client.row(0)])  # type: ignore[arg-type]
    works.submit(loaded, [client.row(1)])
    ends = client.wait(2)
    assert isinstance(ends[0], Exception)
    assert isinstance(ends[1], Piece), "the decoding thread lives on"
    works.close()


def test_after_the_end_nothing_is_taken(loaded: Loaded) -> None:
    works = engine()
    works.close()
    with pytest.raises(FullError, match="shutting down"):
        works.submit(loaded, [Client().row(0)])
