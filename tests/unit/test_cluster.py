from __future__ import annotations

import pickle
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import cluster
from pipeline.cluster import places, ray_errors, runs_that_fit, shortage
from pipeline.config import ClusterConfig
from pipeline.errors import ClusterError, DataError

CPU2 = {"CPU": 2.0}
GPU1 = {"CPU": 8.0, "GPU": 1.0}


def lacks(config: ClusterConfig, nodes: list[Any], least: int | None = None) -> str | None:
    actor = {"CPU": config.cpus_per_actor, "GPU": config.gpus_per_actor}
    return shortage(config.num_workers if least is None else least, actor, config, nodes)


class TestShortage:
    @pytest.mark.parametrize(
        ("options", "nodes"),
        [
            ({}, [CPU2]),
            ({}, [{"CPU": 1.0}, {"CPU": 1.0}]),
            ({"cpus_per_worker": 2}, [CPU2, CPU2]),
            ({"gpus_per_worker": 1}, [GPU1, GPU1]),
            ({"gpus_per_worker": 0.5}, [GPU1]),
            ({"num_workers": 10, "gpus_per_worker": 0.1}, [{"CPU": 16.0, "GPU": 1.0}]),
            ({"gpus_per_actor": 1}, [CPU2, GPU1]),
        ],
    )
    def test_enough(self, options: dict[str, Any], nodes: list[Any]) -> None:
        assert lacks(ClusterConfig(**options), nodes) is None

    def test_a_training_under_way_may_go_on_with_fewer(self) -> None:
        config = ClusterConfig(num_workers=4, min_workers=2)
        assert lacks(config, [CPU2]) is not None
        assert lacks(config, [CPU2], least=config.min_workers) is None
        assert "cluster.min_workers is 2" in str(lacks(config, [{"CPU": 1.0}], least=config.min_workers))

    @pytest.mark.parametrize(
        ("options", "nodes", "message"),
        [
            (
                {"num_workers": 3},
                [CPU2],
                r"num_workers is 3 with 1 CPU\(s\) each .*1 node\(s\) has 2 CPU\(s\) and room for 2",
            ),
            ({"num_workers": 1, "cpus_per_worker": 2}, [{"CPU": 1.0}, {"CPU": 1.0}], "room for 0"),
            ({"gpus_per_worker": 1}, [CPU2], r"1 CPU\(s\) and 1 GPU\(s\) each .* room for 0"),
            ({"gpus_per_worker": 1}, [GPU1, CPU2], "room for 1"),
            ({}, [], r"0 node\(s\) has none"),
            ({"cpus_per_actor": 4}, [CPU2, CPU2], r"no node has the 4 CPU\(s\) of an actor"),
            ({"gpus_per_actor": 1}, [CPU2, {"GPU": 1.0}], "no node has"),
        ],
    )
    def test_too_little(self, options: dict[str, Any], nodes: list[Any], message: str) -> None:
        with pytest.raises(ClusterError, match=message):
            raise ClusterError(lacks(ClusterConfig(**options), nodes))

    @given(
        st.lists(st.fixed_dictionaries({"CPU": st.integers(0, 9), "GPU": st.integers(0, 3)}), max_size=4),
        st.integers(1, 6),
        st.integers(1, 3),
        st.sampled_from([0, 0.25, 0.5, 1, 2]),
    )
    def test_it_agrees_with_placing_workers_one_by_one(
        self, nodes: list[dict[str, int]], num_workers: int, cpus: int, gpus: float
    ) -> None:
        config = ClusterConfig(num_workers=num_workers, cpus_per_worker=cpus, gpus_per_worker=gpus)
        free = [dict(node) for node in nodes]
        placed = 0
        while placed < num_workers:
            node = next((node for node in free if node["CPU"] >= cpus and node["GPU"] >= gpus), None)
            if node is None:
                break
            node["CPU"] -= cpus
            node["GPU"] -= gpus
            placed += 1
        actor_fits = any(node["CPU"] >= 1 for node in nodes)
        assert (lacks(config, nodes) is None) == (placed == num_workers and actor_fits)


class TestPlaces:
    @pytest.mark.parametrize(
        ("nodes", "needs", "expected"),
        [
            ([CPU2], {"CPU": 1, "GPU": 0}, 2),
            ([CPU2, CPU2], {"CPU": 2}, 2),
            ([{"CPU": 3.0}, {"CPU": 1.0}], {"CPU": 2}, 1),
            ([GPU1, CPU2], {"CPU": 1, "GPU": 0.25}, 4),
            ([{"GPU": 1.0}], {"CPU": 1}, 0),
            ([{"GPU": 1.0}], {"CPU": 0, "GPU": 0.1}, 10),
            ([], {"CPU": 1}, 0),
        ],
    )
    def test_counted_node_by_node(self, nodes: list[Any], needs: dict[str, float], expected: int) -> None:
        assert places(nodes, needs) == expected


class TestAddresses:
    @pytest.fixture
    def port(self) -> Iterator[int]:
        with socket.create_server(("127.0.0.1", 0)) as server:
            yield server.getsockname()[1]

    def test_one_that_answers(self, port: int) -> None:
        cluster._refuse_dead_address(f"127.0.0.1:{port}")

    @pytest.mark.parametrize(
        "address", ["127.0.0.1:1", "127.0.0.1", "127.0.0.1:99999", "127.0.0.1:x", ":", "no.such.host.invalid:1"]
    )
    def test_one_that_does_not(self, address: str) -> None:
        with pytest.raises(ClusterError, match=r"cluster\.address: nothing answers at .*ray start --head"):
            cluster._refuse_dead_address(address)

    def test_a_dashboard(self) -> None:
        with pytest.raises(ClusterError, match=r"cluster\.address: 'http://head:8265' is the address of a dashboard"):
            cluster._refuse_dead_address("http://head:8265")

    def test_auto_without_a_cluster(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cluster, "_running_here", lambda: None)
        with pytest.raises(ClusterError, match="'auto': no running Ray cluster"):
            cluster._refuse_dead_address("auto")

    def test_the_address_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, port: int) -> None:
        monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
        file = tmp_path / "ray" / "ray_current_cluster"
        file.parent.mkdir()
        assert cluster._running_here() is None
        file.write_text(f"127.0.0.1:{port}\n")
        assert cluster._running_here() == f"127.0.0.1:{port}"
        file.write_text("127.0.0.1:1")  # left by a cluster that is gone
        assert cluster._running_here() is None
        file.unlink()
        file.mkdir()
        assert cluster._running_here() is None

    def test_a_busy_port(self, port: int) -> None:
        with pytest.raises(ClusterError, match=rf"cluster\.dashboard_port: port {port} is in use"):
            cluster._refuse_busy_port(port)

    def test_a_free_port(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        cluster._refuse_busy_port(port)


class GroupFailedError(Exception):
    """Shaped as Ray Train's error of a worker group."""

    def __init__(self, failures: dict[int, BaseException]) -> None:
        super().__init__("workers failed")
        self.worker_failures = failures


class TestErrors:
    def test_the_pipelines_own_error_is_found(self) -> None:
        inner = DataError("row 3")
        middle = RuntimeError("wrapped")
        middle.__cause__ = inner
        assert cluster._innermost(GroupFailedError({0: ValueError("x"), 1: middle})) is inner

    def test_a_circle_of_causes_ends(self) -> None:
        one, two = ValueError("one"), ValueError("two")
        one.__cause__, two.__cause__ = two, one
        assert cluster._innermost(one) is two

    def test_other_failures_keep_their_root(self) -> None:
        root = ZeroDivisionError("division")
        assert cluster._innermost(GroupFailedError({0: root})) is root

    def test_a_lost_process(self) -> None:
        import ray

        for error in (ray.exceptions.WorkerCrashedError(), ray.exceptions.NodeDiedError("node gone")):
            found = cluster._innermost(error)
            assert isinstance(found, ClusterError)
            assert "a worker process died" in str(found)
            assert "\n" not in str(found)
        assert "lower the micro_batch_size" in str(cluster._innermost(ray.exceptions.OutOfMemoryError("killed")))

    def test_errors_of_the_caller_pass(self) -> None:
        with pytest.raises(KeyError), ray_errors():
            raise KeyError("x")

    def test_errors_survive_a_process_border(self) -> None:
        assert str(pickle.loads(pickle.dumps(ClusterError("no room")))) == "no room"


class TestRunsThatFit:
    @pytest.mark.parametrize(
        ("options", "nodes", "expected"),
        [
            ({"num_workers": 1}, [CPU2], 2),
            ({"num_workers": 2}, [CPU2], 1),
            ({"num_workers": 2}, [{"CPU": 1.0}, CPU2], 1),
            ({"num_workers": 3}, [CPU2], 0),
            ({"num_workers": 1, "cpus_per_worker": 0.5, "cpus_per_actor": 0.5}, [CPU2], 4),
            ({"num_workers": 1, "cpus_per_worker": 0.5}, [CPU2], 2),
            ({"num_workers": 1, "gpus_per_worker": 0.25, "gpus_per_actor": 0.5}, [GPU1, CPU2], 2),
            ({"num_workers": 1}, [], 0),
        ],
    )
    def test_counted(self, options: dict[str, Any], nodes: list[Any], expected: int) -> None:
        assert runs_that_fit(nodes, ClusterConfig(**options)) == expected

    @given(
        st.lists(st.fixed_dictionaries({"CPU": st.integers(0, 9).map(float)}), max_size=4),
        st.integers(1, 4),
        st.integers(1, 3),
    )
    def test_so_many_can_be_placed_together(self, nodes: list[Any], workers: int, cpus: int) -> None:
        """Placed one worker after the other, wherever there is room."""
        config = ClusterConfig(num_workers=workers, cpus_per_worker=cpus)
        free = [node["CPU"] for node in nodes]
        for _ in range(runs_that_fit(nodes, config) * workers):
            where = next(place for place, left in enumerate(free) if left >= cpus)
            free[where] -= cpus

    @given(
        st.lists(st.fixed_dictionaries({"CPU": st.integers(0, 6), "GPU": st.integers(0, 2)}), max_size=3),
        st.integers(1, 4),
        *[st.tuples(st.sampled_from([1, 5, 10, 20]), st.sampled_from([0, 2, 5, 10]))] * 2,
    )
    def test_it_is_the_brute_force_count(
        self, nodes: list[Any], workers: int, worker: tuple[int, int], actor: tuple[int, int]
    ) -> None:
        """Amounts in tenths, so that the count is exact: runs are added while all their workers find a place, and while
        one actor of each does."""

        def most(group: int, needs: tuple[int, int]) -> int:
            free = [[10 * node["CPU"], 10 * node["GPU"]] for node in nodes]
            placed = 0
            while node := next((node for node in free if node[0] >= needs[0] and node[1] >= needs[1]), None):
                node[0] -= needs[0]
                node[1] -= needs[1]
                placed += 1
            return placed // group

        config = ClusterConfig(
            num_workers=workers,
            cpus_per_worker=worker[0] / 10,
            gpus_per_worker=worker[1] / 10,
            cpus_per_actor=actor[0] / 10,
            gpus_per_actor=actor[1] / 10,
        )
        assert runs_that_fit(nodes, config) == min(most(workers, worker), most(1, actor))
