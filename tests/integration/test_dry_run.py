"""``--dry-run`` as a person meets it: the real command, on storages that are new, half done, or unusable."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from conftest import FinishedRun

from pipeline.align import AlignmentRun
from pipeline.artifacts import Store
from pipeline.config import RunConfig
from pipeline.console import Console
from pipeline.describe import describe
from pipeline.errors import ArtifactError
from pipeline.graph import PlannedStage, execute
from pipeline.plan import cost
from pipeline.recipes import load_recipe, resolve
from pipeline.reference.foresight import Foreseen
from pipeline.storage import open_storage
from pipeline.survey import counts_of, model_directory, model_shape

ROOT = Path(__file__).resolve().parents[2]
STAGES = (
    *("data", "base", "tokens", "sft", "reference"),
    *("sample_reference", "align", "sample_policy", "evaluate", "report"),
)
SMALL = {
    "data.max_train_pairs": 50,
    "data.max_validation_pairs": 10,
    "model.build.vocab_size": 400,
    "model.build.hidden_size": 16,
    "model.build.num_layers": 1,
    "model.build.num_heads": 2,
    "data.overlong": "truncate",
}


def dry_run(storage: Path | str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "jobs" / "align.py"), "--dry-run", "--storage", str(storage), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def cells(output: str, first: str) -> list[str]:
    """The cells of the table row that starts with ``first``."""
    (line,) = [line for line in output.splitlines() if line.startswith(first + "   ")]
    return [cell.strip() for cell in re.split(r" {3,}", line) if cell.strip()]


def everything_below(path: Path) -> dict[str, tuple[int, int]]:
    return {str(one): (one.stat().st_mtime_ns, one.stat().st_size) for one in sorted(path.rglob("*"))}


def test_a_new_storage_is_described_quickly_and_not_made(tmp_path: Path) -> None:
    storage = tmp_path / "not" / "there"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = dry_run(storage, "--recipe", "reviews", "--risk.level", "0.25")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []
    # Seconds of a processor, for others may use the machine too; most of them for importing torch and transformers.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 20

    shown_yaml = ran.stdout.partition("\nstage ")[0]
    described = resolve(load_recipe("reviews"), {"risk.level": 0.25}).model_dump(mode="json", exclude={"realign"})
    assert described == yaml.safe_load(shown_yaml)
    for name in STAGES:
        row = cells(ran.stdout, name)
        assert re.fullmatch("[0-9a-f]{8}", row[-2])
        assert row[-1] == "to do"
    assert cells(ran.stdout, "align")[1] == "tokens, reference, sft"
    assert "12 of 12 stages to do" in ran.stdout
    assert cells(ran.stdout, "preference pairs")[1].startswith("about train 1,500, validation 200, test 7")
    assert "characters / 3.3" in cells(ran.stdout, "preference pairs")[2]
    assert cells(ran.stdout, "reference cache")[1:] == ["bytes", "serves ra_dpo2 with cvar", "chosen by"]
    assert cells(ran.stdout, "hidden")[2:] == ["yes", "this run"]
    assert cells(ran.stdout, "hidden, 8bit")[2:] == ["yes", "--reference.hidden_rows 8bit"]
    assert cells(ran.stdout, "topk, 64 tokens a position")[2:] == ["yes", "--reference.tier topk"]
    assert cells(ran.stdout, "scalar")[2:] == ["no", "-"]
    assert cells(ran.stdout, "tokens to compute")[1] == "about 134,148"
    speed = cells(ran.stdout, "tokens per second")
    assert re.fullmatch(r"about [\d,]+ an actor", speed[1])
    assert re.fullmatch(r"measured now on [\d,]+ tokens with 1 thread\(s\)", speed[2])
    assert re.fullmatch(r"about [\d.]+ (s|min).*", cells(ran.stdout, "time to compute")[1])
    assert cells(ran.stdout, "model parameters")[1] == "about 1,317,632"
    assert cells(ran.stdout, "one saved model")[1:] == ["about 5.3 MB", "5 to write"]
    known = "3 of 15.8 MB at one time, then removed"
    assert cells(ran.stdout, "checkpoints while training")[1:] == ["at most 47.4 MB", known]
    assert cells(ran.stdout, "alignment steps")[1] == "about 188"
    assert cells(ran.stdout, "samples")[1:] == ["about 640", "2 models x 80 prompts x 4 seeds"]
    assert re.fullmatch(r"[\d,.]+ [kMGTP]?B", cells(ran.stdout, "free at the storage")[1])
    assert "\x1b" not in ran.stdout


def test_ray_is_not_imported_for_the_default_run(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from pipeline.cli import parse_job\n"
        "from pipeline.job import align\n"
        f"align(parse_job('align', 'Align.', ['--dry-run', '--storage', {str(tmp_path / 'none')!r}]))\n"
        "print([name for name in ('ray', 'deepspeed') if name in sys.modules])\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert ran.stdout.splitlines()[-1] == "[]", ran.stderr


def test_committed_stages_are_shown_done_and_their_numbers_are_exact(tmp_path: Path) -> None:
    storage = tmp_path / "runs"
    run = resolve(load_recipe("reviews"), SMALL)
    planned = AlignmentRun("reviews", run, open_storage(str(storage))).planned
    options = [text for name, value in SMALL.items() for text in (f"--{name}", str(value))]

    def commit(*names: str) -> None:
        execute(
            {name: planned[name] for name in names},
            Store(str(storage)),
            Console(tmp_path / "log", stream=io.StringIO()),
        )

    # With the model built, its tokenizer counts; with the tokens committed, their own statistics are shown.
    commit("data", "base")
    counted = io.StringIO()
    describe(run, planned, open_storage(str(storage)), counted)
    assert "counted with the model's tokenizer" in counted.getvalue()
    commit("data", "base", "tokens")
    stats = json.loads((Path(Store(str(storage)).location("tokens", planned["tokens"].key)) / "stats.json").read_text())
    before = everything_below(storage)
    ran = dry_run(storage, *options)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert everything_below(storage) == before

    for name in ("data", "base", "tokens"):
        assert re.fullmatch(r"done \(\d+\.\d s\)", cells(ran.stdout, name)[-1])
        assert cells(ran.stdout, name)[-2] == planned[name].key[:8]
    assert cells(ran.stdout, "sft")[-1] == "to do"
    assert "9 of 12 stages to do" in ran.stdout
    pairs = f"train {stats['rows']['train']}, validation {stats['rows']['validation']}, test {stats['rows']['test']}"
    assert cells(ran.stdout, "preference pairs")[1:] == [pairs, "from the committed tokens"]
    assert cells(ran.stdout, "fine-tuning texts")[1] == f"{stats['sft']['rows']:,}"
    assert cells(ran.stdout, "tokens in texts")[1] == f"{sum(stats['sft']['tokens'].values()):,}"
    grown = io.StringIO()
    describe(run, planned, open_storage(str(storage)), grown, foreseen=Foreseen(10**9, 1_000, 0, 0))
    taken = "1,000 more are taken over from other caches, if their files are whole"
    assert cells(grown.getvalue(), "pairs to compute")[1:] == ["0", taken]
    assert cells(grown.getvalue(), "tokens to compute")[1] == "0"
    assert cells(grown.getvalue(), "tokens per second")[2] == "not measured: nothing is left to compute"
    # The model is built now, so that it is measured itself.
    assert cells(ran.stdout, "tokens per second")[2].startswith("measured now on ")
    computed = sum(sum(stats["tokens"][name].values()) for name in ("train", "validation"))
    assert cells(ran.stdout, "tokens to compute")[1] == f"{computed:,}"
    for tier in ("hidden", "hidden, 8bit", "topk, 64 tokens a position", "scalar"):
        assert re.fullmatch(r"[\d.]+ [kM]B", cells(ran.stdout, tier)[1])
        assert cells(counted.getvalue(), tier)[1] == cells(ran.stdout, tier)[1]
    assert cells(ran.stdout, "one saved model")[2] == "4 to write"
    for row in ("preference pairs", "fine-tuning texts", "tokens in pairs", "tokens in texts", "samples"):
        assert cells(counted.getvalue(), row)[1] == cells(ran.stdout, row)[1]


def test_a_damaged_artefact_is_to_do_again(tmp_path: Path) -> None:
    storage = tmp_path / "runs"
    run = resolve(load_recipe("reviews"), SMALL)
    planned = AlignmentRun("reviews", run, open_storage(str(storage))).planned
    damaged = Path(Store(str(storage)).location("tokens", planned["tokens"].key))
    damaged.mkdir(parents=True)
    (damaged / "manifest.json").write_text("{")
    shown = io.StringIO()
    describe(run, planned, open_storage(str(storage)), shown)
    assert cells(shown.getvalue(), "tokens")[-1] == "to do"
    assert "characters / 3.3" in shown.getvalue()


def test_a_run_that_cannot_fit_is_described_and_then_refused(tmp_path: Path) -> None:
    ran = dry_run(tmp_path / "none", "--model.build.hidden_size", "4000000")
    assert ran.returncode == 1
    assert cells(ran.stdout, "hidden")[1].endswith(" TB")
    assert "not measured: the model's " in cells(ran.stdout, "tokens per second")[2]
    assert re.match(
        r"error: storage \S+ has [\d,.]+ [kMGT]?B free, but the run would write about 43(\.\d)? PB", ran.stderr
    )
    assert "--storage to another disk" in ran.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--data.path", "no-such.jsonl", "--data.format", "pairs"), 1, "data file no-such.jsonl does not exist"),
        (("--model.path", "./no-such-model"), 1, "no model directory at './no-such-model'"),
        (("--storage", "nowhere://bucket/runs"), 1, "Protocol not known: nowhere"),
        (("--storage", f"{Path(__file__)}/runs"), 1, "cannot be written: Not a directory"),
    ],
)
def test_bad_input_is_refused_as_by_the_run_itself(
    tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    ran = dry_run(tmp_path / "none", *arguments)
    assert (ran.returncode, ran.stdout) == (code, "")
    assert ran.stderr.startswith("error: ")
    assert message in ran.stderr
    assert "Traceback" not in ran.stderr
    assert list(tmp_path.iterdir()) == []


def described(run: RunConfig, recipe: str, storage: Path) -> str:
    shown = io.StringIO()
    describe(run, AlignmentRun(recipe, run, open_storage(str(storage))).planned, open_storage(str(storage)), shown)
    return shown.getvalue()


def test_a_reference_that_cannot_fit_is_refused_with_the_tiers_that_can(
    tmp_path: Path, small_disk: Callable[[str], Path]
) -> None:
    """The default run's hidden states are 62 MB, in 8 bits 18 MB; ``reference.root`` is a disk of 30 MB."""
    root = small_disk("size=30m")
    options = {"reference.root": str(root / "caches")}
    with pytest.raises(ArtifactError) as refused:
        described(resolve(load_recipe("reviews"), options), "reviews", tmp_path / "none")
    said = f"reference.root {root}/caches has 31.5 MB free, but the run would write about 62.6 MB"
    assert str(refused.value).startswith(said)
    assert "choose a tier that fits: `--reference.hidden_rows 8bit` (needs about 17.6 MB)" in str(refused.value)
    assert "--reference.tier scalar" not in str(refused.value)
    run = resolve(load_recipe("reviews"), options | {"reference.hidden_rows": "8bit"})
    shown = described(run, "reviews", tmp_path / "none")
    assert cells(shown, "free at reference.root")[1] == "31.5 MB"
    assert cells(shown, "hidden, 8bit")[2:] == ["yes", "this run"]
    assert list(root.iterdir()) == []
    assert not (tmp_path / "none").exists()


def test_a_finished_run_has_the_predicted_bytes(finished_run: FinishedRun) -> None:
    run = resolve(load_recipe(str(finished_run.recipe)), {})
    planned = AlignmentRun("tiny", run, open_storage(str(finished_run.storage))).planned
    store = Store(str(finished_run.storage), create=False)
    shape = model_shape(run.model, model_directory(run.model, planned, store))
    predicted = cost(run, counts_of(store.open("tokens", planned["tokens"].key).path), shape, planned)
    models = [path for stage in ("base", "sft", "align") for path in weights(store, stage, planned)]
    models += (finished_run.storage / "registry").rglob("*.safetensors")
    assert len(models) == 5
    headers = 20_000  # of five files of weights
    assert 0 <= sum(path.stat().st_size for path in models) - predicted.models_to_write_bytes <= headers
    (cache,) = [path for path in (finished_run.storage / "references").iterdir() if path.is_dir()]
    shards = list(cache.glob("*.safetensors"))
    written = sum(path.stat().st_size for path in cache.iterdir() if path.is_file())
    assert predicted.exact
    assert predicted.reference_to_write_bytes == pytest.approx(written, abs=2_000 * len(shards))

    shown = described(run, "tiny", finished_run.storage)
    assert "0 of 12 stages to do" in shown
    assert cells(shown, "still to write")[1] == "0 B"
    assert cells(shown, "checkpoints while training")[1:] == ["0 B", "no training to do"]
    assert cells(shown, "tokens per second")[1:] == ["unknown", "not measured: nothing is left to compute"]


def weights(store: Store, stage: str, planned: Mapping[str, PlannedStage]) -> list[Path]:
    return list(store.open(stage, planned[stage].key).path.rglob("*.safetensors"))


def test_a_mass_bounds_and_a_remote_place_is_not_judged(tmp_path: Path) -> None:
    options = {
        "reference.tier": "topk",
        "reference.top_mass": 0.9,
        "reference.root": "memory://caches",
        "cluster.gpus_per_actor": 1,
    }
    run = resolve(load_recipe("reviews"), SMALL | options)
    shown = described(run, "reviews", tmp_path / "runs")
    assert cells(shown, "topk, at most 64 tokens a position")[1].startswith("at most ")
    assert cells(shown, "still to write")[1].startswith("at most ")
    assert cells(shown, "free at reference.root")[1:] == [
        "unknown",
        "not on a disk of this machine, so nothing is refused for it",
    ]
    import torch

    if not torch.cuda.is_available():
        assert cells(shown, "tokens per second")[1:] == [
            "unknown",
            "not measured: the actors run on GPUs",
        ]
