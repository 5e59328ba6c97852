from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from manifests import CLUSTERS, KUBERNETES, ROOT, VARIANTS, base, parsed

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


def submitted() -> list[str]:
    """The commands that the README submits, with the job that each begins with."""
    text = README.replace("\\\n", " ")
    direct = re.findall(r"--\s+(python jobs/[^\n#]+)", text)
    by_script = re.findall(r"two-node\.sh submit ([^\n#`]+)", text)
    return direct + [f"python {'' if given.startswith('jobs/') else 'jobs/align.py '}{given}" for given in by_script]


@pytest.mark.parametrize("command", submitted())
def test_the_readme_submits_options_that_exist(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = command.replace("...", "--storage s3://bucket/prefix")
    assert parsed(shown, None, monkeypatch).storage


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
