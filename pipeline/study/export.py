"""The study for machines: everything as JSON, and a line of CSV for each run."""

from __future__ import annotations

import csv
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.study.analyse import TESTED
from pipeline.study.measures import MEASURES
from pipeline.study.results import Matched, Study
from pipeline.study.runs import SEED
from pipeline.study.settings import Setting
from pipeline.study.show import basis_text

_OPTIONS = {
    "loss.method": "method",
    "risk.measure": "measure",
    "risk.level": "level",
    "loss.beta": "beta",
    "train.optim.lr": "lr",
}


def as_json(study: Study) -> dict[str, Any]:
    """All of it; nothing that is not finite."""
    return {
        "conditional_on": basis_text(study),
        "basis": dict(study.basis),
        "measures": [asdict(one) for one in MEASURES],
        "reference": {name: one.as_dict() for name, one in study.reference.items()},
        "settings": [
            {
                **_setting(row.setting),
                "seeds": list(row.seeds),
                "align_seconds": row.seconds,
                "figures": {
                    name: {
                        **cell.estimate.as_dict(),
                        "deviation": cell.deviation,
                        "difference": None if cell.difference is None else cell.difference.as_dict(),
                    }
                    for name, cell in row.cells.items()
                },
            }
            for row in study.rows
        ],
        "front": [_setting(one) for one in study.front],
        "family": {"measures": list(TESTED), "primary": "drift", "second": "mean"},
        "matched": {axis: [_matched_json(one) for one in rows] for axis, rows in study.matched.items()},
        "bends": {axis: [_matched_json(one) for one in rows] for axis, rows in study.bends.items()},
    }


def _setting(setting: Setting) -> dict[str, Any]:
    return {"label": setting.label, **asdict(setting)}


def _matched_json(one: Matched) -> dict[str, Any]:
    differences = {
        name: {
            **difference.estimate.as_dict(),
            "by_seed": list(difference.by_seed),
            "p": difference.p,
            "p_corrected": difference.corrected,
        }
        for name, difference in one.differences.items()
    }
    at = {"at": one.at.as_dict(), "no_match": one.reason, "clamped": one.outside}
    return {**_setting(one.setting), **at, "differences": differences}


def write_runs(study: Study, path: Path) -> None:
    """A line for each run: its options, its seed, every measure, seconds of alignment; an unused option is empty."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["run", *_OPTIONS, SEED, *(one.name for one in MEASURES), "align_seconds"])
        for run in study.runs:
            options = [getattr(run.setting, name) for name in _OPTIONS.values()]
            values = [repr(run.values[one.name]) for one in MEASURES]
            table.writerow([run.name, *options, run.seed, *values, run.seconds])
