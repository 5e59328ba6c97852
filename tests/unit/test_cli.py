from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.exceptions import RayTaskError

from pipeline.cli import Argument, JobRequest, parse_job, run_job
from pipeline.errors import ArtifactError, ConfigError, DataError
from pipeline.recipes import load_recipe, options, resolve
from pipeline.sweep_config import Range

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "ray", "transformers", "deepspeed", "datasets", "pandas", "matplotlib", "scipy")


def parse(*arguments: str) -> JobRequest:
    return parse_job("align", "Align a model.", arguments)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        parse(*arguments)
    assert caught.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert "Traceback" not in output.err
    return output.err


def python(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        check=False,
    )


def test_the_command_line_imports_nothing_heavy() -> None:
    loaded = python(
        "import sys, pipeline.cli, pipeline.config\n"
        "request = pipeline.cli.parse_job('align', 'Align.', ['--risk.level', '0.9'])\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    assert loaded.stdout == "[]\n", loaded.stderr


def test_help_is_quick_and_tells_options_sections_and_defaults_of_the_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("data: {path: pairs.jsonl}\nrisk: {level: 0.125}\n")
    program = f"from pipeline.cli import parse_job; parse_job('align', 'Align it.', ['--help', '--recipe', '{recipe}'])"
    began = time.perf_counter()
    shown = python(program, COLUMNS="120")
    seconds = time.perf_counter() - began
    assert shown.returncode == 0
    assert shown.stderr == ""
    text = " ".join(shown.stdout.replace("│", " ").split())
    assert "Align it." in text
    assert "--risk.level FLOAT cvar, mean_cvar, evar: tail mass kept" in text
    assert "(default: 0.125)" in text
    assert "--model.path TEXT Hub id" in text
    assert "(required)" in text
    assert "--train.max_steps INT|none" in text
    assert "--dry_run Print" in text
    assert "Fine-tuning of the base model before alignment" in text
    for name in options():
        of_one_job = name.startswith(("sweep.", "realign."))
        assert (f"--{name} " in text) != of_one_job, "a sweep's options are sweep.py's"
    # The promise is one second; a busy machine running other tests gets some slack.
    assert seconds < 5


def test_without_arguments_the_default_recipe_runs_as_it_is() -> None:
    request = parse()
    assert (request.recipe, request.storage, request.dry_run) == ("reviews", None, False)
    assert request.run == resolve(load_recipe("reviews"), {})


def test_dotted_options_lie_on_top_of_the_recipe() -> None:
    request = parse(
        *("--risk.level", "0.97", "--evaluation.seeds", "5", "6", "--data.strict", "true"),
        *("--data.max-train-pairs", "None", "--evaluation.incident_below", "-0.25", "--train.optim.lr=1e-6"),
        *("--dry-run", "--storage", "/runs", "--wandb.entity", "none"),
    )
    assert (request.dry_run, request.storage) == (True, "/runs")
    run = request.run
    assert (run.risk.level, run.evaluation.seeds, run.data.strict, run.data.max_train_pairs) == (
        0.97,
        (5, 6),
        True,
        None,
    )
    assert (run.evaluation.incident_below, run.train.optim.lr, run.wandb.entity) == (-0.25, 1e-6, None)
    assert run.train.optim.warmup_steps == 10


def test_a_combination_is_judged_after_all_options() -> None:
    assert parse("--reference.tier", "scalar", "--loss.method", "dpo").run.reference.tier == "scalar"
    assert parse("--risk.level", "5", "--risk.measure", "erm").run.risk.level == 5


def test_the_last_of_two_equal_options_counts() -> None:
    assert parse("--risk.level", "0.1", "--risk.level", "0.2").run.risk.level == 0.2


@settings(max_examples=25, deadline=None)
@given(st.floats(min_value=5e-324, max_value=1))
def test_numbers_arrive_exactly(level: float) -> None:
    assert parse("--risk.level", repr(level)).run.risk.level == level


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--risk.levle", "3"], ["unknown option --risk.levle, did you mean --risk.level?"]),
        (["--level", "3"], ["did you mean --risk.level?"]),
        (["--loss.level=3"], ["unknown option --loss.level, did you mean --risk.level?"]),
        (["--dry-rn"], ["did you mean --dry-run?"]),
        (["--recipee", "x"], ["did you mean --recipe?"]),
        (["--recipe", "revews"], ["did you mean reviews?"]),
        (["--recipe"], ["--recipe: give a name"]),
        (["--recipe", "--dry-run"], ["--recipe: give a name"]),
        (["--risk.level", "high"], ["risk.level: must be a number, got 'high'"]),
        (["--risk.level", "2"], ["risk.level: cvar takes a level in (0, 1], got 2; the tail mass kept"]),
        (["--loss.method", "ra_dpo3"], ["loss.method: must be one of dpo", "did you mean ra_dpo"]),
        (["--reference.tier", "scalar"], ["--loss.method dpo"]),
        (["--train.epochs", "0", "--loss.beta", "x"], ["train.epochs: must be above 0", "loss.beta: must be a number"]),
        (["--risk.level"], ["--risk.level"]),
        (["stray"], ["stray"]),
    ],
)
def test_a_mistake_ends_with_exit_code_2_and_names_the_fix(
    capsys: pytest.CaptureFixture[str], arguments: list[str], parts: list[str]
) -> None:
    message = refusal(capsys, *arguments)
    for part in parts:
        assert part in message


def ended(capsys: pytest.CaptureFixture[str], error: BaseException) -> tuple[object, str]:
    def main() -> int:
        raise error

    with pytest.raises(SystemExit) as caught:
        run_job(main)
    return caught.value.code, capsys.readouterr().err


def test_exit_codes_of_a_job(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(capsys, DataError("row 3: no text")) == (1, "error: row 3: no text\n")
    assert ended(capsys, ArtifactError("the disk is full")) == (1, "error: the disk is full\n")
    assert ended(capsys, ConfigError("no such option")) == (2, "error: no such option\n")
    code, message = ended(capsys, KeyboardInterrupt())
    assert code == 130
    assert message.startswith("error: interrupted")
    for result, code in ((None, 0), (0, 0), (3, 3)):
        with pytest.raises(SystemExit) as caught:
            run_job(lambda result=result: result)
        assert caught.value.code == code


def test_an_error_from_a_ray_worker_shows_its_own_message(capsys: pytest.CaptureFixture[str]) -> None:
    wrapped = RayTaskError("read", "Traceback (most recent call last): ...", DataError("row 3: no text"))
    assert ended(capsys, wrapped.as_instanceof_cause()) == (1, "error: row 3: no text\n")


def test_an_unexpected_exception_leaves_its_traceback_in_the_log(tmp_path: Path) -> None:
    log = tmp_path / "job.log"
    ran = python(
        "import pathlib\n"
        "from pipeline.cli import run_job\n"
        "from pipeline.console import quiet_libraries\n"
        f"quiet_libraries(pathlib.Path({str(log)!r}))\n"
        "def main():\n"
        "    {}['beta']\n"
        "run_job(main)\n"
    )
    assert ran.returncode == 70
    assert ran.stderr == f"error: unexpected KeyError: 'beta'\nThe traceback is in {log}\n"
    assert "Traceback (most recent call last)" in log.read_text()


def test_without_a_log_the_traceback_goes_to_a_temporary_file(tmp_path: Path) -> None:
    ran = python("from pipeline.cli import run_job\nrun_job(lambda: 1 / 0)\n", TMPDIR=str(tmp_path))
    assert ran.returncode == 70
    (log,) = tmp_path.glob("ra-dpo-*.log")
    assert str(log) in ran.stderr
    assert "ZeroDivisionError" in log.read_text()


def test_a_log_on_a_full_disk_hides_no_error(small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("size=16k")
    ran = python(
        "import shutil\n"
        "from pathlib import Path\n"
        "from pipeline.cli import run_job\n"
        "from pipeline.console import Console, quiet_libraries\n"
        "from pipeline.errors import ArtifactError\n"
        f"disk = Path({str(disk)!r})\n"
        "quiet_libraries(disk / 'log')\n"
        "def main():\n"
        "    with Console(disk / 'log') as console:\n"
        "        (disk / 'filler').write_bytes(bytes(shutil.disk_usage(disk).free))\n"
        "        for number in range(2_000):\n"
        "            console.line(f'line {number}')\n"
        "        raise ArtifactError('the disk is full')\n"
        "run_job(main)\n"
    )
    assert (ran.returncode, ran.stderr) == (1, "error: the disk is full\n")
    assert ran.stdout.splitlines()[-1] == "line 1999"


class TestSweepOptions:
    def sweep(self, *arguments: str) -> JobRequest:
        return parse_job("sweep", "Try many.", arguments, sweep=True)

    def test_they_belong_to_the_sweep(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert "--sweep.seeds belongs to sweep.py: leave it out here" in refusal(capsys, "--sweep.seeds", "1")
        assert "unknown option --pilot" in refusal(capsys, "--pilot", "0.1")
        assert self.sweep("--sweep.seeds", "1", "2").run.sweep.seeds == (1, 2)

    def test_all_belong_to_the_sweep_and_none_to_another_job(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", "120")
        for name in options():
            if name.startswith("sweep."):
                assert f"--{name} belongs to sweep.py: leave it out here" in refusal(capsys, f"--{name}=1")
        with pytest.raises(SystemExit):
            self.sweep("--help")
        text = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert all((f"--{name} " in text) != name.startswith("realign.") for name in options())
        assert "--pilot SHARE First try everything on this share" in text

    def test_a_job_may_take_several_sections_and_have_flags(self, capsys: pytest.CaptureFixture[str]) -> None:
        def realign(*arguments: str) -> JobRequest:
            own = (Argument("list", "", "Look back.", flag=True),)
            return parse_job("realign.py", "Again.", arguments, sections=("sweep", "realign"), own=own)

        assert "--realign.pilot belongs to realign.py: leave it out here" in refusal(capsys, "--realign.pilot", "0.1")
        found = realign("--realign.pilot", "0.1", "--sweep.seeds", "3", "--list")
        assert (found.run.realign.pilot, found.run.sweep.seeds, found.arguments) == (0.1, (3,), {"list": "yes"})
        assert realign().arguments == {"list": None}
        with pytest.raises(SystemExit):
            realign("--pilot", "0.1")
        assert "unknown option --pilot" in capsys.readouterr().err

    def test_the_recipes_space_gives_way_to_the_given_one(self, tmp_path: Path) -> None:
        recipe = tmp_path / "mine.yaml"
        recipe.write_text(
            "data: {path: pairs.jsonl}\nmodel: {path: some/model}\n"
            "sweep: {seeds: [0, 1], space: {loss.beta: [0.1]}, tolerance: {max_drift: 5, tail_drop: 0.1}}\n"
        )
        given = (
            "--sweep.space",
            "risk.level: {low: 0.1, high: 0.5}",
            "--sweep.search",
            "random",
            "--sweep.settings",
            "3",
        )
        found = self.sweep("--recipe", str(recipe), *given, "--sweep.tolerance.tail_drop", "none").run.sweep
        assert found.space == ({"risk.level": Range(low=0.1, high=0.5)},)
        assert (found.settings, found.seeds) == (3, (0, 1))
        assert (found.tolerance.max_drift, found.tolerance.tail_drop) == (5, None)
        assert parse("--recipe", str(recipe)).run.sweep.space == ({"loss.beta": (0.1,)},), "read, not used"

    def test_a_space_is_yaml(self) -> None:
        both = ({"risk.level": (0.5, 0.9)}, {"loss.method": ("dpo",)})
        space = "[{risk.level: [0.5, 0.9]}, {loss.method: [dpo]}]"
        assert self.sweep("--sweep.space", space).run.sweep.space == both
        apart = self.sweep("--sweep.space", "{risk.level: [0.5, 0.9]}", "{loss.method: [dpo]}")
        assert apart.run.sweep.space == both

    @pytest.mark.parametrize(
        ("space", "message"),
        [
            ("[[", "sweep.space: not valid YAML"),
            ("3", "sweep.space: options with their values are needed"),
            ("{risk.level: {low: 0.9, high: 0.1}}", "sweep.space: a range needs low below high, got 0.9 and 0.1"),
            ("{risk.level: {low: 0, high: 1, log: true}}", "sweep.space: a range with log starts above 0, got 0"),
        ],
    )
    def test_a_space_that_is_none(self, capsys: pytest.CaptureFixture[str], space: str, message: str) -> None:
        with pytest.raises(SystemExit) as caught:
            self.sweep("--sweep.space", space)
        assert caught.value.code == 2
        assert message in capsys.readouterr().err

    @pytest.mark.parametrize("values", ["0.5", "{low: 0.1}", "{low: 0.1, hihg: 0.5}"])
    def test_a_faulty_value_is_named_with_its_option(self, capsys: pytest.CaptureFixture[str], values: str) -> None:
        with pytest.raises(SystemExit):
            self.sweep(
                "--sweep.space", f"{{risk.level: {values}}}", "--sweep.search", "random", "--sweep.settings", "1"
            )
        assert "risk.level" in capsys.readouterr().err

    @pytest.mark.parametrize("share", ["0", "1", "2", "-0.1", "x", "nan"])
    def test_a_pilot_is_a_share(self, capsys: pytest.CaptureFixture[str], share: str) -> None:
        assert self.sweep("--pilot", "0.1").pilot == 0.1
        with pytest.raises(SystemExit):
            self.sweep(f"--pilot={share}")
        assert "--pilot: must be a share of the training groups between 0 and 1" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--sweep.search", "random"), "sweep.settings says how many"),
            (("--sweep.settings", "3"), "sweep.settings says how many"),
            (("--sweep.seeds", "1", "1"), "sweep.seeds must be one or more different numbers"),
            (("--sweep.tolerance.max_drift", "0"), "sweep.tolerance.max_drift: must be above 0"),
            (("--sweep.tolerance.max_incidents", "2"), "sweep.tolerance.max_incidents: must be 1 or less"),
            (
                ("--sweep.tolerance.whole_interval", "true", "--evaluation.num_prompts", "1"),
                "of which there are none: nothing could be chosen",
            ),
            (
                (
                    *("--sweep.early_stop", "asha", "--sweep.early_stop_metric", "worst_chosen_kl"),
                    *("--reference.tier", "scalar", "--loss.method", "dpo"),
                ),
                "'worst_chosen_kl' needs the reference's distribution",
            ),
        ],
    )
    def test_what_makes_no_sweep(
        self, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
    ) -> None:
        with pytest.raises(SystemExit):
            self.sweep(*arguments)
        assert message in capsys.readouterr().err


class TestOwnArguments:
    OWN = (
        Argument("first", "FIRST", "What is looked at.", positional=True),
        Argument("aside", "FILE", "What else is looked at."),
    )

    def look(self, *arguments: str) -> JobRequest:
        return parse_job("look", "Look at something.", arguments, own=self.OWN)

    def test_they_stand_beside_the_options_of_a_run(self) -> None:
        request = self.look("here", "--risk.level", "0.25", "--aside", "there")
        assert request.arguments == {"first": "here", "aside": "there"}
        assert request.run.risk.level == 0.25
        assert self.look("--risk.level", "0.25", "here").arguments == {"first": "here", "aside": None}
        assert parse().arguments == {}

    def test_a_positional_one_is_required_and_a_slip_is_told(self, capsys: pytest.CaptureFixture[str]) -> None:
        for arguments, said in (((), "FIRST"), (("here", "--asid", "x"), "did you mean --aside?")):
            with pytest.raises(SystemExit) as caught:
                self.look(*arguments)
            assert caught.value.code == 2
            assert said in capsys.readouterr().err
        assert "unknown option --aside" in refusal(capsys, "--aside", "x"), "another job does not take it"

    def test_the_help_tells_them(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "120")
        with pytest.raises(SystemExit):
            self.look("--help")
        text = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert "FIRST What is looked at. (required)" in text
        assert "--aside FILE What else is looked at. (default: none)" in text
