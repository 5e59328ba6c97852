"""A watch that is killed at any moment, as a process of its own: every output is scored into the log once."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from watching import logged, rows, score, subject, watcher

from pipeline.places import Place
from pipeline.watch.logs import Logs, read

COUNT = 4000


def work(folder: Path) -> None:
    """Read, score and commit until nothing is left, as the job does; the scores are a plain function."""
    watch, source = watcher(Place(str(folder / "watch")), []), Logs(folder / "logs")
    watch.watch(subject())
    while True:
        watch.state.positions = source.look(watch.state.positions).positions
        for place, position in enumerate(watch.state.positions):
            lines, after = read(position, 16)
            if lines:
                positions = watch.state.positions
                watch.state.positions = (*positions[:place], after, *positions[place + 1 :])
                watch.take(lines, score)
                watch.commit()
                break
        else:
            return


@pytest.mark.long
def test_killed_and_rotated_it_scores_every_output_once(tmp_path: Path) -> None:
    logs, rng = tmp_path / "logs", random.Random(1)
    logs.mkdir()
    text = [line.text.decode() + "\n" for line in rows([rng.gauss(5, 1) for _ in range(COUNT)]) if line.text]
    (logs / "app.jsonl").write_text("".join(text[: COUNT // 2]))
    place, kills = Place(str(tmp_path / "watch")), 0
    code = f"import sys; sys.path[:0] = {sys.path!r}; from pathlib import Path; import test_killed; "
    code += f"test_killed.work(Path({str(tmp_path)!r}))"
    while True:
        done = len(logged(place))
        process = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[3])
        while process.poll() is None and len(logged(place)) == done:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 1.0))
        if process.poll() is not None:
            assert process.returncode == 0
            break
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
        if kills == 2:
            (logs / "app.jsonl").rename(logs / "app.jsonl.1")
            (logs / "app.jsonl").write_text("".join(text[COUNT // 2 :]))
    assert kills >= 4
    found = logged(place)
    assert sorted(int(row["id"][1:]) for row in found) == list(range(1, COUNT + 1))
    assert [row["output"] for row in found] == list(range(1, COUNT + 1))
