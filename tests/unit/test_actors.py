from __future__ import annotations

import pytest

from pipeline.actors import Pool, _cause, _is_death, _lost_with_its_node
from pipeline.errors import DataError


class TestPool:
    def test_its_needs(self) -> None:
        assert Pool(cpus=2, gpus=0.5, max_actors=4).needs == {"CPU": 2, "GPU": 0.5}

    @pytest.mark.parametrize(("cpus", "gpus", "max_actors"), [(0, 0, 1), (-1, 1, 1), (1, -1, 1), (1, 0, 0)])
    def test_refused(self, cpus: float, gpus: float, max_actors: int) -> None:
        with pytest.raises(ValueError, match="a pool needs"):
            Pool(cpus, gpus, max_actors)


class TestRaysErrors:
    def test_what_is_a_death(self) -> None:
        from ray import exceptions

        for error in (
            exceptions.ActorDiedError(),
            exceptions.ActorUnavailableError("no answer", None),
            exceptions.OutOfMemoryError("killed"),
            exceptions.NodeDiedError("gone"),
            exceptions.ObjectLostError("ab" * 28, None, ""),
        ):
            assert _is_death(error), type(error)

    def test_what_hosted_code_raises_is_none(self) -> None:
        from ray import exceptions

        for raised in (DataError("row 3"), ValueError("x"), exceptions.ActorDiedError(), MemoryError()):
            error = exceptions.RayTaskError("call", "Traceback", raised).as_instanceof_cause()
            assert isinstance(error, type(raised))
            assert not _is_death(error)
        assert not _is_death(exceptions.RuntimeEnvSetupError("no environment"))

    def test_the_cause_of_a_killed_process(self) -> None:
        from ray.exceptions import RayActorError

        text = (
            "The actor died unexpectedly before finishing this task.\n\tclass_name: _Host\n\tpid: 7\n"
            "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: "
            "Worker unexpectedly exits with a connection error code 2. End of file."
        )
        found = _cause(RayActorError("ab", text))
        assert found == "Worker unexpectedly exits with a connection error code 2. End of file"
        assert len(_cause(RayActorError("ab", text + " Some common causes include" + " this" * 100))) <= 160

    def test_an_actor_that_waited_on_a_node_that_died(self) -> None:
        from ray.exceptions import RayActorError

        died = (
            "The actor died unexpectedly before finishing this task.\n\tclass_name: _Host\n"
            "The actor died because its node has died. Node Id: 938a\n\tthe actor's node was terminated unexpectedly"
        )
        waited = RayActorError("ab", died + "\nThe actor never ran - it was cancelled before it started running.")
        assert _lost_with_its_node(waited)
        assert not _lost_with_its_node(RayActorError("ab", died))
        assert _cause(waited) == "The actor died because its node has died. Node Id: 938a"

    def test_the_cause_of_memory_and_of_nothing(self) -> None:
        from ray.exceptions import NodeDiedError, OutOfMemoryError

        assert _cause(OutOfMemoryError("Killed: the node ran low on memory.\nMore")) == (
            "Killed: the node ran low on memory"
        )
        assert _cause(NodeDiedError("")) == "NodeDiedError"
