"""What a sweep leaves for people: report.html and sweep.json, and the facts in them that lie in the store."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pipeline.keys import library_versions
from pipeline.plan import cache_shape
from pipeline.refusals import explained
from pipeline.report.sweep import render_sweep
from pipeline.storage import Folder, local_copy
from pipeline.survey import counts_of, model_shape
from pipeline.sweep.judged import Judged
from pipeline.sweep.result import Facts
from pipeline.tiers import cache_bytes, chosen_kind

if TYPE_CHECKING:
    from pipeline.artifacts import Store
    from pipeline.sweep.phase import Phase


def gathered(phase: Phase, judged: Judged, store: Store, seconds: float) -> Facts:
    """What the store knows of the trials."""
    base = phase.base
    tokens = local_copy(store.location("tokens", phase.shared_key("tokens")))
    shape = cache_shape(base, counts_of(tokens), model_shape(base.model, phase.reference_model(store)))
    kinds = {base.reference.tier: chosen_kind(base.reference), "scalar": "scalar"}
    return Facts(
        recipe=phase.recipe,
        command=" ".join(["python", *map(shlex.quote, sys.argv)]),
        trials_at_once=phase.at_once,
        seconds_total=seconds,
        seconds_per_step=dict(_step_seconds(judged, store)),
        reference_bytes={tier: cache_bytes(kind, base.reference, shape) for tier, kind in kinds.items()},
        versions=library_versions(("ray", "torch", "transformers", "deepspeed", "optuna")),
    )


def _step_seconds(judged: Judged, store: Store) -> Iterator[tuple[str, float]]:
    for trials in judged.trials:
        for one in trials:
            summary = one.summary
            assert summary is not None
            manifest = store.manifest("align", summary["artifacts"]["align"])
            if manifest is not None:
                yield str(one.outcome.summary), float(manifest["info"]["seconds_per_step"])


def publish(folder: Folder, content: Mapping[str, Any]) -> list[str]:
    """Write both files, each as a whole; returns where they are."""
    directory = folder.path
    files = {"sweep.json": json.dumps(content, indent=1, allow_nan=False), "report.html": render_sweep(content)}
    with explained(f"{directory} cannot be written"):
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            fresh = directory / f".{name}.new"
            fresh.write_text(text, encoding="utf-8")
            os.replace(fresh, directory / name)
    folder.send(*files)
    return [f"{folder.where}/{name}" for name in files]
