"""The study for people: tables in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from pipeline.evaluation.statistics import Estimate
from pipeline.study.analyse import COMPARED, TESTED
from pipeline.study.compare import Axis
from pipeline.study.measures import BY_NAME
from pipeline.study.results import Cell, Difference, Matched, Row, Study
from pipeline.study.settings import BETA, Setting

_AT = {"drift": "the same drift (sequential KL on chosen)", "mean": "the same mean VADER"}
ALL = tuple(BY_NAME)
_FAMILY = {"drift": "primary family", "mean": "second family"}


def as_markdown(study: Study) -> str:
    """Every table, each with how to read it."""
    parts = [
        "# Settings beside dpo",
        basis_text(study),
        "## Every setting",
        "Means over training seeds, with 95% intervals; the seconds are those of alignment.",
        settings_table(study),
        f"## Difference from dpo at the same rate and beta {BETA:g}",
        "Paired by seed and by film; * where the interval excludes zero (not corrected for the number of intervals).",
        differences_table(study),
        "## Standard deviation over training seeds",
        deviations_table(study),
    ]
    for axis in COMPARED:
        parts += [
            f"## Difference from dpo's front at {_AT[axis]}",
            matched_text(study, axis),
            matched_table(study, axis),
        ]
    return "\n\n".join(parts) + "\n"


def basis_text(study: Study) -> str:
    """What every figure is conditional on, and what was fixed beforehand."""
    basis = study.basis
    return (
        f"Everything here is conditional on one reference model and one split of the data: {basis['num_prompts']} "
        f"prompts with {basis['samples_per_prompt']} samples each and {basis['num_pairs']} pairs of "
        f"{basis['num_films']} films ({basis['split']}), {len(basis['seeds'])} training seeds. Another reference, or "
        "another split, may rank the methods otherwise. Intervals are of seeds and films drawn again together, "
        f"{basis['resamples']:,} times. CVaR: mean of the worst {basis['tail_fraction']:.0%} of outputs; incident: an "
        f"output with VADER below {basis['incident_below']:g}."
    )


def settings_table(study: Study, names: Sequence[str] = ALL) -> str:
    """A line for the reference and one for each setting, with a column for each measure of ``names``."""

    def seconds(row: Row) -> str:
        return "" if row.seconds is None else f"{row.seconds:.0f}"

    header = ["setting", "rate", *(f"{BY_NAME[name].title}, {BY_NAME[name].unit}" for name in names), "seconds"]
    of_reference = [
        _interval(study.reference[name], BY_NAME[name].form) if name in study.reference else "" for name in names
    ]
    rows = [["reference", "", *of_reference, ""]]
    rows += [[*_named(row.setting), *_cells(row, names, _value), seconds(row)] for row in study.rows]
    return _table(header, rows)


def differences_table(study: Study, names: Sequence[str] = ALL) -> str:
    """A line for each setting but the ones that are compared with."""

    def cell(one: Cell, form: str) -> str:
        return "" if one.difference is None else _signed(one.difference, form)

    rows = [[*_named(row.setting), *_cells(row, names, cell)] for row in study.rows if _differs(row)]
    return _table(["setting", "rate", *(BY_NAME[name].title for name in names)], rows)


def deviations_table(study: Study, names: Sequence[str] = ALL) -> str:
    """A line for each setting."""

    def cell(one: Cell, form: str) -> str:
        return "" if one.deviation is None else f"{one.deviation:{form}}"

    rows = [[*_named(row.setting), *_cells(row, names, cell)] for row in study.rows]
    return _table(["setting", "rate", *(BY_NAME[name].title for name in names)], rows)


def matched_text(study: Study, axis: Axis) -> str:
    """How to read the table that follows."""
    tests = sum(one.corrected is not None for row in study.matched[axis] for one in row.differences.values())
    tested = " and ".join(BY_NAME[name].title for name in TESTED)
    points = ", ".join(f"beta {one.beta:g} at rate {one.lr:g}" for one in study.front)
    return (
        f"dpo's front: {points}. p: two-sided bootstrap, corrected by Holm for the "
        f"{_FAMILY[axis]}, {tested} of every setting but dpo that has a match ({tests} tests). n/m: seeds whose own "
        "difference has the sign of the estimate. Clamped: share of resamples beyond the front, which took its end. "
        "Bend: a point of the front less the straight line between its neighbours. Settings are compared with such "
        "lines, of half the length: where the bend is even they miss by up to a quarter of it, which is in no interval."
    )


def matched_table(study: Study, axis: Axis, names: Sequence[str] | None = None) -> str:
    """A line for each setting off the front, then one for each of its inner points, held against its neighbours."""
    names = COMPARED[axis] if names is None else names
    header = ["setting", "rate", BY_NAME[axis].title, *(BY_NAME[name].title for name in names), "clamped"]
    rows = [_matched_row(one, axis, names) for one in study.matched[axis]]
    bends = [_matched_row(one, axis, names) for one in study.bends[axis]]
    return _table(header, rows + [[f"bend of the front: {label}", *rest] for label, *rest in bends])


def _matched_row(one: Matched, axis: Axis, names: Sequence[str]) -> list[str]:
    start = [*_named(one.setting), f"{one.at.value:{BY_NAME[axis].form}}"]
    if one.reason is not None:
        return [*start, f"no match: {one.reason}", *[""] * len(names)]
    return [*start, *(_tested(one.differences[name], BY_NAME[name].form) for name in names), f"{one.outside:.1%}"]


def _tested(one: Difference, form: str) -> str:
    up = one.estimate.value > 0
    same = sum((value > 0) == up and value != 0 for value in one.by_seed)
    count = f" {same}/{len(one.by_seed)}" if one.estimate.value else ""
    p = "" if one.corrected is None else f", p {one.corrected:.3f}"
    return f"{_signed(one.estimate, form)}{count}{p}"


def _differs(row: Row) -> bool:
    return any(cell.difference is not None for cell in row.cells.values())


def _cells(row: Row, names: Sequence[str], show: Callable[[Cell, str], str]) -> list[str]:
    return [show(row.cells[name], BY_NAME[name].form) for name in names]


def _value(cell: Cell, form: str) -> str:
    return _interval(cell.estimate, form)


def _named(setting: Setting) -> list[str]:
    return [setting.label, f"{setting.lr:g}"]


def _signed(one: Estimate, form: str) -> str:
    return _interval(one, f"+{form}") + (" *" if one.sign else "")


def _interval(one: Estimate, form: str) -> str:
    between = "" if one.low is None or one.high is None else f" ({one.low:{form}} to {one.high:{form}})"
    return f"{one.value:{form}}{between}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
