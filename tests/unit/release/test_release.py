"""From a judged policy to a version and a record: what a run meets, what it leaves, and that it may be repeated."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import WandbConfig
from pipeline.errors import ConflictError, RegistryError
from pipeline.release import state
from pipeline.release.line import Line
from pipeline.release.mirror import mirror
from pipeline.release.register import Verdict, judge_production, release, version_directory
from pipeline.release.standing import Standing, standing
from tests.unit.release import lines

PROVENANCE = {"recipe": "tiny"}


def verdict(outcome: str, run: str = "run-1", policy: str = "p") -> Verdict:
    return Verdict(run, policy, {"outcome": outcome, "conditions": []}, f"it was {outcome}", [])


def meets(line: Line, root: str, run: str = "run-1", policy: str = "p") -> Standing:
    return standing(root, line.name, lines.ALIAS, run, policy, act=True)


@pytest.fixture
def begun(root: str, models: Path) -> Line:
    return lines.begin(root, models)


def model(models: Path, number: int) -> Path:
    path = models / str(number)
    return path if path.exists() else lines.write_model(path, number)


def test_there_is_no_line_yet(root: str) -> None:
    assert standing(root, lines.NAME, "production", "run", "p", act=True) == Standing(
        root, lines.NAME, "production", None, 0
    )


@pytest.mark.parametrize(("outcome", "production"), [("promote", 1), ("hold", 0), ("roll_back", 0)])
def test_a_decision_is_acted_on(begun: Line, root: str, models: Path, outcome: str, production: int) -> None:
    made = release(begun, meets(begun, root), model(models, 1), PROVENANCE, verdict(outcome), act=True)
    assert made.manifest.version == 1
    assert begun.alias("production").version == production
    assert begun.alias(state.CANDIDATE).version == 1
    assert made.record.details["digests"]["candidate"] == made.manifest.id
    assert made.record.why == f"it was {outcome}"


def test_what_is_in_production_goes_back_to_the_reference(begun: Line, root: str, models: Path) -> None:
    release(begun, meets(begun, root), model(models, 1), PROVENANCE, verdict("promote"), act=True)
    later = meets(begun, root, run="run-2")
    assert later.incumbent is not None
    assert later.incumbent.version == 1
    release(begun, later, model(models, 2), PROVENANCE, verdict("roll_back", "run-2"), act=True)
    assert begun.alias("production") == state.AliasState(0, len(begun.trail.numbers()), (), rolled_back=True)


def test_recorded_only(begun: Line, root: str, models: Path) -> None:
    made = release(begun, meets(begun, root), model(models, 1), PROVENANCE, verdict("promote"), act=False)
    assert begun.alias("production").version == 0
    assert made.record.details["acted"] is False


def test_what_was_only_recorded_is_acted_on_when_that_is_asked_for(begun: Line, root: str, models: Path) -> None:
    release(begun, meets(begun, root), model(models, 1), PROVENANCE, verdict("promote"), act=False)
    made = release(begun, meets(begun, root), model(models, 1), PROVENANCE, verdict("promote"), act=True)
    assert made.record.details["acted"] is True
    assert begun.alias("production").version == 1
    assert made.manifest.version == 1, "the same version, another decision"


def test_said_again_it_adds_nothing(begun: Line, root: str, models: Path) -> None:
    before = meets(begun, root)
    first = release(begun, before, model(models, 1), PROVENANCE, verdict("promote"), act=True)
    records = begun.trail.numbers()
    # The job was killed before it knew; its next run meets what it met, although production is its own policy by now.
    assert meets(begun, root) == before
    assert release(begun, meets(begun, root), model(models, 1), PROVENANCE, verdict("promote"), act=True) == first
    assert begun.trail.numbers() == records
    # Another policy of the gate is another question.
    assert meets(begun, root, policy="q").incumbent == first.manifest


def test_production_has_moved_meanwhile(begun: Line, root: str, models: Path) -> None:
    slow = meets(begun, root)
    release(begun, meets(begun, root, "fast"), model(models, 1), PROVENANCE, verdict("promote", "fast"), act=True)
    with pytest.raises(ConflictError, match=r"version 2 is registered, and was compared with version 0\): the same"):
        release(begun, slow, model(models, 2), PROVENANCE, verdict("promote"), act=True)
    assert begun.alias("production").version == 1
    assert meets(begun, root).incumbent == begun.versions.manifest(1), "the next try is compared with that"


def test_production_is_judged_alone(begun: Line, root: str, models: Path) -> None:
    release(begun, meets(begun, root), model(models, 1), PROVENANCE, verdict("promote"), act=True)
    kept, there = judge_production(begun, meets(begun, root, "kept"), verdict("hold", "kept"), act=True, fence=3)
    assert (there, begun.alias("production").version, kept.event.fence) == (False, 1, 3)
    again, there = judge_production(begun, meets(begun, root, "kept"), verdict("hold", "kept"), act=True, fence=4)
    assert (there, again) == (True, kept), "said again, nothing is added"
    written, _ = judge_production(begun, meets(begun, root, "bad"), verdict("roll_back", "bad"), act=False, fence=4)
    assert (written.details["acted"], begun.alias("production").version) == (False, 1)
    moved, _ = judge_production(begun, meets(begun, root, "bad"), verdict("roll_back", "bad"), act=True, fence=4)
    assert begun.alias("production") == state.AliasState(0, moved.number, (), rolled_back=True)


def test_who_held_an_older_lease_decides_nothing(begun: Line, root: str, models: Path) -> None:
    release(begun, meets(begun, root), model(models, 1), PROVENANCE, verdict("promote"), act=True, fence=7)
    late, alone = meets(begun, root, "late"), meets(begun, root, "alone")
    begun.fence(8, why="a new holder")
    records = begun.trail.numbers()
    with pytest.raises(ConflictError, match=r"token 7 was taken over .*version 2 is registered"):
        release(begun, late, model(models, 2), PROVENANCE, verdict("promote", "late"), act=True, fence=7)
    with pytest.raises(ConflictError, match="token 7 was taken over"):
        judge_production(begun, alone, verdict("roll_back", "alone"), act=True, fence=7)
    assert begun.alias("production").version == 1
    assert [begun.trail.read(number).event.kind for number in begun.trail.numbers()[len(records) :]] == ["registered"]


def test_a_changed_trail_is_met_with_an_error(local_line: Line, tmp_path: Path) -> None:
    path = max((tmp_path / "registry" / lines.NAME / "audit").glob("*.json"))
    path.write_bytes(path.read_bytes().replace(b'"why"', b'"whY"'))
    with pytest.raises(RegistryError, match=r"the audit trail in .* was changed"):
        meets(local_line, str(tmp_path / "registry"))


class TestDirectory:
    def test_only_the_model_and_what_is_given(self, tmp_path: Path) -> None:
        source = lines.write_model(tmp_path / "model", 1)
        (source / "optimizer.pt").write_bytes(b"pickle")
        (source / "modeling_own.py").write_text("import os")
        table = tmp_path / "pairs.parquet"
        table.write_bytes(b"PAR1")
        beside: dict[str, Any] = {"evaluation/pairs.parquet": table, "README.md": "A card."}
        with version_directory(source, beside, tmp_path) as directory:
            found = lines.files_of(directory)
            assert sorted(found) == [
                "README.md",
                "config.json",
                "evaluation/pairs.parquet",
                "model.safetensors",
                "tokenizer.json",
            ]
            assert found["README.md"] == b"A card.", "not the card of the model that it was copied from"
        assert not directory.exists()
        assert (source / "README.md").read_text() == "Model 1."


class TestMirror:
    def result(self, version: int, after: int | None) -> dict[str, Any]:
        return {
            **{"version": version, "alias": "production", "outcome": "promote", "before": 0, "after": after},
            **{"record": 3, "digest": "d1"},
        }

    def test_off(self, local_line: Line, tmp_path: Path) -> None:
        manifest = local_line.versions.manifest(1)
        off, place = WandbConfig(mode="disabled"), tmp_path / "wandb"
        assert mirror(off, place, local_line, manifest, self.result(1, None), tmp_path) is None
        assert not place.exists()

    def test_offline(self, local_line: Line, tmp_path: Path) -> None:
        manifest = local_line.versions.manifest(1)
        place = tmp_path / "wandb-files"
        said = mirror(WandbConfig(mode="offline"), place, local_line, manifest, self.result(1, 1), tmp_path)
        assert said is None
        (record,) = place.glob("wandb/offline-run-*/run-*.wandb")
        wanted = [b"model.safetensors", b"version-1", b"candidate", b"production", f"policy-{lines.NAME}".encode()]
        deadline = time.monotonic() + 10  # W&B's service writes on after the run has ended here
        while not all(word in record.read_bytes() for word in wanted):
            assert time.monotonic() < deadline, "the artefact is missing"
            time.sleep(0.05)

    def test_a_damaged_version_ends_nothing(self, local_line: Line, tmp_path: Path) -> None:
        manifest = local_line.versions.manifest(1)
        Path(local_line.versions.directory(manifest).root, "config.json").unlink()
        place = tmp_path / "wandb-files"
        said = mirror(WandbConfig(mode="offline"), place, local_line, manifest, self.result(1, 1), tmp_path)
        assert said is not None
        assert said.startswith("W&B has no copy of version 1: RegistryError: version 1")
