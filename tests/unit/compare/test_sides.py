"""What A and B may be, and what is said of what they cannot be."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.compare.alike import OUTPUTS, TOKENIZERS, VOCABULARIES, why_no_drift
from pipeline.compare.encode import encode
from pipeline.compare.prompts import Prompt, prompt_of
from pipeline.compare.sides import Model, Outputs, Versions, resolve
from pipeline.compare.subject import find_subject
from pipeline.config import EvaluationConfig, RunConfig
from pipeline.data.tables import write_table
from pipeline.errors import ConfigError, DataError, ModelError, RegistryError
from pipeline.records import PromptTokens
from pipeline.release.registry import open_registry

LINE = "ab" * 8


def run(max_new_tokens: int = 8, max_prompt_tokens: int = 40) -> RunConfig:
    return RunConfig.model_validate(
        {
            "data": {"path": "x.jsonl", "max_prompt_tokens": max_prompt_tokens},
            "model": {"path": "m"},
            "evaluation": {"max_new_tokens": max_new_tokens},
        }
    )


@pytest.fixture
def changed(built_model: Path, tmp_path: Path) -> Path:
    """The built model with other weights."""
    from transformers import AutoModelForCausalLM

    directory = tmp_path / "changed"
    shutil.copytree(built_model, directory)
    model = AutoModelForCausalLM.from_pretrained(built_model)
    model.get_output_embeddings().weight.data += 0.1
    model.save_pretrained(directory)
    return directory


@pytest.fixture
def versions(built_model: Path, changed: Path, tmp_path: Path) -> Versions:
    """A registry whose version 0 is the built model, version 1 the changed one, in production."""
    root = str(tmp_path / "registry")
    line = open_registry(root).begin(LINE, built_model, "a reference", {})
    version = tmp_path / "version"
    shutil.copytree(changed, version)
    write_table(version / "prompts.parquet", [PromptTokens("p1", "g", "A joy", [5, 6])], PromptTokens)
    line.register(version, {}, why="a test")
    line.promote("production", 1, expected=0, why="a test")
    return Versions(root, None, tmp_path / "copies")


def outputs(path: Path, *pairs: tuple[str, str]) -> Path:
    path.write_text("".join(json.dumps({"prompt": one, "output": other}) + "\n" for one, other in pairs))
    return path


class TestResolving:
    @pytest.mark.parametrize(("spec", "label"), [("production", "version 1 (production)"), ("1", "version 1 (produ")])
    def test_a_version(self, versions: Versions, changed: Path, built_model: Path, spec: str, label: str) -> None:
        side = resolve(spec, "A", versions)
        assert isinstance(side, Model)
        assert side.label.startswith(label)
        assert side.digest == Model("", changed).digest, "named by what it holds, not by where it lies"
        assert side.reference is not None
        assert Model("", side.reference).digest == Model("", built_model).digest
        assert [(one.text, one.prompt_id, one.ids) for one in side.prompts] == [("A joy", "p1", (5, 6))]

    def test_the_reference_has_no_prompts(self, versions: Versions) -> None:
        side = resolve("reference", "A", versions)
        assert isinstance(side, Model)
        assert side.prompts == ()
        assert side.reference == side.path

    def test_a_directory_and_a_file(self, versions: Versions, built_model: Path, tmp_path: Path) -> None:
        side = resolve(str(built_model), "A", versions)
        assert isinstance(side, Model)
        assert side.reference is None
        other = resolve(str(outputs(tmp_path / "o.jsonl", ("a", "b"))), "B", versions)
        assert isinstance(other, Outputs)
        assert other.rows == {"a": {0: "b"}}

    def test_a_bare_name_is_a_version(
        self, versions: Versions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert (tmp_path / "changed").is_dir()
        with pytest.raises(RegistryError, match=r"A: there is no version or alias 'changed'.*write ./changed\)"):
            resolve("changed", "A", versions)
        assert isinstance(resolve("./changed", "A", versions), Model)

    def test_what_is_nothing(self, versions: Versions, tmp_path: Path) -> None:
        for spec, error, said in (
            ("9", RegistryError, "B: there is no version 9"),
            ("staging", RegistryError, "B: there is no version or alias 'staging'"),
            (str(tmp_path / "nowhere"), DataError, "B: there is nothing at"),
            (str(tmp_path), ModelError, "has no config.json"),
        ):
            with pytest.raises(error) as caught:
                resolve(spec, "B", versions)
            assert said in str(caught.value)
        with pytest.raises(RegistryError, match="A: there is no registry at"):
            resolve("production", "A", Versions(str(tmp_path / "none"), None, tmp_path))


class TestSubject:
    def find(self, versions: Versions, a: str, b: str, prompts: str | None = None) -> list[str]:
        return [one.text for one in find_subject((a, b), prompts, versions, EvaluationConfig()).on.prompts]

    def test_prompts_come_from_the_file_then_outputs_then_a_version(
        self, versions: Versions, built_model: Path, tmp_path: Path
    ) -> None:
        mine = str(outputs(tmp_path / "o.jsonl", ("x", "1"), ("A joy", "2"), ("y", "3")))
        (tmp_path / "p.jsonl").write_text('{"prompt": "y"}\n{"prompt": "z"}\n')
        given = str(tmp_path / "p.jsonl")
        assert self.find(versions, mine, "production", given) == ["y"]
        assert self.find(versions, "reference", "production", given) == ["y", "z"]
        assert self.find(versions, mine, "production") == ["x", "A joy", "y"]
        assert self.find(versions, "reference", "production") == ["A joy"]
        with pytest.raises(DataError, match="there are no prompts to compare on"):
            self.find(versions, "reference", str(tmp_path / "changed"))
        with pytest.raises(DataError, match="--prompts: there is no file"):
            self.find(versions, "reference", "production", str(tmp_path / "none.jsonl"))

    def test_a_known_prompt_keeps_its_id_and_so_its_noise(self, versions: Versions, tmp_path: Path) -> None:
        mine = str(outputs(tmp_path / "o.jsonl", ("x", "1"), ("A joy", "2")))
        subject = find_subject((mine, "production"), None, versions, EvaluationConfig(seeds=(0,)))
        assert subject.on.prompts == (prompt_of("x"), Prompt("A joy", "p1", (5, 6)))
        assert list(subject.lines())[:3] == [
            f"A: {mine}",
            "B: version 1 (production)",
            ("2 prompts with 1 seed: 2 outputs of each"),
        ]

    def test_the_same_thing_twice(self, versions: Versions, changed: Path, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="are the same model"):
            self.find(versions, "production", str(changed))
        one = outputs(tmp_path / "o.jsonl", ("x", "1"))
        other = shutil.copyfile(one, tmp_path / "o2.jsonl")
        with pytest.raises(DataError, match="are files with the same content"):
            self.find(versions, str(one), str(other))


class TestDrift:
    def test_what_can_be_compared_token_by_token(self, built_model: Path, changed: Path, tmp_path: Path) -> None:
        a, b = Model("a", built_model), Model("b", changed)
        assert why_no_drift(a, b) is None
        file = Outputs("c", outputs(tmp_path / "o.jsonl", ("x", "1")), {})
        assert why_no_drift(a, file) == OUTPUTS == why_no_drift(file, b)

    def test_files_that_say_the_same_otherwise_are_one_tokenizer(self, built_model: Path, changed: Path) -> None:
        path = changed / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 77}))
        a, b = Model("a", built_model), Model("b", changed)
        assert a.tokenizer != b.tokenizer
        assert why_no_drift(a, b) is None

    def test_another_vocabulary(self, built_model: Path, changed: Path, tmp_path: Path) -> None:
        from pipeline.config import BuildConfig
        from pipeline.models.build import build_gpt_neox

        size = BuildConfig(vocab_size=320, hidden_size=16, num_layers=1, num_heads=2, context_tokens=64)
        build_gpt_neox(size, ["Other words make other tokens, many of them."] * 20, tmp_path / "other")
        assert why_no_drift(Model("a", built_model), Model("b", tmp_path / "other")) == TOKENIZERS
        path = changed / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 512}))
        assert why_no_drift(Model("a", built_model), Model("b", changed)) == VOCABULARIES


class TestEncoding:
    def test_own_tokens_are_taken_where_they_are_this_tokenizers(
        self, built_model: Path, make_ids: Callable[[str], list[int]]
    ) -> None:
        whole = make_ids("A joy from start to end.")
        mine = Prompt("A joy from start to end.", "p1", tuple(whole[-3:]))
        strange = Prompt("Dull, long and loud.", "p2", (1, 2, 3))
        found = encode(Model("a", built_model), "A", [mine, strange, prompt_of("A joy")], run())
        assert [row.prompt_ids for row in found.prompts] == [
            whole[-3:],
            make_ids("Dull, long and loud."),
            make_ids("A joy"),
        ]
        assert [row.prompt_id for row in found.prompts] == ["p1", "p2", prompt_of("A joy").prompt_id]
        assert found.cut == 1

    def test_a_long_prompt_keeps_its_end(self, built_model: Path, make_ids: Callable[[str], list[int]]) -> None:
        text = "Dull, long and loud. " * 3
        found = encode(Model("a", built_model), "A", [prompt_of(text)], run(max_prompt_tokens=4))
        assert found.prompts[0].prompt_ids == make_ids(text)[-4:]
        assert found.cut == 1

    def test_what_does_not_fit_the_context(self, built_model: Path) -> None:
        with pytest.raises(ConfigError, match=r"A \(small\) takes 64 tokens, but the longest prompt has"):
            encode(Model("small", built_model), "A", [prompt_of("A joy")], run(max_new_tokens=64))


@pytest.fixture
def make_ids(built_model: Path) -> Callable[[str], list[int]]:
    from pipeline.models.load import load_tokenizer

    tokenizer = load_tokenizer(built_model)
    return lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"])
