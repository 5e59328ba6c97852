"""What is measured on the nodes of a real Ray, and a worker group that does not fit there."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline import nodes
from pipeline.cluster import check_reachable, check_visible, connected, on_every_node
from pipeline.config import RunConfig
from pipeline.errors import ClusterError
from pipeline.storage import open_storage, write_problem


@pytest.fixture(scope="module", autouse=True)
def local_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    storage = tmp_path_factory.mktemp("storage")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "local")
        with connected(run_with().cluster, open_storage(str(storage))):
            yield


def run_with(**sections: Any) -> RunConfig:
    base = {"data": {"path": "pairs.jsonl"}, "model": {"path": "model", "dtype": "float32"}}
    return RunConfig.model_validate(base | {"cluster": {"num_workers": 1}} | sections)


def refused(run: RunConfig, parameters: int, storage: Path, **options: Any) -> str:
    with pytest.raises(ClusterError) as caught:
        nodes.require_nodes(run, "align", parameters, 1, str(storage), pytest.fail, **options)
    return str(caught.value)


def test_a_node_is_measured_where_it_is(tmp_path: Path) -> None:
    [state] = nodes.node_states(str(tmp_path / "not" / "there"), {"CPU": 1, "GPU": 0})
    machine = psutil.virtual_memory()
    assert 0 < state.memory_available_bytes <= machine.total
    assert state.storage_free_bytes == pytest.approx(psutil.disk_usage(str(tmp_path)).free, rel=0.05)
    assert state.shared_memory_free_bytes <= psutil.disk_usage("/dev/shm").total
    assert state.places >= 1
    assert not (tmp_path / "not").exists()


def test_a_group_that_fits_is_not_held_up(tmp_path: Path) -> None:
    started = time.monotonic()
    nodes.require_nodes(run_with(), "align", 1_000_000, 1, str(tmp_path), pytest.fail)
    assert time.monotonic() - started < 20


def test_a_model_for_another_machine(small_disk: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its disk would do: one in memory may be promised more than there is."""
    monkeypatch.setattr(nodes, "_SETTLE_S", 0.0)
    parameters = psutil.virtual_memory().total // 20
    message = refused(run_with(), parameters, small_disk(f"size={100 * parameters}"))
    assert message.startswith("the training does not fit: memory for 1 train worker(s): each takes at least ")
    assert "the nodes have room for 0 with what is available now (" in message


def test_a_storage_without_room_for_the_checkpoints(
    small_disk: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk of 1 MiB (which takes 4 kB for itself) and checkpoints of 12 bytes a parameter."""
    monkeypatch.setattr(nodes, "_SETTLE_S", 0.0)
    disk = small_disk("size=1m")
    message = refused(run_with(), 40_000, disk / "checkpoints")
    assert message.startswith(f"the training does not fit: storage {disk}/checkpoints has 1.0 MB free (seen from node ")
    assert "but its checkpoints will take 1.4 MB more" in message
    nodes.require_nodes(run_with(), "align", 40_000, 1, str(disk / "checkpoints"), pytest.fail, checkpoints_there=1)
    nodes.require_nodes(run_with(checkpoint={"keep": 1}), "align", 40_000, 1, str(disk / "checkpoints"), pytest.fail)


def test_memory_that_other_work_holds_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another actor has the CPU, and what it leaves is too little, until it ends."""
    import ray

    class Holder:
        def ready(self) -> None:
            pass

    monkeypatch.setattr(nodes, "_SETTLE_S", 0.0)
    holder = ray.remote(num_cpus=1)(Holder).remote()
    ray.get(holder.ready.remote())
    measured = nodes.node_states
    ended = threading.Event()

    def states(storage: Path, worker: dict[str, float]) -> Any:
        return [
            one if ended.is_set() else dataclasses.replace(one, memory_available_bytes=0)
            for one in measured(storage, worker)
        ]

    monkeypatch.setattr(nodes, "node_states", states)
    told: list[str] = []

    def say(text: str) -> None:
        told.append(text)
        ended.set()

    nodes.require_nodes(run_with(), "align", 1_000, 1, str(tmp_path), say)
    [text] = told
    assert text.startswith("waits for memory that other work on the cluster holds: memory for 1 train worker(s)")
    # It ends where patience does.
    measurable = nodes.node_states
    monkeypatch.setattr(
        nodes,
        "node_states",
        lambda *of: [dataclasses.replace(one, memory_available_bytes=0) for one in measurable(*of)],
    )
    brief = run_with(cluster={"num_workers": 1, "resource_wait_s": 1.0})
    with pytest.raises(ClusterError, match="the training does not fit: memory for"):
        nodes.require_nodes(brief, "align", 1_000, 1, str(tmp_path), told.append)
    ray.kill(holder)


def test_a_node_that_fails_gives_no_answer(tmp_path: Path) -> None:
    [(node, answer)] = on_every_node(int, "7")
    assert (node["Alive"], answer) == (True, 7)
    [(_, answer)] = on_every_node(int, "seven")
    assert answer is None
    check_visible(tmp_path, "--storage")


def test_a_node_that_cannot_reach_the_url(s3_url: str) -> None:
    """The job has the credentials; Ray's processes were started without them."""
    assert write_problem(s3_url) is None
    with pytest.raises(
        ClusterError, match=r"--storage: s3://\S+ cannot be used from node\(s\) [\d.]+: .*AWS_ variables"
    ):
        check_reachable(s3_url, "--storage")


def test_a_url_that_every_node_reaches(tmp_path: Path) -> None:
    check_reachable(f"file://{tmp_path}", "--storage")
    assert not [path for path in tmp_path.iterdir() if path.is_file()]
