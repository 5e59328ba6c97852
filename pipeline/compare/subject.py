"""What a comparison is about: both sides, and the prompts and seeds that they are compared on. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.compare.prompts import Common, common, read_prompts
from pipeline.compare.sides import Model, Outputs, Side, Versions, resolve
from pipeline.config import EvaluationConfig
from pipeline.errors import DataError

NAMES = ("A", "B")


@dataclass(frozen=True)
class Subject:
    """``sides`` by "A" and "B"."""

    sides: dict[str, Side]
    on: Common

    @property
    def models(self) -> dict[str, Model]:
        """The sides that have to be sampled from."""
        return {name: side for name, side in self.sides.items() if isinstance(side, Model)}

    @property
    def outputs(self) -> dict[str, Outputs]:
        """The sides whose outputs are there already."""
        return {name: side for name, side in self.sides.items() if isinstance(side, Outputs)}

    def lines(self) -> Iterator[str]:
        """What is compared, for the console."""
        for name, side in self.sides.items():
            yield f"{name}: {side.label}"
        on = self.on
        outputs = len(on.prompts) * len(on.seeds)
        seeds = f"{len(on.seeds)} seed{'s' if len(on.seeds) > 1 else ''}"
        yield f"{len(on.prompts):,} prompts with {seeds}: {outputs:,} outputs of each"
        for source, count in on.left_out.items():
            yield f"left out: {count:,} prompts of {source} that the other does not have"
        if on.more_prompts:
            yield f"left out: {on.more_prompts:,} more prompts in common (evaluation.num_prompts)"
        if on.outputs_left_out:
            yield f"left out: {on.outputs_left_out:,} outputs of seeds that are not compared"


def find_subject(
    specs: tuple[str, str], prompts: str | None, versions: Versions, evaluation: EvaluationConfig
) -> Subject:
    """Find both sides and what they have in common.

    Args:
        specs: what names A and B.
        prompts: a file of prompts, or None for those that a side comes with.

    Raises:
        PipelineError: when a side cannot be used, both are the same, or nothing is in common.
    """
    a, b = (resolve(spec, name, versions) for spec, name in zip(specs, NAMES, strict=True))
    if type(a) is type(b) and a.digest == b.digest:
        alike = "the same model (weights and tokenizer)" if isinstance(a, Model) else "files with the same content"
        raise DataError(f"A ({a.label}) and B ({b.label}) are {alike}: there is nothing to compare")
    sides = dict(zip(NAMES, (a, b), strict=True))
    answers = {_called(name, one): one.rows for name, one in sides.items() if isinstance(one, Outputs)}
    models = {_called(name, one): one for name, one in sides.items() if isinstance(one, Model)}
    if prompts is not None:
        file = Path(prompts).expanduser()
        if not file.is_file():
            raise DataError(f"--prompts: there is no file {prompts}")
        sources = {f"--prompts {prompts}": read_prompts(file)}
    else:
        sources = {} if answers else {name: list(one.prompts) for name, one in models.items() if one.prompts}
    if not sources and not answers:
        raise DataError(
            "there are no prompts to compare on: a version of the registry comes with those that it was judged by (the "
            "reference and a plain directory do not), a file of outputs with its own; give --prompts FILE, rows as "
            '{"prompt": "..."}'
        )
    known = [prompt for one in models.values() for prompt in one.prompts]
    return Subject(sides, common(sources, answers, evaluation.seeds, evaluation.num_prompts, known))


def _called(name: str, side: Side) -> str:
    return f"{name} ({side.label})"
