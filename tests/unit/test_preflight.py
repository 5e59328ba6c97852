from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import GuardConfig, RunConfig
from pipeline.preflight import Needs, NodeState, checkpoints_held, needs_of, room_problem, storage_problem

MIB, GIB = 2**20, 2**30
PROCESS = 256 * MIB


def run_with(**sections: Any) -> RunConfig:
    model = {"path": "model", "dtype": sections.pop("dtype", "float32")}
    return RunConfig.model_validate({"data": {"path": "pairs.jsonl"}, "model": model} | sections)


def needs(workers: int = 2, worker: int = 10, first: int = 10, shared: int = 0, storage: int = 0) -> Needs:
    return Needs(workers, worker, first, shared, storage, "/runs")


def node(address: str = "a", memory: int = 100, shared: int = 100, storage: int = 100, places: int = 8) -> NodeState:
    return NodeState(address, memory, shared, storage, places)


def problems(wanted: Needs, nodes: list[NodeState]) -> list[str]:
    return [found for found in (storage_problem(wanted, nodes), room_problem(wanted, nodes)) if found is not None]


class TestNeeds:
    def of(self, workers: int = 2, kind: Any = "align", there: int = 0, **sections: Any) -> Needs:
        return needs_of(run_with(**sections), kind, 1_000, workers, "/runs", there)

    @pytest.mark.parametrize(
        ("stage", "dtype", "workers", "each", "first"),
        [
            (3, "float32", 1, 12_000 + 12_000, 12_000 + 12_000),
            (3, "float32", 4, 3_000 + 3_000, 3_000 + 4_000),
            (3, "bfloat16", 4, 3_500 + 3_000, 3_500 + 3_000),
            (2, "float32", 4, 6_000 + 3_000, 6_000 + 4_000),
            (2, "bfloat16", 4, 5_000 + 3_000, 5_000 + 3_000),
            (1, "float32", 4, 6_000 + 3_000, 6_000 + 4_000),
            (0, "float32", 4, 12_000 + 4_000, 12_000 + 4_000),
            (0, "float32", 2, 12_000 + 6_000, 12_000 + 6_000),
            (0, "bfloat16", 4, 14_000 + 3_000, 14_000 + 3_000),
        ],
    )
    def test_memory_by_hand(self, stage: int, dtype: str, workers: int, each: int, first: int) -> None:
        """1,000 parameters: what is kept, and the largest of gradients, copy for a checkpoint (12 bytes a parameter,
        divided among the workers) and, on the first worker, whole weights."""
        found = self.of(workers, dtype=dtype, train={"optim": {"zero_stage": stage}})
        assert (found.worker_bytes, found.first_worker_bytes) == (PROCESS + each, PROCESS + first)
        assert found.shared_bytes == 0

    def test_on_gpus_the_state_is_not_in_the_nodes_memory(self) -> None:
        found = self.of(cluster={"gpus_per_worker": 1}, dtype="bfloat16")
        assert (found.worker_bytes, found.first_worker_bytes) == (PROCESS + 6_000, PROCESS + 6_000)
        assert found.shared_bytes == 32 * MIB

    def test_each_stage_has_its_own_options(self) -> None:
        sections = {"sft": {"steps": 1, "optim": {"zero_stage": 0}}, "train": {"guard": {"on_spike": "roll_back"}}}
        assert self.of(kind="sft", **sections).worker_bytes == PROCESS + 12_000 + 6_000
        assert self.of(kind="align", **sections).worker_bytes == PROCESS + 6_000 + 6_000
        assert self.of(kind="sft", **sections).storage_bytes == 3 * 12_000
        assert self.of(kind="align", **sections).storage_bytes == 4 * 12_000

    def test_checkpoints_that_are_there_need_no_room_but_the_next_one_does(self) -> None:
        assert [self.of(there=there).storage_bytes for there in (0, 1, 2, 3, 4)] == [36_000, 24_000, 12_000] + [
            12_000
        ] * 2
        assert self.of(checkpoint={"keep": 5}, there=1).storage_bytes == 5 * 12_000
        assert checkpoints_held(2, GuardConfig()) == 3


class TestProblems:
    def test_what_fits(self) -> None:
        assert problems(needs(), [node(memory=20, storage=0, shared=0)]) == []
        assert problems(needs(first=30, worker=10), [node("a", memory=15), node("b", memory=30)]) == []

    def test_too_little_memory(self) -> None:
        run = run_with(cluster={"num_workers": 2})
        wanted = needs_of(run, "align", 7_000_000_000, 2, "/runs", 0)
        state = NodeState("10.0.0.7", 64 * GIB, GIB, 10**15, 2)
        [message] = problems(wanted, [state])
        assert message.startswith("memory for 2 train worker(s): each takes at least 84.3 GB, but the nodes have room ")
        assert "room for 0 with what is available now (10.0.0.7 has 68.7 GB): " in message
        assert "--cluster.num_workers" in message
        assert "optim.zero_stage 3" in message
        assert problems(wanted, [dataclasses.replace(state, memory_available_bytes=200 * 10**9)]) == []

    def test_the_first_worker_takes_more(self) -> None:
        wanted = needs(workers=2, worker=10, first=40)
        [message] = problems(wanted, [node(memory=49)])
        assert "each takes at least 10 B, the first one 40 B" in message
        assert "room for 1 with" in message
        assert problems(wanted, [node(memory=50)]) == []
        [message] = problems(wanted, [node("a", memory=39), node("b", memory=39)])
        assert "room for 0 with what is available now (a has 39 B, b has 39 B)" in message

    def test_workers_without_a_place_are_not_judged(self) -> None:
        assert problems(needs(workers=9), [node(memory=10, places=1)]) == []
        assert problems(needs(workers=9), [node(memory=9, places=1)]) != []

    def test_a_node_takes_no_more_workers_than_it_has_places_for(self) -> None:
        assert problems(needs(workers=3), [node("a", places=2), node("b", memory=9)]) != []
        assert problems(needs(workers=3), [node("a", places=2), node("b", memory=10)]) == []

    def test_dockers_default_of_shared_memory(self) -> None:
        wanted = needs(workers=4, shared=32 * MIB)
        [message] = problems(wanted, [node("a", shared=64 * MIB)])
        assert message.startswith("shared memory for 4 train worker(s) on GPUs: each takes 33.6 MB of /dev/shm, but ")
        assert "room for 2 with what is available now (a has 67.1 MB)" in message
        assert "--shm-size" in message
        assert problems(wanted, [node("a", shared=64 * MIB), node("b", shared=64 * MIB)]) == []
        assert problems(needs(workers=4, shared=0), [node("a", shared=0)]) == []

    def test_a_full_storage(self) -> None:
        wanted = needs(storage=36_000)
        [message] = problems(wanted, [node("a", storage=10**6), node("b", storage=35_999)])
        assert message.startswith("storage /runs has 36.0 kB free (seen from node b), but its checkpoints will take")
        assert "--checkpoint.keep" in message
        assert "--storage" in message
        assert len(problems(needs(storage=36_000), [node(memory=9)])) == 2

    def test_nodes_that_do_not_answer_refuse_nothing(self) -> None:
        assert problems(needs(storage=1), []) == []


STATES = st.builds(
    node,
    memory=st.integers(0, 60),
    shared=st.integers(0, 60),
    places=st.integers(0, 3),
)


@given(
    st.lists(STATES, max_size=3),
    st.builds(
        needs, workers=st.integers(1, 4), worker=st.integers(1, 30), first=st.integers(1, 50), shared=st.integers(0, 30)
    ),
)
def test_it_is_refused_when_no_arrangement_fits(nodes: list[NodeState], wanted: Needs) -> None:
    """Every way of giving each worker a node is tried; worker 0 is the one that gathers the weights."""
    wanted = dataclasses.replace(
        wanted,
        workers=min(wanted.workers, sum(one.places for one in nodes)),
        first_worker_bytes=max(wanted.first_worker_bytes, wanted.worker_bytes),
    )

    def works(arrangement: tuple[int, ...]) -> bool:
        for index, state in enumerate(nodes):
            here = [rank for rank, place in enumerate(arrangement) if place == index]
            memory = sum(wanted.worker_bytes if rank else wanted.first_worker_bytes for rank in here)
            if len(here) > state.places or memory > state.memory_available_bytes:
                return False
            if wanted.shared_bytes and len(here) * wanted.shared_bytes > state.shared_memory_free_bytes:
                return False
        return True

    fits = any(map(works, itertools.product(range(len(nodes)), repeat=wanted.workers)))
    assert (problems(wanted, nodes) == []) == fits
