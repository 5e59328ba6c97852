"""Bad input ends with one clear message that names the field, row or file and the remedy, and nothing half-written."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))
import job

GOOD_ROW = {"prompt": "Q?", "chosen": "yes", "rejected": "no"}


def lines(*rows: object) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def data_file(name: str, content: str) -> Callable[[Path], list[str]]:
    def prepare(folder: Path) -> list[str]:
        (folder / name).write_text(content)
        return ["--data.path", str(folder / name)]

    return prepare


def model_without_weights(folder: Path) -> list[str]:
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    return ["--model.path", str(folder / "model")]


def busy_port(folder: Path) -> list[str]:
    # Bound for the life of the test process; the number is what matters.
    probe = socket.create_server(("127.0.0.1", 0))
    busy_port.probe = probe  # type: ignore[attr-defined]
    return ["--cluster.dashboard_port", str(probe.getsockname()[1])]


def messages(role: str) -> list[dict[str, str]]:
    return [{"role": role, "content": "hello there"}]


CASES: dict[str, tuple[Callable[[Path], list[str]] | list[str], list[str]]] = {
    "misspelt option": (["--risk.levle", "0.5"], ["risk.levle", "risk.level"]),
    "misspelt method": (["--loss.method", "ra_dpo3"], ["loss.method", "ra_dpo2"]),
    "misspelt recipe": (["--recipe", "review"], ["review", "reviews"]),
    "risk with the scalar tier": (["--reference.tier", "scalar"], ["reference.tier", "hidden", "dpo"]),
    "cvar level": (["--risk.level", "1.5"], ["risk.level", "(0, 1]"]),
    "erm level": (["--risk.measure", "erm", "--risk.level", "0"], ["risk.level", "(0, inf)", "more averse"]),
    "weight of the tail": (
        ["--risk.measure", "mean_cvar", "--risk.weight", "1.5"],
        ["risk.weight", "[0, 1]", "all cvar"],
    ),
    "two budgets": (["--sft.steps", "3", "--sft.tokens", "10"], ["sft.steps", "sft.tokens"]),
    "storage of an unknown kind": (["--storage", "nowhere://bucket/runs"], ["--storage", "nowhere", "directory"]),
    "missing file": (["--data.path", "no-such-file.jsonl"], ["no-such-file.jsonl"]),
    "empty file": (data_file("empty.jsonl", ""), ["empty.jsonl", "empty"]),
    "wrong columns": (
        data_file("columns.jsonl", lines({"prompt": "Q", "choosen": "a", "rejected": "b"})),
        ["columns.jsonl", "choosen", "chosen"],
    ),
    "invalid JSON": (data_file("broken.jsonl", lines(GOOD_ROW, '{"prompt": ')), ["broken.jsonl", "2"]),
    "all rows faulty": (
        data_file("equal.jsonl", lines(*[{"prompt": f"Q{i}", "chosen": "same", "rejected": "same"} for i in range(5)])),
        ["chosen equals rejected", "5"],
    ),
    "a scorer that is not there": (
        ["--evaluation.scorers", "vaader", "--evaluation.primary_scorer", "vaader"],
        ["vaader", "vader"],
    ),
    "missing model": (["--model.path", "./no-such-model"], ["model.path", "no-such-model"]),
    "model without weights": (model_without_weights, ["model", "safetensors"]),
    "dead cluster": (["--cluster.address", "127.0.0.1:1"], ["cluster.address", "127.0.0.1:1"]),
    "busy port": (busy_port, ["cluster.dashboard_port", "in use"]),
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return job.write_recipe(tmp_path_factory.mktemp("recipe"))


def refused(output: str, code: int, words: list[str]) -> None:
    assert code not in (0, 70), output
    assert "Traceback" not in output
    (message,) = output.split("error: ")[1:]
    for word in words:
        assert word in message, f"{word!r} is not in: {message}"


@pytest.mark.parametrize("name", CASES)
def test_refused_with_one_message(name: str, recipe: Path, tmp_path: Path) -> None:
    prepare, words = CASES[name]
    arguments = prepare if isinstance(prepare, list) else prepare(tmp_path)
    storage = tmp_path / "runs"
    base = [] if "--recipe" in arguments else ["--recipe", str(recipe)]
    base += [] if "--storage" in arguments else ["--storage", str(storage)]
    code, output = job.run([*base, *arguments])
    refused(output, code, words)
    # What is wrong with the cluster is found after the data was read; everything else before anything is done.
    found = list(storage.glob("artifacts/*/*"))
    assert [path.parent.name for path in found] == (["data"] if "cluster." in words[0] else [])
    assert all((path / "manifest.json").is_file() for path in found), "nothing half-written may look like a result"
    assert not list(storage.glob("staging/*")), "nothing half-written stays"
    assert not list(storage.glob("reports/*"))


@pytest.mark.long
def test_more_workers_than_the_machine_has_cpus(recipe: Path, tmp_path: Path) -> None:
    code, output = job.run(
        ["--recipe", str(recipe), "--storage", str(tmp_path / "runs"), "--cluster.num_workers", "500"]
    )
    refused(output, code, ["cluster.num_workers is 500", "autoscaling"])
    code, output = job.run(
        [
            *("--recipe", str(recipe), "--storage", str(tmp_path / "runs"), "--cluster.num_workers", "500"),
            *("--cluster.autoscaling", "true", "--cluster.resource_wait_s", "3"),
        ]
    )
    refused(output, code, ["did not grow", "cluster.resource_wait_s"])


def test_an_unknown_key_in_a_recipe(recipe: Path, tmp_path: Path) -> None:
    run = yaml.safe_load(recipe.read_text())
    run["train"]["micro_batch_sise"] = run["train"].pop("micro_batch_size")
    (tmp_path / "typo.yaml").write_text(yaml.safe_dump(run))
    code, output = job.run(["--recipe", str(tmp_path / "typo.yaml"), "--storage", str(tmp_path / "runs")])
    refused(output, code, ["train.micro_batch_sise", "train.micro_batch_size"])


def test_messages_without_a_chat_template(recipe: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": messages("user"), "chosen": f"yes {i}", "rejected": f"no {i}", "topic": f"t{i}"} for i in range(60)
    ]
    (tmp_path / "chat.jsonl").write_text(lines(*rows))
    code, output = job.run(
        [
            *("--recipe", str(recipe), "--storage", str(tmp_path / "runs")),
            *("--data.path", str(tmp_path / "chat.jsonl"), "--data.group_column", "topic"),
        ]
    )
    refused(output, code, ["chat template"])


def test_no_network_for_a_hub_id(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    arguments = ["--recipe", str(recipe), "--storage", str(tmp_path / "runs")]
    code, output = job.run([*arguments, "--model.path", "someone/some-model"])
    refused(output, code, ["model.path", "someone/some-model"])
    code, output = job.run([*arguments, "--data.path", "someone/some-data"])
    refused(output, code, ["someone/some-data"])


def test_models_that_cannot_fit(recipe: Path, small_disk: Callable[[str], Path]) -> None:
    """Three models of 180 kB on a disk of 200 kB: the job ends before it reads anything or starts Ray."""
    storage = small_disk("size=200k")
    code, output = job.run(["--recipe", str(recipe), "--storage", str(storage)])
    refused(output, code, ["kB free", "the run would write", "set --storage to another disk"])
    assert "tier" not in output
    assert "data  started" not in output
    assert not list(storage.glob("artifacts/*"))


@pytest.mark.long
def test_a_reference_that_cannot_fit(recipe: Path, small_disk: Callable[[str], Path]) -> None:
    """Models, checkpoints and tokens fit, the hidden states do not: refused once they are counted, before fine-tuning
    spends anything; what the message names is accepted."""
    disk = small_disk("size=2700k")
    arguments = ["--recipe", str(recipe), "--storage", str(disk), "--risk.measure", "mean"]
    code, output = job.run(arguments)
    refused(output, code, [f"storage {disk} has", "reference cache", "--data.max_train_pairs"])
    assert "base  " in output
    assert "sft" not in output
    assert not list(disk.glob("staging/*"))
    flags = output.partition("fits: `")[2].partition("`")[0].split()
    assert flags[:1] == ["--reference.hidden_rows"]
    code, output = job.run([*arguments, *flags, "--dry-run"])
    assert code == 0, output
    assert "this run" in output


@pytest.mark.long
def test_a_full_disk(recipe: Path, tmp_path: Path, small_disk: Callable[[str], Path]) -> None:
    """Others fill the disk while the job runs: it ends with one message and leaves nothing half-written."""
    storage, log = small_disk("size=8m"), tmp_path / "log"
    process = job.start(["--recipe", str(recipe), "--storage", str(storage)], log)
    try:
        deadline = time.monotonic() + 120
        while "> sft  started" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with contextlib.suppress(OSError):  # the job may take the last bytes first
            (storage / "filler").write_bytes(bytes(shutil.disk_usage(storage).free))
        code = process.wait(timeout=200)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    # Preflight says it, or the checkpoint or artefact that met the full disk: which one depends on the moment.
    refused(log.read_text(), code, ["free some space", "--storage"])
    assert "trying again" not in log.read_text()
    assert not list(storage.glob("staging/*"))
