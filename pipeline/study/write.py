"""The files of a study."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pipeline.data.tables import write_json
from pipeline.errors import ArtifactError
from pipeline.study.export import as_json, write_runs
from pipeline.study.plots import draw
from pipeline.study.results import Study
from pipeline.study.show import as_markdown

FILES = ("study.json", "table.csv", "settings.md", "fronts.png")


def write(study: Study, directory: Path) -> None:
    """Write `FILES` into a directory, which is made; files of an earlier study are replaced, others stay.

    All are made beside it first and then moved one by one, so that a failure leaves what was there.

    Raises:
        ArtifactError: when they cannot be stored.
    """
    try:
        directory = directory.absolute()
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{directory.name}-", dir=directory.parent) as name:
            made = Path(name)
            write_json(made / "study.json", as_json(study))
            write_runs(study, made / "table.csv")
            (made / "settings.md").write_text(as_markdown(study), encoding="utf-8")
            (made / "fronts.png").write_bytes(draw(study))
            directory.mkdir(exist_ok=True)
            for file in FILES:
                (made / file).replace(directory / file)
    except ArtifactError:
        raise
    except OSError as error:
        raise ArtifactError(f"the study cannot be written to {directory}: {error.strerror}") from error
