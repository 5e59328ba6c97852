"""A pool of actors on a real Ray: what it does when they are killed."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.actors import Call, Pool, StandingActors, map_over_actors
from pipeline.cluster import node_resources, places
from pipeline.errors import ClusterError, DataError, ModelError

TWO = Pool(cpus=1, gpus=0, max_actors=2)


class Worker:
    """Hosted by the actors below; ``folder`` is where it leaves marks that outlive it."""

    def __init__(self, offset: int, folder: str, dies_at_start: int = 0) -> None:
        if offset < 0:
            raise ModelError("a negative offset")
        self.offset, self.folder = offset, Path(folder)
        (self.folder / f"started-{os.getpid()}").touch()
        if len(list(self.folder.glob("started-*"))) <= dies_at_start:
            os.kill(os.getpid(), signal.SIGKILL)

    def add(self, number: int, deaths: int = 0) -> int:
        marks = len(list(self.folder.glob(f"died-{number}-*")))
        if marks < deaths:
            (self.folder / f"died-{number}-{marks}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        with (self.folder / "order").open("a") as order:
            order.write(f"{number}\n")
        return self.offset + number

    def refuse(self) -> None:
        (self.folder / "refused").write_text("x" + (self.folder / "refused").read_text())
        raise DataError("row 3 is empty")

    def about_another(self) -> None:
        from ray.exceptions import ActorDiedError

        (self.folder / "refused").write_text("x" + (self.folder / "refused").read_text())
        raise ActorDiedError()


@pytest.fixture(scope="module", autouse=True)
def small_ray() -> Iterator[None]:
    """A Ray of its own with two CPUs."""
    # RAY_AUTH_MODE stays as it was when the first test imported Ray: the GCS would see another one than this process.
    import ray

    # Actors find this module wherever pytest was started.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def add(number: int, deaths: int = 0) -> Call:
    return Call("add", (number, deaths), f"number {number}")


def mapped(folder: Path, calls: list[Call], pool: Pool = TWO, **options: Any) -> list[Any]:
    results: dict[int, Any] = {}

    def on_result(index: int, result: Any) -> None:
        assert index not in results, "a result came twice"
        results[index] = result

    map_over_actors(Worker, (10, str(folder), options.pop("dies_at_start", 0)), pool, calls, on_result, **options)
    return [results[index] for index in range(len(calls))]


def alive_processes(folder: Path) -> list[int]:
    pids = [int(path.name.partition("-")[2]) for path in folder.glob("started-*")]
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_every_call_has_its_result(tmp_path: Path) -> None:
    assert mapped(tmp_path, [add(number) for number in range(7)]) == list(range(10, 17))
    assert mapped(tmp_path, []) == []
    deadline = time.monotonic() + 10
    while alive_processes(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive_processes(tmp_path)


def test_killed_actors_are_replaced_and_their_calls_done_again(tmp_path: Path) -> None:
    died: list[str] = []
    calls = [add(0), add(1, deaths=2), add(2), add(3), add(4, deaths=1), add(5, deaths=1)]  # the last ones too
    assert mapped(tmp_path, calls, on_death=died.append) == list(range(10, 16))
    assert sorted(died) == ["number 1", "number 1", "number 4", "number 5"]
    assert len(list(tmp_path.glob("started-*"))) <= 2 + 4


def test_standing_actors_stay_between_maps_and_are_replaced_when_they_die(tmp_path: Path) -> None:
    died: list[str] = []
    with StandingActors(Worker, (10, str(tmp_path)), TWO, "options") as actors:
        assert actors.map([]) == []
        assert actors.map([add(0)]) == [10]
        assert len(alive_processes(tmp_path)) == 1, "no more than there are calls"
        assert actors.map([add(number) for number in range(6)]) == list(range(10, 16))
        processes = set(alive_processes(tmp_path))
        assert actors.map([add(number) for number in range(6)]) == list(range(10, 16))
        assert processes <= set(alive_processes(tmp_path)), "what was there before is there still"
        assert len(alive_processes(tmp_path)) <= 2
        os.kill(next(iter(processes)), signal.SIGKILL)  # while it waits
        assert actors.map([add(7), add(8, deaths=1), add(9)], died.append) == [17, 18, 19]
    assert "number 8" in died
    deadline = time.monotonic() + 10
    while alive_processes(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive_processes(tmp_path)


def test_the_call_of_a_dead_actor_comes_before_the_others(tmp_path: Path) -> None:
    calls = [add(0, deaths=1), *(add(number) for number in range(1, 4))]
    mapped(tmp_path, calls, Pool(cpus=1, gpus=0, max_actors=1))
    assert (tmp_path / "order").read_text().split() == ["0", "1", "2", "3"]


def test_a_call_that_always_kills_ends_the_map(tmp_path: Path) -> None:
    died: list[str] = []
    with pytest.raises(ClusterError, match=r"^3 actors died while they computed number 1; .*lower one of x;"):
        mapped(tmp_path, [add(0), add(1, deaths=99), add(2)], on_death=died.append, lower="x")
    assert died == ["number 1", "number 1"]
    assert len(list(tmp_path.glob("died-1-*"))) == 3


def test_a_death_while_starting_is_got_over(tmp_path: Path) -> None:
    assert mapped(tmp_path, [add(0), add(1)], Pool(1, 0, 1), dies_at_start=2) == [10, 11]
    assert len(list(tmp_path.glob("started-*"))) == 3


def test_actors_that_always_die_while_starting_end_the_map(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"^3 actors in a row died while starting \(Worker\); the last one: "):
        mapped(tmp_path, [add(0), add(1)], Pool(1, 0, 1), dies_at_start=99)
    assert len(list(tmp_path.glob("started-*"))) == 3


@pytest.mark.parametrize(
    ("offset", "method", "error", "message"),
    [
        (-1, "refuse", ModelError, "^a negative offset$"),
        (0, "refuse", DataError, "^row 3 is empty$"),
        (0, "about_another", ClusterError, "^a worker process died"),
    ],
)
def test_what_hosted_code_raises_is_not_tried_again(
    tmp_path: Path, offset: int, method: str, error: type[Exception], message: str
) -> None:
    (tmp_path / "refused").touch()
    with pytest.raises(error, match=message):
        map_over_actors(Worker, (offset, str(tmp_path)), TWO, [Call(method, (), "it")], lambda index, result: None)
    assert (tmp_path / "refused").read_text() == ("x" if offset == 0 else "")


def test_calls_are_taken_as_actors_come_free(tmp_path: Path) -> None:
    taken, done, most = 0, 0, 0

    def lazy() -> Iterator[Call]:
        nonlocal taken, most
        for number in range(12):
            taken += 1
            most = max(most, taken - done)
            yield add(number, deaths=int(number == 5))

    def on_result(index: int, result: int) -> None:
        nonlocal done
        assert result == 10 + index
        done += 1

    map_over_actors(Worker, (10, str(tmp_path)), TWO, lazy(), on_result)
    assert (taken, done, most) == (12, 12, 2)


def test_an_error_of_the_caller_ends_the_map_and_the_actors(tmp_path: Path) -> None:
    def on_result(index: int, result: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        map_over_actors(Worker, (10, str(tmp_path)), TWO, [add(number) for number in range(4)], on_result)
    deadline = time.monotonic() + 10
    while alive_processes(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive_processes(tmp_path)


def test_maps_that_share_a_small_cluster_all_end(tmp_path: Path) -> None:
    results: list[list[int]] = []

    def run(number: int) -> None:
        folder = tmp_path / str(number)
        folder.mkdir()
        results.append(mapped(folder, [add(index, deaths=int(index == 3)) for index in range(6)]))

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == [list(range(10, 16))] * 3


def test_the_size_of_a_pool() -> None:
    assert places(node_resources(), {"CPU": 1.0}) == 2
    assert [Pool(cpus, 0, most).size() for cpus, most in [(1, 9), (1, 1), (2, 9), (0.5, 3), (5, 9)]] == [2, 1, 1, 3, 1]
