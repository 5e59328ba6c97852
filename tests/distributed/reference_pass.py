"""A reference pass in a process of its own, started by tests: ``reference_pass.py OPTIONS.json``; without an argument
as many as there are paths of options on stdin, one a line.

Prints what the stage says, and at the end of a pass ``rows COMPUTED TAKEN_OVER`` and
``done COMPUTED_FILES SECONDS DRIVERS_PEAK_USS_BYTES ACTORS_PEAK_USS_BYTES PLACE``.
"""

from __future__ import annotations

import itertools
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]


def description(options: dict[str, Any]) -> Any:
    from pipeline.config import RunConfig

    return RunConfig.model_validate(
        {
            "data": {"path": "pairs.jsonl", "max_prompt_tokens": 64, "max_response_tokens": 64},
            "model": {"path": options["model"], "dtype": "float32"},
            "reference": options["reference"],
            "cluster": {"address": "local", "num_workers": 1, "max_actors": options.get("max_actors", 2)},
        }
    )


class Memory(threading.Thread):
    """Highest unique memory of this process and its actors, so that files mapped by several do not count."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.driver, self.actor, self._stopped = 0, 0, threading.Event()

    def run(self) -> None:
        import psutil

        me = psutil.Process()
        while not self._stopped.wait(0.2):
            self.driver = max(self.driver, me.memory_full_info().uss)
            for child in me.children(recursive=True):
                try:
                    if "_Host" in " ".join(child.cmdline()):
                        self.actor = max(self.actor, child.memory_full_info().uss)
                except psutil.Error:
                    continue

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def main() -> None:
    paths = iter(sys.argv[1:]) if len(sys.argv) > 1 else (line.strip() for line in sys.stdin)
    from pipeline.cli import run_job

    run_job(lambda: run_passes(json.loads(Path(path).read_text()) for path in paths))


def run_passes(passes: Iterator[dict[str, Any]]) -> int:
    """Passes one after the other, in a Ray that is started once."""
    from pipeline.cluster import connected
    from pipeline.storage import open_storage

    first = next(passes)
    with connected(description(first).cluster, open_storage(first["storage"])) as where:
        say(where)
        for options in itertools.chain([first], passes):
            run_pass(options)
    return 0


def run_pass(options: dict[str, Any]) -> None:
    from pipeline.places import Place
    from pipeline.reference.stage import run_reference

    memory = Memory()
    memory.start()
    began = time.monotonic()
    result = run_reference(
        description(options),
        options["model"],
        options["tokens"],
        Place(options["root"]),
        {"model": "tiny", "data": "random"},
        lambda done, total, note: say(f"progress {done} {total}"),
        say,
    )
    seconds = time.monotonic() - began
    memory.stop()
    say(f"rows {result.computed_rows} {result.taken_rows}")
    say(f"done {result.computed} {seconds:.3f} {memory.driver} {memory.actor} {result.place}")


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
