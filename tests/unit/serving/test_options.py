"""The options of the guard, from a Serve configuration and from the command line."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import tyro
from pydantic import ValidationError

from pipeline.serving.job import ServeOptions, for_replicas
from pipeline.serving.options import GuardOptions


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"canary": "candidate"}, "give ALIAS=SHARE"),
        ({"canary": "candidate=1.5"}, "share above 0"),
        ({"canary": "production=0.1"}, "answers anyway"),
        ({"canary": "candidate=0.1", "max_loaded": 1}, "a canary needs 2"),
        ({"log_share": 0.1}, "name a directory"),
        ({"log": "logs"}, "set the share"),
        ({"log": "s3://bucket/logs", "log_share": 0.1}, "is a URL"),
        ({"max_token": 3}, "Extra inputs"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        GuardOptions(**options)  # type: ignore[arg-type]


def test_the_command_line_says_the_same_as_a_configuration() -> None:
    words = ["--storage", "s3://bucket/runs", "--registry.root", "/registry", "--canary", "candidate=0.1"]
    options = tyro.cli(ServeOptions, args=[*words, "--no_preload", "--port", "80"], use_underscores=True)
    same = GuardOptions(storage="s3://bucket/runs", registry_root="/registry", canary="candidate=0.1", preload=False)
    assert {name: getattr(options, name) for name in GuardOptions.model_fields} == same.model_dump()
    assert (options.host, options.port) == ("127.0.0.1", 80)
    assert (options.canary_alias, options.canary_share) == ("candidate", 0.1)


def test_replicas_are_told_where_things_are_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = for_replicas(ServeOptions(storage="runs", registry_root="registry", log="log", log_share=0.1, port=80))
    assert (told.storage, told.registry_root) == (str(tmp_path / "runs"), str(tmp_path / "registry"))
    assert (told.log, told.log_share) == (str(tmp_path / "log"), 0.1)
    assert for_replicas(ServeOptions(registry_root="s3://bucket/registry")).registry_root == "s3://bucket/registry"


@pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20")  # of Serve's own configuration
def test_serve_finds_the_type_of_the_arguments() -> None:
    """It validates what a configuration gives by the builder's annotation, which must therefore be no text."""
    from pipeline.serving.app import build

    (argument,) = inspect.signature(build).parameters.values()
    assert argument.annotation is GuardOptions
