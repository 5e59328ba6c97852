"""A year of a weekly schedule in half an hour: 52 weeks of real calls of jobs/realign.py under a clock that is set.

Data grow every week. One batch comes with swapped columns and is repaired weeks later; one week's production log is of
outputs that are far too hot, and goes through the real jobs/watch.py; in two weeks two schedules call at the same time;
three calls are killed with SIGKILL and called again. At the end the history is printed, and what has to hold of it is
computed from the registry's trail and the records.

``python tests/integration/year.py [DIRECTORY]``; exit code 1 when something does not hold.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import job
from year_checks import Happened, check
from year_data import BAD, BEGIN, WEEKLY, WORTH, corpus, swapped, write_recipe, write_rows
from year_log import write_log

WEEKS = 52
MONDAY = datetime(2026, 1, 5, 6)
BAD_WEEK, REPAIR_WEEK, DRIFT_WEEK = 26, 39, 32
KILLED_IN = {2: "reference", 4: "align", 6: "register"}
"""Which re-alignment is killed, and in which stage: register is the moment after the gate has decided."""
TWICE_IN = {3: ("east", "west"), 5: ("west", "east")}
"""In which re-alignment two schedules call, and which of them first."""
_RAY = "Ray on this machine"


@dataclass
class Year:
    """The state of the simulation: files, and what was done to the schedule."""

    folder: Path
    rng: random.Random = field(default_factory=lambda: random.Random(52))
    happened: Happened = field(default_factory=Happened)
    rows: list[dict[str, str]] = field(default_factory=list)
    held_back: int = 0
    """Rows that no re-alignment can use now."""
    seen: int = 0
    """Usable rows at the last alignment."""
    alignments: int = 0

    def __post_init__(self) -> None:
        self.storage = self.folder / "runs"
        self.recipe = write_recipe(self.folder)
        self.corpus = corpus()

    def run(self) -> int:
        """All weeks; returns the exit code."""
        began = time.monotonic()
        for week in range(1, WEEKS + 1):
            self.week(week)
        print(f"\n{WEEKS} weeks in {(time.monotonic() - began) / 60:.1f} minutes\n", flush=True)
        print(job.run([*self.arguments(WEEKS)[:4], "--list"], script="realign.py")[1])
        wrong = check(self.storage, self.happened)
        return 1 if wrong else 0

    def week(self, week: int) -> None:
        """Data come in, and the schedule calls."""
        self.collect(week)
        aligns = week == 1 or len(self.rows) - self.held_back - self.seen >= WORTH
        number = self.alignments if aligns else -1
        if number in KILLED_IN:
            self.kill(week, KILLED_IN[number])
        output = self.twice(week, TWICE_IN[number]) if number in TWICE_IN else self.call(week)
        if re.search(r"record \d+: .*(first alignment|re-aligned)", output):
            self.happened.aligned_weeks.append(week)
            self.alignments, self.seen = self.alignments + 1, len(self.rows) - self.held_back
        self.happened.ray_weeks += [week] if _RAY in output else []
        last = next(line for line in reversed(output.splitlines()) if line.startswith("record "))
        print(f"week {week:2d}  {len(self.rows):,} pairs  {last}", flush=True)
        if week == DRIFT_WEEK:
            self.drift()

    def collect(self, week: int) -> None:
        """The file as it is this week."""
        taken = len(self.rows)
        if week == 1:
            self.rows = self.corpus[:BEGIN]
        elif week == BAD_WEEK:
            bad = [swapped(row) for row in self.corpus[taken : taken + BAD]]
            self.rows = self.rows + bad
            self.happened.bad, self.held_back = bad, BAD
        else:
            self.rows = self.rows + self.corpus[taken : taken + WEEKLY]
        if week == REPAIR_WEEK:
            self.rows = [swapped(row) if row in self.happened.bad else row for row in self.rows]
            self.held_back = 0
        write_rows(self.folder / "pairs.jsonl", self.rows)

    def arguments(self, week: int, hours: int = 0) -> list[str]:
        now = MONDAY + timedelta(weeks=week - 1, hours=hours)
        return ["--recipe", str(self.recipe), "--storage", str(self.storage), "--now", now.isoformat()]

    def call(self, week: int, hours: int = 0) -> str:
        """One call to its end."""
        code, output = job.run(self.arguments(week, hours), timeout_s=900, script="realign.py")
        self.happened.calls += 1
        if code:
            self.happened.faults.append(f"week {week}: exit code {code}: {output[-800:]}")
        return output

    def twice(self, week: int, order: tuple[str, str]) -> str:
        """Two schedules call, the second when the first holds the lease; returns the first one's output."""
        logs = [self.folder / f"week-{week}-{name}.log" for name in order]
        first = job.start(self.arguments(week), logs[0], "realign.py")
        _await(first, logs[0], "new pairs", 120)
        second = job.start(self.arguments(week), logs[1], "realign.py")
        codes = second.wait(timeout=600), first.wait(timeout=900)
        self.happened.calls += 2
        outputs = [log.read_text() for log in logs]
        self.happened.overlaps.append((week, order, "skipped, another call is at it" in outputs[1]))
        if any(codes):
            self.happened.faults.append(f"week {week}: exit codes {codes}: {outputs}")
        return outputs[0]

    def kill(self, week: int, stage: str) -> None:
        """A call dies, and nobody takes leave; the week's call after it goes on."""
        log = self.folder / f"week-{week}-killed.log"
        process = job.start(self.arguments(week), log, "realign.py")
        try:
            _await(process, log, "✓ gate" if stage == "register" else f"> {stage}  started", 600)
            if stage != "register":
                time.sleep(self.rng.uniform(0.5, 9.0))
            if process.poll() is not None:
                self.happened.faults.append(f"week {week}: it ended before it could be killed in {stage}")
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.happened.calls += 1
        said = log.read_text().splitlines()
        late = any(line.startswith("✓ register") for line in said)
        self.happened.kills.append((week, "too late" if late else stage, said[-1]))
        print(f"week {week:2d}  killed in {stage}, after {said[-1]!r}", flush=True)

    def drift(self) -> None:
        """Production's log of the week, whose second half is of a model that is far too hot, goes through the watch."""
        log = self.folder / "production.jsonl"
        write_log(self.storage, log, usual=220, hot=120)
        options = ["--storage", str(self.storage), "--baseline_outputs", "200", "--per_outputs", "200"]
        code, output = job.run([str(log), *options], timeout_s=900, script="watch.py")
        if code:
            self.happened.faults.append(f"the watch: exit code {code}: {output[-800:]}")
        print("the watch: " + " | ".join(line for line in output.splitlines() if "ALARM" in line.upper()), flush=True)


def _await(process: subprocess.Popen[str], log: Path, text: str, timeout_s: float) -> None:
    """Until a call has said something."""
    deadline = time.monotonic() + timeout_s
    while text not in log.read_text():
        if process.poll() is not None or time.monotonic() > deadline:
            return
        time.sleep(0.002)


if __name__ == "__main__":
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp(prefix="ra-dpo-year-"))
    directory.mkdir(parents=True, exist_ok=True)
    print(f"a year of re-alignment in {directory}", flush=True)
    sys.exit(Year(directory).run())
