"""Print what the pipeline needs at run time, one requirement a line: python clusters/requirements.py pyproject.toml

For an image that holds the packages in one layer and the code in another.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def requirements(pyproject: str) -> list[str]:
    """The dependencies, and those of the extra for storage at an object store."""
    project = tomllib.loads(pyproject)["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["s3"]]


if __name__ == "__main__":
    print(*requirements(Path(sys.argv[1]).read_text(encoding="utf-8")), sep="\n")
