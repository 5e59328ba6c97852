"""What the code may not do: run what comes with data or models, by any way that is known to.

Ray itself passes pickles between its own processes, under its token: that is no load path of this project.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    [*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "jobs").rglob("*.py"), *(ROOT / "clusters").rglob("*.py")]
)

MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle"}
"""Whose files can hold code."""
CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "torch.load",
    "torch.jit.load",
    "torch.hub.load",
    "yaml.load",
    "yaml.load_all",
    "yaml.full_load",
    "yaml.unsafe_load",
    "pandas.read_pickle",
    "pd.read_pickle",
    "runpy.run_path",
    "runpy.run_module",
    "tempfile.mktemp",
    "ssl._create_unverified_context",
    "importlib.import_module",
}
KEYWORDS = {
    "trust_remote_code": {False},
    "allow_pickle": {False},
    "shell": {False},
    "weights_only": {True},
    "verify": {True},
    "use_safetensors": {True},
    "autoescape": {True},
}
"""Keyword arguments and the only constants they may be given."""
LOADERS = {"AutoModelForCausalLM", "AutoTokenizer", "AutoConfig"}
"""transformers' classes, which ask on the console whether to run a model's own code unless they are told not to."""

JUSTIFIED = {
    # The measure of risk or the scorer that a user names as module:function on the command line or in the recipe.
    ("pipeline/plugins.py", "importlib.import_module"),
}


def dotted(node: ast.expr) -> str:
    """The name of a function that is called, as it is written: ``torch.load``."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return "()"


def findings(source: str) -> Iterator[str]:
    """What in a module's source is on the lists above."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (f"import {alias.name}" for alias in node.names if alias.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").split(".")[0] in MODULES:
                yield f"import {node.module}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names if f"{node.module}.{alias.name}" in CALLS)
        elif isinstance(node, ast.Call):
            yield from _faults_of_call(node)


def _faults_of_call(node: ast.Call) -> Iterator[str]:
    name = dotted(node.func)
    if name in CALLS:
        yield name
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    for keyword, allowed in KEYWORDS.items():
        value = given.get(keyword)
        if value is not None and not (isinstance(value, ast.Constant) and value.value in allowed):
            yield f"{keyword}={ast.unparse(value)}"
    if name.endswith(".from_pretrained") and name.split(".")[-2] in LOADERS and "trust_remote_code" not in given:
        yield f"{name} without trust_remote_code=False"
    if name.split(".")[-1] == "Environment" and "loader" in given and "autoescape" not in given:
        yield f"{name} without autoescape=True"


def test_nothing_runs_what_comes_with_data_or_models() -> None:
    found = {
        (path.relative_to(ROOT).as_posix(), fault) for path in SOURCES for fault in findings(path.read_text("utf-8"))
    }
    assert found == JUSTIFIED


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("import pickle", "import pickle"),
        ("from dill import loads", "import dill"),
        ("from torch import load", "torch.load"),
        ("weights = torch.load(path)", "torch.load"),
        ("numpy.load(path, allow_pickle=True)", "allow_pickle=True"),
        ("numpy.load(path, allow_pickle=flag)", "allow_pickle=flag"),
        ("yaml.load(text, Loader=yaml.Loader)", "yaml.load"),
        ("subprocess.run(command, shell=True)", "shell=True"),
        ("eval(text)", "eval"),
        ("AutoConfig.from_pretrained(p, trust_remote_code=True)", "trust_remote_code=True"),
        (
            "transformers.AutoTokenizer.from_pretrained(p)",
            "transformers.AutoTokenizer.from_pretrained without trust_remote_code=False",
        ),
        ("httpx.get(url, verify=False)", "verify=False"),
    ],
)
def test_each_way_is_seen(source: str, fault: str) -> None:
    assert list(findings(source)) == [fault]


def test_what_only_looks_like_it_is_not() -> None:
    assert not list(findings("model.eval()\nyaml.safe_load(text)\nre.compile(x)\nsubprocess.run(command, shell=False)"))


LOAD = """
import sys
from pathlib import Path
import torch
from pipeline.errors import ModelError
from pipeline.models import load
from pipeline import survey

directory = Path(sys.argv[1])
for attempt in (
    lambda: load.load_tokenizer(directory),
    lambda: load.load_model(directory, torch.float32),
):
    try:
        attempt()
    except ModelError as error:
        print(error)
    else:
        print("loaded")
"""


def test_a_model_that_brings_code_is_refused_whatever_the_console_says(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (model / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": classes}))
    (model / "tokenizer.json").write_text("{}")
    (model / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}})
    )
    (model / "model.safetensors").write_bytes(b"")
    ran = tmp_path / "ran"
    (model / "own.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(model)],
        input="y\n" * 9,
        env={"PATH": "", "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "loaded" not in done.stdout.splitlines()
    assert "custom code" in done.stdout
    assert not ran.exists()
