"""What a train worker finds when it looks for the checkpoint that its driver has chosen."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.checkpoints.directory import RunDirectory
from pipeline.errors import ArtifactError, ClusterError
from pipeline.training.failures import is_lost

IDENTITY = {"options": {}, "libraries": {}, "data": "d", "model": "m", "reference": None}


def test_a_checkpoint_pruned_meanwhile_is_looked_for_again(tmp_path: Path) -> None:
    """The last worker of an earlier job may write, and prune, until it notices that its driver is dead."""
    directory = RunDirectory(tmp_path / "run", IDENTITY)
    directory.prepare()
    with pytest.raises(ClusterError, match="step-00000004 is gone") as caught:
        directory.fetch(4)
    assert is_lost(caught.value)


def test_a_storage_that_is_gone_ends_the_job(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run", IDENTITY)
    directory.prepare()
    shutil.rmtree(directory.path)
    with pytest.raises(ArtifactError, match="has disappeared") as caught:
        directory.fetch(4)
    assert not is_lost(caught.value)
