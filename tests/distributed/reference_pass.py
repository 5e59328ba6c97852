"""A reference pass in a process of its own, started by tests: ``reference_pass.py OPTIONS.json``.

Prints what the stage says, and at the end ``rows COMPUTED TAKEN_OVER`` and
``done COMPUTED_FILES SECONDS DRIVERS_PEAK_USS_BYTES ACTORS_PEAK_USS_BYTES PLACE``.
"""

from __future__ import annotations

import json
import sys
import threading
import time
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
    options = json.loads(Path(sys.argv[1]).read_text())
    from pipeline.cli import run_job

    run_job(lambda: run_pass(options))


def run_pass(options: dict[str, Any]) -> int:
    from pipeline.cluster import connected
    from pipeline.places import Place
    from pipeline.reference.stage import run_reference
    from pipeline.storage import open_storage

    run = description(options)

    def say(text: str) -> None:
        print(text, flush=True)

    memory = Memory()
    with connected(run.cluster, open_storage(options["storage"])) as where:
        say(where)
        memory.start()
        began = time.monotonic()
        result = run_reference(
            run,
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
    return 0


if __name__ == "__main__":
    main()
