"""Whatever number of workers wrote a checkpoint, any part of it can be read."""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from checkpoint_files import IDENTITY, write_checkpoint

from pipeline.checkpoints import rng
from pipeline.checkpoints.directory import Checkpoint, RunDirectory
from pipeline.checkpoints.layout import KINDS, digest_of, write_tensors
from pipeline.checkpoints.reader import CheckpointReader
from pipeline.errors import ArtifactError


def opened(directory: RunDirectory, step: int) -> CheckpointReader:
    found = directory.verify(step)
    assert isinstance(found, Checkpoint)
    return CheckpointReader(found.path, found.manifest)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_range_of_any_partition(data: st.DataObject) -> None:
    """Parameters are cut anywhere among 1 to 4 workers; every range reads as if they had never been cut."""
    world = data.draw(st.integers(1, 4))
    shapes = {name: (data.draw(st.integers(1, 30)),) for name in "abc"[: data.draw(st.integers(1, 3))]}
    cuts: list[dict[str, tuple[int, int]]] = [{} for _ in range(world)]
    for name, (count,) in shapes.items():
        marks = sorted(data.draw(st.lists(st.integers(0, count), min_size=world - 1, max_size=world - 1)))
        bounds = [0, *marks, count]
        order = data.draw(st.permutations(range(world)))
        for part, rank in enumerate(order):
            if bounds[part] < bounds[part + 1]:
                cuts[rank][name] = (bounds[part], bounds[part + 1])
    with tempfile.TemporaryDirectory() as folder:
        directory = RunDirectory(Path(folder) / "run", IDENTITY)
        directory.prepare()
        values = write_checkpoint(directory, 1, shapes, cuts)
        reader = opened(directory, 1)
        for name, (count,) in shapes.items():
            start = data.draw(st.integers(0, count))
            stop = data.draw(st.integers(start, count))
            for kind in KINDS:
                assert torch.equal(reader.read(kind, name, start, stop), values[kind][name][start:stop])
                assert torch.equal(reader.whole(kind, name), values[kind][name].view(shapes[name]))


@pytest.mark.parametrize("cuts", [[{"a": (0, 5)}], [{"a": (0, 6)}, {"a": (5, 10)}], [{"a": (1, 10)}], [{}]])
def test_numbers_that_are_missing_or_double(tmp_path: Path, cuts: list[dict[str, tuple[int, int]]]) -> None:
    directory = RunDirectory(tmp_path / "run", IDENTITY)
    directory.prepare()
    write_checkpoint(directory, 1, {"a": (10,)}, cuts)
    with pytest.raises(ArtifactError, match="do not hold every number of a exactly once"):
        opened(directory, 1)


def test_the_digest_is_that_of_the_file(tmp_path: Path) -> None:
    """Written by us, read by the library."""
    from safetensors.torch import load_file

    tensors = {"x": torch.randn(3, 5), "bytes": torch.arange(7, dtype=torch.uint8), "none": torch.empty(0)}
    stored = write_tensors(tmp_path / "file", tensors, {"words": 'with "quotes" and ü'})
    assert stored.blake3 == digest_of(tmp_path / "file")
    assert stored.bytes == (tmp_path / "file").stat().st_size
    loaded = load_file(tmp_path / "file")
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_random_generators_go_on(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run", IDENTITY)
    directory.prepare()

    def draws() -> list[float]:
        return [torch.rand(()).item(), float(np.random.standard_normal()), random.gauss(0, 1), random.random()]

    draws()  # numpy and python keep the second of two normal numbers
    write_checkpoint(directory, 1, {"a": (1,)}, [{"a": (0, 1)}])
    expected = draws()
    draws()
    states = opened(directory, 1).rng(0)
    assert states is not None
    rng.restore(*states, torch.device("cpu"))
    assert draws() == expected
    assert opened(directory, 1).rng(1) is None
