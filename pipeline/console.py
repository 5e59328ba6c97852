"""What a person sees while a job runs, and where the noise of libraries goes.

On a terminal: a progress bar for each running stage, one line for each finished one. Elsewhere (job logs,
CI): plain lines only, a progress line at most every 15 s, no escape codes and no carriage returns. The log
file, when there is one, gets every line with its time.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TextIO

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

PROGRESS_INTERVAL_S = 15.0
"""Shortest time between two progress lines of one stage when the output is no terminal."""

NOISY_LOGGERS = (
    "ray",
    "ray.data",
    "ray.serve",
    "ray.train",
    "ray.tune",
    "DeepSpeed",
    "datasets",
    "huggingface_hub",
    "transformers",
    "wandb",
    "py.warnings",
)
"""Loggers to which libraries attach handlers of their own that write to the terminal."""

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f]")
_STYLES = {"✓": "green", "=": "dim", "✗": "red"}

_log_handler: logging.FileHandler | None = None


class Console:
    """The job's output. Every method may be called from any thread; `close` stops the progress bars.

    ``log_path`` is a file that gets every line too (its directory is made). ``stream`` defaults to stdout
    and ``clock`` (seconds) paces the progress lines.
    """

    def __init__(
        self,
        log_path: Path | None = None,
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._clock = clock
        self._lock = threading.RLock()
        self._interactive = self._stream.isatty() and os.environ.get("TERM") not in {"dumb", "unknown"}
        self._rich = RichConsole(file=self._stream, highlight=False, markup=False, emoji=False)
        self._progress: Progress | None = None
        self._bars: dict[str, TaskID] = {}
        self._last_line_s: dict[str, float] = {}
        self._log: TextIO | None = None
        if log_path is not None:
            log_path.parent.mkdir(parents=True, exist_ok=True)
            self._log = log_path.open("a", encoding="utf-8")

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def line(self, text: str) -> None:
        """One line of text (or several), as it is."""
        with self._lock:
            self._write(text)

    def stage_started(self, name: str) -> None:
        """A stage began: a bar appears, or a line."""
        with self._lock:
            if not self._interactive:
                self._last_line_s[name] = self._clock()
                self._write(f"> {name}  started")
                return
            self._write_log(f"> {name}  started")
            self._bar(name)

    def stage_progress(self, name: str, done: float, total: float | None, note: str = "") -> None:
        """How far a running stage is: ``done`` of ``total`` (None or 0 when unknown), in any unit."""
        with self._lock:
            if self._interactive:
                progress, bar = self._bar(name)
                amount = f"{_count(done)}/{_count(total)}" if total else _count(done)
                progress.update(bar, completed=done, total=total or None, amount=amount, note=_clean(note))
                return
            now = self._clock()
            if now - self._last_line_s.get(name, float("-inf")) < PROGRESS_INTERVAL_S:
                return
            self._last_line_s[name] = now
            amount = f"{_count(done)} of {_count(total)} ({done / total:.0%})" if total else _count(done)
            self._write("  ".join(filter(None, (f"  {name}", amount, note))))

    def stage_finished(self, name: str, seconds: float, note: str = "") -> None:
        """A stage is done, ``seconds`` after its start."""
        self._end(name, "✓", note, duration(seconds))

    def stage_reused(self, name: str) -> None:
        """A stage need not run: its artefact exists."""
        self._end(name, "=", "reused")

    def stage_failed(self, name: str, message: str) -> None:
        """A stage failed. Only the first line is shown; the error itself follows from the job."""
        self._end(name, "✗", next(iter(message.strip().splitlines()), "failed"))

    def close(self) -> None:
        """Stop drawing and close the log file; calling it again does nothing."""
        with self._lock:
            self._stop_bars()
            if self._log is not None:
                with contextlib.suppress(OSError):
                    self._log.close()
                self._log = None

    def _end(self, name: str, mark: str, *parts: str) -> None:
        with self._lock:
            bar = self._bars.pop(name, None)
            if self._progress is not None and bar is not None:
                self._progress.remove_task(bar)
            self._last_line_s.pop(name, None)
            self._write("  ".join(filter(None, (f"{mark} {name}", *parts))), _STYLES[mark])
            if not self._bars:
                self._stop_bars()

    def _bar(self, name: str) -> tuple[Progress, TaskID]:
        if self._progress is None:
            self._progress = Progress(
                TextColumn("  {task.description}", markup=False),
                BarColumn(bar_width=30),
                TextColumn("{task.fields[amount]}", markup=False),
                TimeElapsedColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                console=self._rich,
                transient=True,
                refresh_per_second=4,
            )
            self._progress.start()
        if name not in self._bars:
            self._bars[name] = self._progress.add_task(_clean(name), total=None, amount="", note="")
        return self._progress, self._bars[name]

    def _stop_bars(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
            self._bars.clear()

    def _write(self, text: str, style: str = "") -> None:
        text = _clean(text)
        if self._interactive:
            # Only the mark is coloured: the words stay readable on any background.
            shown = Text(text)
            shown.stylize(style, 0, 1)
            self._rich.print(shown, soft_wrap=True)
        else:
            encoding = getattr(self._stream, "encoding", None) or "utf-8"
            self._stream.write(_encodable(text, encoding) + "\n")
            self._stream.flush()
        self._write_log(text)

    def _write_log(self, text: str) -> None:
        if self._log is not None:
            with contextlib.suppress(OSError):  # a full disk is told by what cannot do without it
                self._log.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {_clean(text)}\n")
                self._log.flush()


def duration(seconds: float) -> str:
    """``3.1 s``, ``2 min 05 s`` or ``1 h 02 min``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"


def quiet_libraries(log_path: Path) -> None:
    """Send what libraries log, and Python warnings, to ``log_path`` instead of the terminal.

    Call it before the libraries are imported: it also keeps them from attaching terminal handlers later,
    and switches off the progress bars of transformers, datasets and huggingface_hub. A second call moves
    the noise to another file.
    """
    global _log_handler
    log_path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(log_path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.addFilter(_once)
    for logger in (logging.getLogger(), *map(logging.getLogger, NOISY_LOGGERS)):
        if _log_handler is not None:
            logger.removeHandler(_log_handler)
        for old in list(logger.handlers):
            if _writes_to_terminal(old):
                logger.removeHandler(old)
        logging.Logger.addHandler(logger, handler)
        _refuse_terminal_handlers(logger)
        logger.propagate = False
    if _log_handler is not None:
        _log_handler.close()
    _log_handler = handler
    logging.captureWarnings(True)
    switch_off_bars()


def _once(record: logging.LogRecord) -> bool:
    """Let a record pass the first time. transformers hands its records on to the root logger where the
    environment says CI, and the root has the same handler."""
    seen = getattr(record, "_in_log_file", False)
    record._in_log_file = True
    return not seen


def current_log_path() -> Path | None:
    """The file that `quiet_libraries` writes to, or None before its first call."""
    return None if _log_handler is None else Path(_log_handler.baseFilename)


def _refuse_terminal_handlers(logger: logging.Logger) -> None:
    def add(handler: logging.Handler) -> None:
        if not _writes_to_terminal(handler):
            logging.Logger.addHandler(logger, handler)

    # Ray, DeepSpeed and transformers attach theirs when they are first used, which is later than this.
    logger.addHandler = add  # type: ignore[method-assign,assignment]


def _writes_to_terminal(handler: logging.Handler) -> bool:
    stream = getattr(handler, "stream", None)
    return any(stream is known for known in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__) if known)


def switch_off_bars() -> None:
    """No progress bars of transformers, datasets and huggingface_hub; `quiet_libraries` does this too."""
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ["TQDM_DISABLE"] = "1"  # bars without a switch of their own, as transformers has for GGUF files
    # The variables are read on import; a library that is there already must be told.
    if (datasets := sys.modules.get("datasets")) is not None:
        datasets.disable_progress_bars()
    if (transformers := sys.modules.get("transformers")) is not None:
        transformers.utils.logging.disable_progress_bar()


def _clean(text: str) -> str:
    return _CONTROL.sub("", text)


def _count(number: float | None) -> str:
    return "" if number is None else f"{number:,.0f}" if float(number).is_integer() else f"{number:,.2f}"


def _encodable(text: str, encoding: str) -> str:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        plain = text.replace("✓", "ok").replace("✗", "failed")
        return plain.encode(encoding, errors="replace").decode(encoding)
    return text
