"""Load on a guard while production is moved to and fro, and whether every answer's version was live (not a test)."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field

import openai

from pipeline.release.line import Line
from tests.served import ALIAS, LINE


@dataclass(frozen=True)
class Move:
    """Production went from one version to another at some instant between ``began`` and ``ended`` (monotonic)."""

    before: int
    after: int
    began: float
    ended: float


@dataclass(frozen=True)
class Answer:
    """By which version a request was answered, and when it came and ended."""

    version: int
    came: float
    ended: float


@dataclass
class Load:
    """Clients that ask all the time."""

    address: str
    clients: int
    tokens: int
    token: str = "none"
    answers: list[Answer] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def run(self, line: Line, moves: int, seconds: float) -> list[Move]:
        """Load for so long, with so many moves at even intervals; returns the moves."""
        over = threading.Event()
        threads = [threading.Thread(target=self._client, args=(number, over)) for number in range(self.clients)]
        for thread in threads:
            thread.start()
        made = []
        try:
            for number in range(moves):
                time.sleep(seconds / (moves + 1))
                made.append(_move(line, back=number % 2 == 0))
            time.sleep(seconds / (moves + 1))
        finally:
            over.set()
            for thread in threads:
                thread.join()
        return made

    def _client(self, number: int, over: threading.Event) -> None:
        rng = random.Random(number)
        # Nothing is tried again: a request that fails has failed.
        with openai.OpenAI(base_url=self.address, api_key=self.token, max_retries=0, timeout=60) as client:
            while not over.is_set():
                came = time.monotonic()
                try:
                    model, seed = rng.choice([ALIAS, ALIAS, f"{LINE}/{ALIAS}"]), rng.randrange(1000)
                    stream = rng.random() < 0.2
                    asked = client.completions.create(
                        model=model, prompt="A joy from", max_tokens=self.tokens, seed=seed, stream=stream
                    )
                    named = {one.model for one in asked} if stream else {asked.model}
                    assert len(named) == 1
                    version = int(named.pop().removeprefix(f"{LINE}/"))
                    self.answers.append(Answer(version, came, time.monotonic()))
                except Exception as error:
                    self.failures.append(f"{type(error).__name__}: {error}")

    def seconds(self) -> list[float]:
        """How long the answers took, sorted."""
        return sorted(answer.ended - answer.came for answer in self.answers)


def _move(line: Line, *, back: bool) -> Move:
    before = line.alias(ALIAS).version
    began = time.monotonic()
    if back:
        moved = line.roll_back(ALIAS, why="a test under load")
        after = moved.after
    else:
        after = max(number for number in range(line.state().versions) if number != before)
        line.promote(ALIAS, after, expected=before, why="a test under load")
    return Move(before, after, began, time.monotonic())


def never_live(answers: list[Answer], moves: list[Move]) -> list[Answer]:
    """Answers by a version that production did not point to at any instant between request and answer."""
    return [answer for answer in answers if not _was_live(answer, moves)]


def _was_live(answer: Answer, moves: list[Move]) -> bool:
    """Each version was live, at the longest, from the beginning of a move to it to the end of the move away."""
    since, version = float("-inf"), moves[0].before
    for move in moves:
        if version == answer.version and since <= answer.ended and answer.came <= move.ended:
            return True
        since, version = move.began, move.after
    return version == answer.version and since <= answer.ended


def first_answers(answers: list[Answer], moves: list[Move]) -> list[float]:
    """Seconds from the end of every move to the end of the first answer, by the new version, to a request that came
    after it."""
    found = []
    for move in moves:
        later = [answer for answer in answers if answer.came >= move.ended]
        found.append(min(answer.ended for answer in later if answer.version == move.after) - move.ended)
    return found
