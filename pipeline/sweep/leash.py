"""The process of one trial: the alignment job, and an end as soon as whoever started it is gone.

A trial is a process, and a Ray job, of its own: it can be ended at any moment, and Ray then takes back all that it
held. Its standard input is a pipe of which nothing is ever read but the end.
"""

from __future__ import annotations

import os
import threading

_EXIT_ORPHANED = 130


def _end_with_parent() -> None:
    while os.read(0, 1):  # not through sys.stdin, whose lock would be held at the end of the interpreter
        pass
    # At once: the driver's threads wait for Ray, and Ray ends a job whose driver is gone.
    os._exit(_EXIT_ORPHANED)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, name="leash", daemon=True).start()

    from pipeline.cli import parse_job, run_job
    from pipeline.job import align

    request = parse_job("align.py", "Align a language model with a risk-aware preference loss.")
    run_job(lambda: align(request))
