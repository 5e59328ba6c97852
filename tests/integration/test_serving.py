"""The guard as it is used: the job, a real registry, and OpenAI's own client."""

from __future__ import annotations

import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import job
from moves import Answer, Load, Move, first_answers, never_live

from pipeline.release.line import Line
from pipeline.traffic import parse
from tests.served import ALIAS, LINE, begin_line, write_versions

TOKEN = "a-token-of-the-test"


@dataclass(frozen=True)
class Served:
    """A running guard."""

    process: subprocess.Popen[str]
    output: Path
    base: str
    line: Line
    log: Path

    def client(self, token: str = TOKEN) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.base}/v1", api_key=token, max_retries=0, timeout=60)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(folder: Path, models: list[Path], *options: str) -> Served:
    """Start the job on a line of these models, and wait until it answers."""
    line = begin_line(str(folder / "runs" / "registry"), models)
    port, output, log = _free_port(), folder / "output", folder / "log"
    os.environ["SERVING_TEST_TOKEN"] = TOKEN  # by name only: the command line is seen by everybody
    arguments = ["--storage", str(folder / "runs"), "--port", str(port), "--token_env", "SERVING_TEST_TOKEN", *options]
    process = job.start(arguments, output, "serve.py")
    served = Served(process, output, f"http://127.0.0.1:{port}", line, log)
    until = time.monotonic() + 120
    while "metrics for Prometheus" not in output.read_text():
        if process.poll() is not None or time.monotonic() > until:
            kill(served)
            pytest.fail(f"the guard did not start:\n{output.read_text()}")
        time.sleep(0.1)
    return served


def kill(served: Served) -> None:
    """End what is left of the job, its Ray included."""
    if served.process.poll() is None:
        children = psutil.Process(served.process.pid).children(recursive=True)
        served.process.kill()
        for child in children:
            child.kill()
        served.process.wait()


@pytest.fixture(scope="module")
def served(built_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("serving")
    (folder / "made").mkdir()
    log = ["--log", str(folder / "log"), "--log_share", "0.5", "--max_queued", "24", "--max_rows", "8"]
    found = start(folder, write_versions(built_model, folder / "made", 3), *log, "--max_batches", "2")
    yield found
    kill(found)


@pytest.mark.timeout(200)
def test_openai_s_client_is_answered(served: Served) -> None:
    with served.client() as client:
        whole = client.completions.create(model=ALIAS, prompt="A joy", max_tokens=12, seed=1, n=2, logprobs=1)
        assert whole.model == f"{LINE}/2"
        assert whole.system_fingerprint == served.line.versions.manifest(2).id
        assert whole.usage is not None
        assert len(whole.choices) == 2
        assert whole.choices[0].logprobs is not None
        streamed = client.completions.create(model=ALIAS, prompt="A joy", max_tokens=12, seed=1, stream=True)
        assert "".join(chunk.choices[0].text for chunk in streamed) == whole.choices[0].text
        assert {model.id for model in client.models.list()} >= {ALIAS, "reference"}
        raw = client.completions.with_raw_response.create(model="reference", prompt="A joy", max_tokens=2)
        assert (raw.headers["x-ra-dpo-version"], raw.headers["x-ra-dpo-line"]) == ("0", LINE)


def test_its_errors_are_openai_s(served: Served) -> None:
    with served.client() as client:
        with pytest.raises(openai.NotFoundError, match="'gpt-4' is not served here") as unknown:
            client.completions.create(model="gpt-4", prompt="A joy")
        assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
        with pytest.raises(openai.BadRequestError, match="at most 63 are taken"):
            client.completions.create(model=ALIAS, prompt="joy " * 80)
        with pytest.raises(openai.BadRequestError, match="has no chat template"):
            client.chat.completions.create(model=ALIAS, messages=[{"role": "user", "content": "hello"}])
    with served.client("another-token") as client, pytest.raises(openai.AuthenticationError):
        client.completions.create(model=ALIAS, prompt="A joy")
    headers = {"authorization": f"Bearer {TOKEN}"}
    assert httpx.post(f"{served.base}/v1/completions", content=b"{", headers=headers).status_code == 400
    assert httpx.post(f"{served.base}/v1/completions", content=b"x" * (2 << 20), headers=headers).status_code == 413
    assert httpx.get(f"{served.base}/v1/models").status_code == 401


@pytest.mark.timeout(200)
def test_moves_under_load_lose_nothing(served: Served) -> None:
    load = Load(f"{served.base}/v1", clients=4, tokens=12, token=TOKEN)
    moves = load.run(served.line, moves=6, seconds=8)
    assert load.failures == []
    assert len(load.answers) > 50
    assert {answer.version for answer in load.answers} == {1, 2}
    assert never_live(load.answers, moves) == []
    assert max(first_answers(load.answers, moves)) < 5


def test_an_answer_by_a_version_that_was_gone_would_be_found() -> None:
    moves = [Move(2, 1, 10.0, 10.5), Move(1, 2, 20.0, 20.5)]
    right = [Answer(2, 1, 2), Answer(2, 10.4, 11), Answer(1, 9, 10.1), Answer(1, 20.4, 21), Answer(2, 30, 31)]
    wrong = [Answer(2, 10.6, 11), Answer(1, 8, 9.9), Answer(1, 20.6, 21), Answer(0, 5, 25)]
    assert never_live([*right, *wrong], moves) == wrong


@pytest.mark.timeout(200)
def test_a_flood_is_survived(served: Served) -> None:
    def ask(number: int) -> str:
        with served.client() as client:
            try:
                client.completions.create(model=ALIAS, prompt="A joy", max_tokens=60, n=8, seed=number)
            except openai.RateLimitError as error:
                return error.response.headers.get("retry-after", "no word when to come back")
            return "answered"

    with ThreadPoolExecutor(24) as threads:
        codes = list(threads.map(ask, range(48)))
    assert set(codes) == {"answered", "1"}
    assert codes.count("answered") >= 3
    with served.client() as client:
        client.completions.create(model=ALIAS, prompt="A joy", max_tokens=2)


@pytest.mark.timeout(200)
def test_what_is_under_way_is_answered_at_the_end_and_the_log_is_whole(served: Served) -> None:
    """The last test with this guard: it ends here."""

    with served.client() as client:
        streams = [
            client.completions.create(model=ALIAS, prompt="A joy", max_tokens=60, n=8, seed=number, stream=True)
            for number in range(3)
        ]
        begun = [next(stream) for stream in streams]
        assert not any(chunk.choices[0].finish_reason for chunk in begun)
        served.process.send_signal(signal.SIGTERM)
        for stream in streams:
            assert sum(chunk.choices[0].finish_reason is not None for chunk in stream) == 8
    code = served.process.wait(60)
    output = served.output.read_text()
    assert code == 0, output
    assert "draining" in output
    assert "Traceback" not in output
    assert TOKEN not in output
    rows = [parse(text) for path in served.log.glob("*.jsonl") for text in path.read_bytes().splitlines(keepends=True)]
    assert len(rows) > 20
    assert {row.line for row in rows} == {LINE}
    assert {row.version for row in rows} >= {1, 2}
    assert all(row.tokenizer and row.prompt_ids and row.output_ids for row in rows)


def test_what_keeps_it_from_starting_is_one_line(tmp_path: Path) -> None:
    code, output = job.run(["--storage", str(tmp_path)], script="serve.py")
    assert (code, output.count("\n")) == (1, 1)
    assert "there is no registry at" in output
    code, output = job.run(["--canary", "candidate"], script="serve.py")
    assert code == 2
    assert "Traceback" not in output


def reviews_sized(folder: Path) -> Path:
    """A model of the size of the recipe reviews, untrained: it answers until its longest length."""
    from pipeline.config import BuildConfig
    from pipeline.models.build import build_gpt_neox

    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(4000)]
    texts = ["A joy from start to end.", *(" ".join(rng.choices(words, k=12)) for _ in range(4000))]
    build_gpt_neox(BuildConfig(), texts, folder / "model")
    return folder / "model"


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_ten_minutes_and_fifty_moves(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    served = start(tmp_path, write_versions(reviews_sized(tmp_path), tmp_path / "made", 3))
    try:
        memory: list[int] = []
        over = threading.Event()

        def watch() -> None:
            while not over.wait(5):
                mine = [p for p in psutil.Process(served.process.pid).children(recursive=True) if "guard" in p.name()]
                memory.append(sum(one.memory_info().rss for one in mine))

        watching = threading.Thread(target=watch)
        watching.start()
        load = Load(f"{served.base}/v1", clients=8, tokens=48, token=TOKEN)
        began = time.monotonic()
        moves = load.run(served.line, moves=50, seconds=600)
        lasted = time.monotonic() - began
        over.set()
        watching.join()
        took, first = load.seconds(), first_answers(load.answers, moves)
        half, most = statistics.median(took), took[int(0.99 * len(took))]
        print(
            f"\n{len(load.answers)} answers in {lasted:.0f} s ({len(load.answers) / lasted:.1f} a second), "
            f"{len(load.failures)} failed; p50 {half:.3f} s, p99 {most:.3f} s; "
            f"first answer after a move: median {statistics.median(first):.3f} s, at most {max(first):.3f} s; "
            f"memory {min(memory) / 2**20:.0f} to {max(memory) / 2**20:.0f} MiB"
        )
        assert load.failures == []
        assert never_live(load.answers, moves) == []
        assert len(moves) == 50
        assert max(memory[len(memory) // 2 :]) < 1.2 * max(memory[: len(memory) // 2])
        assert served.stop() == 0
    finally:
        kill(served)
