"""The scheduler's script against a server that answers as Kubernetes' API does."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from manifests import KUBERNETES, base, named, script

STARTER = script(KUBERNETES / "start_rayjob.py")
TEMPLATE = named(base(), "RayJob", "ra-dpo-realign")
BELOW = "/apis/ray.io/v1/namespaces/ra-dpo/rayjobs"
SUCCEEDED = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}


class Api(ThreadingHTTPServer):
    """RayJobs by name. What is created gets the statuses of ``course``, one each time it is looked at."""

    def __init__(self, course: list[dict[str, str]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.rayjobs: dict[str, dict[str, Any]] = {"ra-dpo-realign": TEMPLATE}
        self.course = course
        self.tokens: set[str | None] = set()


class Handler(BaseHTTPRequestHandler):
    server: Api

    def do_GET(self) -> None:
        name = self.path.removeprefix(f"{BELOW}/")
        found = self.server.rayjobs.get(name)
        if found is not None and name != "ra-dpo-realign" and self.server.course:
            found["status"] = self.server.course.pop(0)
        self._answer(200 if found else 404, found or {})

    def do_POST(self) -> None:
        assert self.path == BELOW
        rayjob = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = rayjob["metadata"]["name"]
        taken = name in self.server.rayjobs
        self.server.rayjobs.setdefault(name, rayjob)
        self._answer(409 if taken else 201, rayjob)

    def _answer(self, code: int, body: dict[str, Any]) -> None:
        self.server.tokens.add(self.headers["Authorization"])
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def api() -> Iterator[Api]:
    server = Api([])
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def kubernetes(api: Api, tmp_path: Path) -> Any:
    (tmp_path / "token").write_text("first\n")
    (tmp_path / "namespace").write_text("ra-dpo")
    return STARTER.Kubernetes(f"http://127.0.0.1:{api.server_port}", tmp_path)


def start(kubernetes: Any) -> int:
    code: int = STARTER.run(kubernetes, "ra-dpo-realign", "ra-dpo-realign-29812340", "uid-of-the-job", poll_s=0.01)
    return code


def test_a_copy_is_started_and_waited_for(api: Api, kubernetes: Any, capsys: pytest.CaptureFixture[str]) -> None:
    api.course = [{}, {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}, SUCCEEDED]
    assert start(kubernetes) == 0
    assert capsys.readouterr().out.splitlines() == [
        "RayJob ra-dpo-realign-29812340-run: started",
        "RayJob ra-dpo-realign-29812340-run: Complete, SUCCEEDED",
    ]
    made = api.rayjobs["ra-dpo-realign-29812340-run"]
    assert made["spec"] == {**TEMPLATE["spec"], "suspend": False}
    assert made["metadata"]["ownerReferences"] == [
        {"apiVersion": "batch/v1", "kind": "Job", "name": "ra-dpo-realign-29812340", "uid": "uid-of-the-job"}
    ]
    assert TEMPLATE["spec"]["suspend"] is True, "the template stays as it is"
    assert "ra-dpo-realign-29812340" not in api.rayjobs, "KubeRay's submitter, a Job, gets the RayJob's name"
    assert api.tokens == {"Bearer first"}


def test_a_second_pod_of_the_same_slot_waits_for_the_first_ones(api: Api, kubernetes: Any) -> None:
    api.course = [SUCCEEDED]
    assert start(kubernetes) == 0
    first = api.rayjobs["ra-dpo-realign-29812340-run"]
    assert start(kubernetes) == 0
    assert api.rayjobs["ra-dpo-realign-29812340-run"] is first
    assert len(api.rayjobs) == 2


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ({"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "message": "it broke"}, 3),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "FAILED"}, 3),
        ({"jobDeploymentStatus": "Failed"}, 3),
        (SUCCEEDED, 0),
    ],
)
def test_how_it_ended_is_the_exit_code(api: Api, kubernetes: Any, status: dict[str, str], code: int) -> None:
    api.course = [{"jobDeploymentStatus": "Retrying", "jobStatus": "FAILED"}, status]
    assert start(kubernetes) == code


def test_a_template_that_is_not_there_is_an_error_to_try_again(api: Api, kubernetes: Any) -> None:
    del api.rayjobs["ra-dpo-realign"]
    with pytest.raises(HTTPError, match="404"):
        start(kubernetes)
    assert api.rayjobs == {}


def test_a_renewed_token_is_taken(api: Api, kubernetes: Any, tmp_path: Path) -> None:
    kubernetes.get("ra-dpo-realign")
    (tmp_path / "token").write_text("second")
    kubernetes.get("ra-dpo-realign")
    assert api.tokens == {"Bearer first", "Bearer second"}
