from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from manifests import CLUSTERS, KUBERNETES, ROOT, VARIANTS, base

from pipeline.cli import parse_job

README = (CLUSTERS / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted(CLUSTERS.rglob("*.sh")), ids=lambda path: path.name)
def test_shell_scripts_are_shell(path: Path) -> None:
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_readmes_commands_are_shell() -> None:
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 5
    for block in blocks:
        done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False, timeout=30)
        assert (done.returncode, done.stderr) == (0, ""), block


def test_the_readme_submits_options_that_exist() -> None:
    text = README.replace("\\\n", " ")
    marks = (
        "two-node.sh submit ",
        "-- python jobs/align.py ",
        "--  python jobs/align.py ",
        "--    python jobs/align.py ",
    )
    given = [line.split(mark, 1)[1] for line in text.splitlines() for mark in marks if mark in line]
    given = [re.split(r"\s#", arguments)[0] for arguments in given]
    assert len(given) == len(re.findall(r"two-node.sh submit |python jobs/align.py ", text))
    for arguments in given:
        assert parse_job("align", "Align a model.", shlex.split(arguments)).storage


def test_the_readme_names_files_and_parts_that_exist() -> None:
    for path in re.findall(r"clusters/[\w./-]+", README):
        assert (ROOT / path).exists(), path
    for name in re.findall(r"`((?:ray-up|base|gpu|optional)/[\w.-]+\.yaml)`", README):
        assert (CLUSTERS / name).exists() or (KUBERNETES / name).exists(), name
    parts = {document["metadata"]["labels"]["ra-dpo/part"] for document in base()}
    assert set(re.findall(r"ra-dpo/part=(\w+)", README)) <= parts
    described = re.findall(r"^\| `(\w+)`(?:, `(\w+)`)? \| a ", README, re.MULTILINE)
    assert {name for row in described for name in row if name} | {"foundation"} == parts
    for variant in VARIANTS:
        assert f"`{variant}`" in README


@pytest.mark.parametrize("arguments", [[], ["tail"], ["worker"]])
def test_the_script_explains_itself(arguments: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", CLUSTERS / "two-node.sh", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        env=os.environ | {"HOME": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("usage: clusters/two-node.sh head")
