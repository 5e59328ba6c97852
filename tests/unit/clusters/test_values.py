from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from manifests import CLUSTERS, EXAMPLES, FILL

README = (CLUSTERS / "README.md").read_text(encoding="utf-8")


def sources() -> list[Path]:
    """Every file of clusters/ that may hold a placeholder."""
    found = [*CLUSTERS.rglob("*.yaml"), CLUSTERS / "Dockerfile", CLUSTERS / "two-node.sh"]
    return sorted(found)


def used() -> dict[str, set[str]]:
    """By placeholder the files that hold it, relative to clusters/; comments do not count."""
    by_name: dict[str, set[str]] = {}
    for path in sources():
        for line in path.read_text(encoding="utf-8").splitlines():
            for name in FILL.PLACEHOLDER.findall("" if line.lstrip().startswith("#") else line):
                by_name.setdefault(name, set()).add(path.relative_to(CLUSTERS).as_posix())
    return by_name


def table() -> dict[str, tuple[set[str], str]]:
    """The README's table of values: by placeholder the files it names and the example."""
    rows = re.findall(r"^\| `<([A-Z0-9_]+)>` \| ([^|]*) \| [^|]+ \| `([^|`]+)` \|$", README, re.MULTILINE)
    assert len(rows) == len({row[0] for row in rows})
    return {name: (set(re.findall(r"`([^`]+)`", files)), example) for name, files, example in rows}


def below(path: str, named: set[str]) -> bool:
    return any(path == name or (name.endswith("/") and path.startswith(name)) for name in named)


def test_the_table_names_every_value_and_no_other() -> None:
    assert set(table()) == set(used()) == set(EXAMPLES)


def test_the_table_names_every_file_and_no_other() -> None:
    for name, (named, _) in table().items():
        assert named, name
        assert [path for path in used()[name] if not below(path, named)] == [], name
        for entry in named:
            assert [path for path in used()[name] if below(path, {entry})], f"{name} is not in {entry}"


def test_the_examples_of_the_table_are_those_of_the_example_file() -> None:
    assert {name: example for name, (_, example) in table().items()} == EXAMPLES


def test_no_placeholder_has_another_form() -> None:
    """What is left after the example values holds neither angle brackets around a name nor a word that asks for one."""
    for path in sources():
        if path.suffix == ".yaml":
            filled = FILL.fill(path.read_text(encoding="utf-8"), EXAMPLES)
            assert not re.search(r"<[A-Za-z_]+>|CHANGE_?ME|REPLACE_?ME|YOUR_|TODO|x{4,}", filled), path


def fill(values: Path, text: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CLUSTERS / "fill"), str(values)]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=30)


def test_fill_puts_values_in(tmp_path: Path) -> None:
    values = tmp_path / "values.env"
    values.write_text("# mine\n\nIMAGE=registry.example.com/a&b:1\nSTORAGE = s3://bucket/a=b \n")
    done = fill(values, "# <NOT_ASKED_FOR>\nimage: <IMAGE>\nstorage: [<STORAGE>, <STORAGE>]\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "image: registry.example.com/a&b:1\nstorage: [s3://bucket/a=b, s3://bucket/a=b]\n"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("STORAGE=s3://bucket\n", "no value for IMAGE, MODEL: clusters/README.md says what to put there"),
        ("IMAGE=\nMODEL=m\n", "no value for IMAGE"),
        ("IMAGE=a\nnonsense\n", "line 2 is not NAME=VALUE: 'nonsense'"),
        (None, "No such file"),
    ],
)
def test_fill_prints_nothing_when_a_value_is_missing(values: str | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "values.env"
    if values is not None:
        path.write_text(values)
    done = fill(path, "image: <IMAGE>\nmodel: <MODEL>\n")
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
