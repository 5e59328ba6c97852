"""Differences between runs, in words."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from checkpoint_files import IDENTITY

from pipeline.checkpoints.identity import differences


def test_the_same_after_json() -> None:
    here = IDENTITY | {"options": {"seeds": (1, 2)}}
    assert differences(json.loads(json.dumps(here)), here) == []


def test_each_is_named_with_both_values() -> None:
    other = json.loads(json.dumps(IDENTITY))
    other["options"]["train"]["seed"] = 7
    other["options"]["train"]["new"] = True
    other["libraries"]["torch"] = "3"
    other["data"] = "e" * 32
    assert differences(other, IDENTITY) == [
        "the data eeeeeeeeeeee there, dddddddddddd here",
        "train.new True there, None here",
        "train.seed 7 there, 0 here",
        "torch 3 there, 2 here",
    ]
