from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.console import PROGRESS_INTERVAL_S, Console, duration

ROOT = Path(__file__).resolve().parents[2]


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def on_a_terminal(program: str) -> str:
    """What a program writes when its stdout is a pseudo-terminal."""
    master, slave = pty.openpty()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "100"}
    child = subprocess.Popen([sys.executable, "-c", program], stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    output = b""
    try:
        while piece := os.read(master, 65536):
            output += piece
    except OSError:  # Linux reports the closed side of a pseudo-terminal as an I/O error
        pass
    finally:
        os.close(master)
    assert child.wait(timeout=60) == 0, output.decode()
    return output.decode()


def test_plain_output_is_lines_without_escape_codes(tmp_path: Path) -> None:
    stream = io.StringIO()
    with Console(tmp_path / "logs" / "job.log", stream=stream, clock=Clock()) as console:
        console.line("run [bold]4f2a[/bold] \x1b[31mred\x1b[0m\r")
        console.stage_reused("reference")
        console.stage_started("tokens")
        console.stage_finished("tokens", 3.14, "2,310 pairs")
        console.stage_started("align")
        console.stage_failed("align", "loss is not finite\nand more")
    assert stream.getvalue().splitlines() == [
        "run [bold]4f2a[/bold] red",
        "= reference  reused",
        "> tokens  started",
        "✓ tokens  2,310 pairs  3.1 s",
        "> align  started",
        "✗ align  loss is not finite",
    ]
    logged = (tmp_path / "logs" / "job.log").read_text(encoding="utf-8").splitlines()
    assert [line[20:] for line in logged] == stream.getvalue().splitlines()


def test_plain_progress_comes_at_most_every_interval_for_each_stage() -> None:
    clock, stream = Clock(), io.StringIO()
    console = Console(stream=stream, clock=clock)
    console.stage_started("align")
    for step in range(1, 62):
        clock.now_s = float(step)
        console.stage_progress("align", step, 200, "loss 0.69")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1 + int(61 // PROGRESS_INTERVAL_S)
    assert lines[1] == "  align  15 of 200 (8%)  loss 0.69"
    console.stage_progress("sample", 3, None)
    assert stream.getvalue().splitlines()[-1] == "  sample  3"


@settings(deadline=None)
@given(st.text())
def test_no_text_brings_control_characters_to_the_output(text: str) -> None:
    stream = io.StringIO()
    Console(stream=stream).line(text)
    written = stream.getvalue()
    assert "\x1b" not in written
    assert "\r" not in written


def test_a_stream_that_cannot_write_the_marks_gets_words() -> None:
    raw = io.BytesIO()
    with Console(stream=io.TextIOWrapper(raw, encoding="ascii", write_through=True)) as console:
        console.stage_finished("tokens", 1.0)
        console.line("naïve")
        assert raw.getvalue() == b"ok tokens  1.0 s\nna?ve\n"


def test_lines_of_several_threads_stay_whole() -> None:
    stream = io.StringIO()
    console = Console(stream=stream)

    def stage(name: str) -> None:
        for _ in range(50):
            console.stage_started(name)
            console.stage_progress(name, 1, 2)
            console.stage_finished(name, 1.0, "note")

    threads = [threading.Thread(target=stage, args=(f"stage{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 4 * 50 * 2
    assert set(lines) == {line for n in range(4) for line in (f"> stage{n}  started", f"✓ stage{n}  note  1.0 s")}


def test_a_terminal_shows_bars_side_by_side_and_keeps_finished_lines() -> None:
    output = on_a_terminal(
        "import time\n"
        "from pipeline.console import Console\n"
        "with Console() as console:\n"
        "    for name in ('tokens', 'align'):\n"
        "        console.stage_started(name)\n"
        "        console.stage_progress(name, 5, 10, 'loss [red]')\n"
        "    time.sleep(0.6)\n"
        "    console.stage_finished('tokens', 3.14, '[b]10 pairs')\n"
        "    console.stage_failed('align', 'boom')\n"
    )
    assert "\x1b[" in output
    assert "5/10" in output
    assert "loss [red]" in output
    assert "\x1b[32m✓\x1b[0m tokens  [b]10 pairs  3.1 s" in output
    assert "\x1b[31m✗\x1b[0m align  boom" in output
    assert output.count("\x1b[?25l") == output.count("\x1b[?25h") > 0, "the cursor must come back"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (3.14, "3.1 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3725, "1 h 02 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize("ci", ["", "true"], ids=["at a desk", "in CI"])
def test_libraries_are_quiet_whenever_they_attach_their_handlers(tmp_path: Path, ci: str) -> None:
    """The real libraries, imported after the call: what they log is in the file and nowhere else."""
    log = tmp_path / "libraries.log"
    program = (
        "import logging, pathlib, sys, warnings\n"
        "from pipeline.console import current_log_path, quiet_libraries\n"
        "assert current_log_path() is None\n"
        f"quiet_libraries(pathlib.Path({str(tmp_path / 'first.log')!r}))\n"
        f"quiet_libraries(pathlib.Path({str(log)!r}))\n"
        f"assert current_log_path() == pathlib.Path({str(log)!r})\n"
        "import ray, datasets, transformers\n"
        "transformers.utils.logging.get_logger('transformers.models').warning('from transformers')\n"
        "datasets.logging.get_logger('datasets.load').warning('from datasets')\n"
        "logging.getLogger('ray.train').warning('from ray')\n"
        "logging.getLogger('anything').error('from the root')\n"
        "import deepspeed.utils\n"
        "deepspeed.utils.logger.warning('from deepspeed')\n"
        "warnings.warn('from a warning')\n"
        "assert datasets.are_progress_bars_disabled()\n"
        "assert not transformers.utils.logging.is_progress_bar_enabled()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu", "CI": ci},
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    logged = log.read_text(encoding="utf-8")
    for source in ("transformers", "datasets", "ray", "the root", "deepspeed", "a warning"):
        assert logged.count(f"from {source}\n") == 1, logged
    assert not (tmp_path / "first.log").exists()
