"""Timing side by side, and peak memory, of the subjects on one machine."""

from __future__ import annotations

import ctypes
import gc
import platform
import time
from pathlib import Path
from typing import Any

import torch

from pipeline.bench.config import BASELINE, BenchmarkConfig
from pipeline.bench.subjects import SLOW, Inputs, Subject, make_inputs, subjects


def device_of(config: BenchmarkConfig) -> torch.device:
    """Where the benchmark runs; on a CPU, sets the number of threads."""
    if config.gpus:
        return torch.device("cuda")
    torch.set_num_threads(config.threads)
    return torch.device("cpu")


def time_subjects(config: BenchmarkConfig, vocab_size: int) -> dict[str, list[float | None]]:
    """Seconds of each subject in each round, None where it did not take part."""
    device = device_of(config)
    inputs = make_inputs(config, vocab_size, device)
    chosen = {
        name: subject
        for name, subject in subjects(config).items()
        if name not in SLOW or config.positions * vocab_size * 4 * 14 < _memory_bytes(device)
    }
    seconds: dict[str, list[float | None]] = {name: [] for name in subjects(config)}
    _once(chosen[BASELINE], inputs)
    for name, subject in chosen.items():
        if name not in SLOW:
            _once(subject, inputs)
    names = list(chosen)
    for round_ in range(config.rounds):
        shift = round_ % len(names)
        for name in seconds:
            seconds[name].append(None)
        for name in names[shift:] + names[:shift]:
            if name not in SLOW or round_ < config.slow_rounds:
                seconds[name][-1] = _once(chosen[name], inputs)
    return seconds


def peak_bytes(config: BenchmarkConfig, vocab_size: int, name: str) -> int | None:
    """Peak memory of one subject above its inputs, in a process that has done nothing else; None where it does not
    fit or cannot be read."""
    device = device_of(config)
    if name in SLOW and config.positions * vocab_size * 4 * 14 >= _memory_bytes(device):
        return None
    inputs = make_inputs(config, vocab_size, device)
    small = make_inputs(config.model_copy(update={"positions": 2 * config.pairs}), 64, device)
    _once(subjects(config)[name], small)  # libraries load and make their own buffers
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        _once(subjects(config)[name], inputs)
        return torch.cuda.max_memory_allocated() - before
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    _give_back_free_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    except OSError:
        return None
    before = _status_bytes(status, "VmRSS")
    _once(subjects(config)[name], inputs)
    return _status_bytes(status, "VmHWM") - before


def machine(config: BenchmarkConfig) -> dict[str, Any]:
    """What the figures were taken on."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in _read_lines(Path("/proc/cpuinfo"))
            if line.lower().startswith("model name")
        ),
        platform.processor() or platform.machine(),
    )
    device = torch.cuda.get_device_name() if config.gpus else f"{cpu}, {config.threads} threads"
    return {"device": device, "torch": torch.__version__, "dtype": config.dtype}


def _once(subject: Subject, inputs: Inputs) -> float:
    """Seconds of one forward and backward pass."""
    inputs.hidden.grad = inputs.weight.grad = None
    on_gpu = inputs.hidden.is_cuda
    if on_gpu:
        torch.cuda.synchronize()
    began = time.perf_counter()
    subject(inputs).backward()
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _memory_bytes(device: torch.device) -> int:
    """Memory that a subject may use."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info()[0]
    for line in _read_lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 8 * 2**30


def _give_back_free_memory() -> None:
    """What making the inputs freed: the allocator keeps it, and a subject that used it would seem to need none."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's own
    if trim is not None:
        trim(0)


def _status_bytes(status: Path, field: str) -> int:
    return next(int(line.split()[1]) * 1024 for line in _read_lines(status) if line.startswith(f"{field}:"))


def _read_lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []
