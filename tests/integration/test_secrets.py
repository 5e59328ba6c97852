"""A run whose environment holds secrets writes none of them down."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import job
from conftest import FinishedRun


def leaks(roots: Iterable[Path], secrets: Mapping[str, str]) -> list[str]:
    """Files that hold a secret's value, each with the secret's name."""
    wanted = {name: value.encode() for name, value in secrets.items()}
    return [
        f"{name} in {path}"
        for root in roots
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.is_symlink()
        for name, value in wanted.items()
        if value in path.read_bytes()
    ]


def test_a_run_leaves_no_secret_in_its_files_and_on_the_console(finished_run: FinishedRun) -> None:
    files = [path for path in finished_run.storage.rglob("*") if path.is_file()]
    kinds = {path.suffix for path in files}
    assert {".html", ".json", ".jsonl", ".yaml", ".safetensors", ".log"} <= kinds
    assert leaks([finished_run.storage], job.SECRETS) == []
    assert [name for name, value in job.SECRETS.items() if value in finished_run.output] == []


def test_a_secret_that_is_written_down_is_found(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "run.yaml").write_text(f"token: {job.SECRETS['HF_TOKEN']}\n")
    assert leaks([tmp_path], job.SECRETS) == [f"HF_TOKEN in {tmp_path / 'deep' / 'run.yaml'}"]


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A directory for temporary files whose path is short enough for Ray's sockets."""
    folder = Path(tempfile.mkdtemp(prefix="ra-"))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.long
def test_neither_do_rays_logs_the_tracker_and_a_signed_trail(
    finished_run: FinishedRun, tmp_path: Path, short_folder: Path
) -> None:
    """A new alignment on the finished stages, tracked offline, in a registry of its own whose trail is signed."""
    secrets = job.SECRETS | {"RA_DPO_AUDIT_KEY": "canary-of-the-audit-trail"}
    storage = tmp_path / "runs"
    shutil.copytree(finished_run.storage, storage)
    arguments = ["--recipe", str(finished_run.recipe), "--storage", str(storage), "--loss.beta", "0.2"]
    arguments += ["--wandb.mode", "offline", "--registry.root", str(tmp_path / "registry")]
    code, output = job.run(arguments, variables=secrets | {"TMPDIR": str(short_folder)})
    assert code == 0, output
    assert list(storage.rglob("*.wandb")), "W&B wrote nothing"
    assert list((short_folder / "ray").rglob("*.log")), "Ray's logs lie elsewhere"
    assert '"mac": "' in "".join(path.read_text() for path in (tmp_path / "registry").rglob("*.json"))
    assert leaks([storage, tmp_path / "registry", short_folder], secrets) == []
    assert [name for name, value in secrets.items() if value in output] == []
