"""What a watch is told, and what is refused before anything starts."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tyro

from pipeline.errors import ConfigError
from pipeline.watch.settings import Settings

ROOT = Path(__file__).resolve().parents[3]


def parsed(*arguments: str) -> Settings:
    return tyro.cli(Settings, args=["logs", *arguments], use_underscores=True)


def test_usual_options() -> None:
    options = parsed("--follow", "--cluster.max-actors", "2", "--cluster.gpus_per_actor", "0.5", "--roll_back")
    options.check()
    config = options.cluster.config()
    assert (config.max_actors, config.gpus_per_actor, config.num_workers) == (2, 0.5, 1)
    assert options.roll_back_on == ("risk-up", "kl-up", "risk-tail", "kl-tail")
    parsed().check()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--false_alarms", "0"), "--false_alarms is 0: give 0.001 or more"),
        (("--false_alarms", "nan"), "--false_alarms is nan"),
        (("--baseline_outputs", "10"), "--baseline_outputs is 10: give 100 or more"),
        (("--every", "0"), "--every is 0"),
        (("--poll_s", "0"), "--poll_s is 0"),
        (("--version", "1", "--roll_back"), "--roll_back moves an alias"),
        (("--roll_back_to", "reference"), "add --roll_back"),
        (("--webhook", "x", "--webhook_from", "HOOK"), "both name a webhook"),
        (("--webhook", "ftp://x"), "does not begin with https://"),
        (("--webhook_from", "NO_SUCH_VARIABLE"), "NO_SUCH_VARIABLE is empty or not set"),
        (("--webhook_token_from", "HOOK"), "name that with --webhook"),
    ],
)
def test_what_cannot_be_meant(monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str) -> None:
    monkeypatch.setenv("HOOK", "https://hooks.example.com/secret")
    with pytest.raises(ConfigError, match=said):
        parsed(*arguments).check()


def test_a_webhook_by_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK", "https://hooks.example.com/secret")
    options: Any = parsed("--webhook_from", "HOOK")
    options.check()
    assert options.webhook_url() == "https://hooks.example.com/secret"
    assert "secret" not in repr(options)


def test_the_command_line_loads_nothing_heavy() -> None:
    code = "import sys, pipeline.watch.settings; print({'torch', 'ray', 'transformers', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "set()"
