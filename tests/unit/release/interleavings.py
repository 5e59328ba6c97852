"""Processes that move the aliases of one line at the same time and are killed at random points (not a test).

``python interleavings.py ROOT SCRATCH --interleavings 60 --races 20 --stride 9`` prints, as JSON, what was found wrong
and where the kills landed. It is a program of its own because it forks, which a process with threads (of a test run
with Ray, say) must not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[3])]

from pipeline.errors import ConflictError, PipelineError
from pipeline.places import Place
from pipeline.release.line import Line
from pipeline.release.manifest import describe_files, id_of
from tests.unit.release import lines
from tests.unit.release.killing import Fate, Say, collect, run_process
from tests.unit.release.promises import wrong_with

MODELS = 8
OPERATIONS = ("promote", "promote", "roll back", "to the reference", "register", "register", "decide", "remove")


# -- what the processes do ---------------------------------------------------------------------------------


def act(line: Line, what: str, rng: random.Random, models: Path) -> dict[str, Any]:
    """One operation; returns what its caller knows when it has come back."""
    alias, why = lines.ALIAS, f"{what} in a test"
    if what == "register":
        manifest = line.register(models / str(rng.randrange(MODELS)), {}, why=why)
        return {"version": manifest.version, "manifest": manifest.digest}
    state = line.state()
    current, version = state.alias(alias), rng.randrange(state.versions)
    expectation: dict[str, int | None]
    if what == "promote":
        expectation = {"expected": current.version, "seen": rng.choice([None, current.moved_by])}
        record = line.promote(
            alias, version, expected=current.version, seen=expectation["seen"], fence=rng.choice([None, 1, 2]), why=why
        ).record
    elif what == "decide":
        goes_to = rng.choice([None, 0, version])
        expectation = {"seen": None if goes_to is None else current.moved_by}
        record = line.decide(alias, version, goes_to, seen=current.moved_by, why=why, details={})
    elif what == "remove":
        line.remove(str(version), why=why)
        return {"removed": version}
    else:
        moved = line.roll_back(alias, None if what == "roll back" else "reference", why=why)
        record, expectation = moved.record, {"target": moved.after}
    return {} if record is None else {"record": record.number, "digest": record.digest, **expectation}


def script(root: str, models: Path, seed: int) -> Callable[[Say], object]:
    """A process's operations, one after another; what is refused is refused."""
    rng = random.Random(seed)
    chosen = [rng.choice(OPERATIONS) for _ in range(rng.randint(1, 4))]

    def work(say: Say) -> None:
        line = Line(Place(root), lines.NAME)
        for what in chosen:
            try:
                say({"did": what, **act(line, what, rng, models)})
            except PipelineError as error:
                say({"refused": what, "said": str(error)})

    return work


def promote_to_3(line: Line) -> None:
    """As a command that is given again by somebody who does not know whether it was done."""
    try:
        line.promote(lines.ALIAS, 3, expected=2, why="a test")
    except ConflictError:
        assert line.alias(lines.ALIAS).version == 3


Step = tuple[Callable[[str, Path], object], Callable[[Line], object]]
"""Something that is done, given the root and the models, and whether it has been."""


def _step(do: Callable[[Line], object], done: Callable[[Line], object]) -> Step:
    return lambda root, models: do(Line(Place(root), lines.NAME)), done


def _register(root: str, models: Path) -> object:
    return lines.register(Line(Place(root), lines.NAME), models, 7)


STEPS: dict[str, Step] = {
    "begin": (lines.begin, lambda line: line.state().versions == 1),
    "register": (_register, lambda line: line.fetch("5", Path("nowhere")).version == 5 == line.state().versions - 1),
    "register over half a copy": (_register, lambda line: line.fetch("5", Path("nowhere")).version == 5),
    "promote": _step(promote_to_3, lambda line: line.alias(lines.ALIAS).version == 3),
    "roll back": _step(
        lambda line: line.roll_back(lines.ALIAS, why="a test"), lambda line: line.alias(lines.ALIAS).version == 1
    ),
    "to the reference": _step(
        lambda line: line.roll_back(lines.ALIAS, "reference", why="a test"),
        lambda line: line.alias(lines.ALIAS).version == 0,
    ),
    "decide": _step(
        lambda line: line.decide(lines.ALIAS, 3, 3, seen=line.alias(lines.ALIAS).moved_by, why="a test", details={}),
        lambda line: line.alias(lines.ALIAS).version == line.alias("candidate").version == 3,
    ),
    "remove": _step(
        lambda line: line.remove("1", why="a test"),
        lambda line: not Path(line.versions.directory(line.versions.manifest(1)).root).exists(),
    ),
}


# -- interleavings -----------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """Of many interleavings."""

    interleavings: int = 0
    points: Counter[str] = field(default_factory=Counter)
    """Kills of every step that was cut at one point after another."""
    races: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    did: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


class Driver:
    """Runs interleavings, each in a copy of one line with some history.

    Args:
        root: of the registries, a directory or a URL.
        scratch: a local directory.
    """

    def __init__(self, root: str, scratch: Path) -> None:
        self.root, self.remote = root, "://" in root
        self.models, self._template = scratch / "models", scratch / "template"
        self.outcome = Outcome()
        for number in range(MODELS):
            lines.write_model(self.models / str(number), number)
        if not self.remote:
            lines.begin_with_history(str(self._template), self.models)

    def interleave(self, seed: int) -> None:
        """Two or three processes at once, most of which are killed."""
        rng = random.Random(seed)
        root = self._fresh(f"interleaving-{seed}")
        fates = [self._fate(rng) for _ in range(rng.choice([2, 2, 3]))]
        said = self._together(root, [(script(root, self.models, rng.randrange(2**32)), fate) for fate in fates])
        self.outcome.interleavings += 1
        self._check(root, said, f"interleaving {seed}")

    def _fate(self, rng: random.Random) -> Fate:
        kind = rng.random()
        if kind < 0.2:
            return Fate()
        if kind < 0.5:
            return Fate(after_s=rng.random() * (3.0 if self.remote else 0.06))
        return Fate(point=rng.randrange(80 if self.remote else 200))

    def race(self, seed: int) -> None:
        """A roll-back and a promotion at the same moment."""
        root, rng = self._fresh(f"race-{seed}"), random.Random(seed)
        delays = [rng.random() * (1.0 if self.remote else 0.01) for _ in range(2)]

        def promote(say: Say) -> None:
            line = Line(Place(root), lines.NAME)
            time.sleep(delays[0])
            try:
                say({"promoted": line.promote(lines.ALIAS, 3, expected=2, why="a test").after})
            except ConflictError:
                say({"refused": "promote"})

        def roll_back(say: Say) -> None:
            line = Line(Place(root), lines.NAME)
            time.sleep(delays[1])
            moved = line.roll_back(lines.ALIAS, why="a test")
            say({"before": moved.before, "target": moved.after})

        def look(say: Say) -> None:
            say({"at": Line(Place(root), lines.NAME).alias(lines.ALIAS).version})

        said = self._together(root, [(promote, Fate()), (roll_back, Fate())])
        known = {name: value for one in [*said, *self._alone(look)] for name, value in one.items()}
        which = "the promotion was refused" if "refused" in known else "the promotion was undone"
        if known.get("target") == 2:
            which = "the roll-back began after the promotion"
        self.outcome.races[which] += 1
        if known.get("at") != known.get("target"):
            self.outcome.wrong.append(f"race {seed} ended at the wrong version: {known}")
        self._check(root, said, f"race {seed}")

    def every_point(self, name: str, stride: int) -> None:
        """One step, killed before every ``stride``-th of its operations on the file system, then done again."""
        do, done = STEPS[name]
        for point in range(0, 10**6, stride):
            root = self._fresh(f"{name} {point}", empty=name == "begin")
            if "half a copy" in name:
                source = self.models / "7"
                target = Path(root) / lines.NAME / "models" / id_of(describe_files(source))
                shutil.copytree(source, target)
                (target / "model.safetensors").write_bytes(b"half")

            def once(say: Say, root: str = root) -> None:
                do(root, self.models)

            said = self._together(root, [(once, Fate(point=point))])
            killed = not any("ended" in one for one in said)
            what = f"{name}, killed at {point}"
            self.outcome.points[name] += killed

            def again(say: Say, root: str = root, what: str = what) -> None:
                do(root, self.models)
                if not done(Line(Place(root), lines.NAME)):
                    say({"wrong": f"{what}: done again, it has no effect"})

            self._check(root, said, what, again)
            if not killed:
                return

    # -- parts -------------------------------------------------------------------------------------------------

    def _fresh(self, name: str, empty: bool = False) -> str:
        """The root of a registry, by default one that has a history."""
        root = f"{self.root}/{name}"
        if self.remote:  # the client must not be started in a process that forks
            self._alone(lambda _: lines.begin_with_history(root, self.models))
        elif not empty:
            shutil.copytree(self._template, root)
        return root

    def _together(self, root: str, works: list[tuple[Callable[[Say], object], Fate]]) -> list[dict[str, Any]]:
        fates = [fate for _, fate in works]
        said, kills = collect([run_process(work, fate, self.remote) for work, fate in works], fates)
        flat = [one for ones in said for one in ones]
        self.outcome.kills += kills
        self.outcome.did += Counter(one["did"] for one in flat if "did" in one)
        self.outcome.did += Counter(f"{one['refused']} refused" for one in flat if "refused" in one)
        return flat

    def _alone(self, work: Callable[[Say], object]) -> list[dict[str, Any]]:
        """Do something in a process of its own that nobody kills."""
        [said], _ = collect([run_process(work, Fate(), False)], [Fate()])
        for one in said:
            assert "error" not in one, one["error"]
        return said

    def _check(
        self, root: str, said: list[dict[str, Any]], what: str, again: Callable[[Say], object] | None = None
    ) -> None:
        """Look at a line as it was left, and once more when somebody has gone on from there."""

        def look(say: Say) -> None:
            line = Line(Place(root), lines.NAME)
            for wrong in wrong_with(line, said, settled=False):
                say({"wrong": f"{what}, as it was left: {wrong}"})
            if again is not None:
                again(say)
            lines.register(line, self.models, 6)
            line.roll_back(lines.ALIAS, "reference", why="always possible")
            for wrong in wrong_with(line, said, settled=True):
                say({"wrong": f"{what}, after the next append: {wrong}"})

        self.outcome.wrong += [one["wrong"] for one in self._alone(look) if "wrong" in one]
        if not self.remote:
            shutil.rmtree(root)


def run(root: str, scratch: Path, **counts: int) -> dict[str, Any]:
    """The `Outcome` of this program in a process of its own.

    Args:
        counts: of interleavings and races, and the stride of points; 0 where they are not given.
    """
    options = [f"--{name}={count}" for name, count in counts.items()]
    done = subprocess.run(
        [sys.executable, __file__, root, str(scratch), *options], stdout=subprocess.PIPE, check=True, text=True
    )
    outcome: dict[str, Any] = json.loads(done.stdout)
    return outcome


@contextlib.contextmanager
def memory(otherwise: Path) -> Iterator[Path]:
    """A directory in memory where there is one: a kill loses nothing that was written, on whatever disk it lies."""
    if not os.access("/dev/shm", os.W_OK):
        yield otherwise
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("root")
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--interleavings", type=int, default=0)
    parser.add_argument("--races", type=int, default=0)
    parser.add_argument("--stride", type=int, default=0, help="of the points between operations; 0 for none of them")
    options = parser.parse_args()
    driver = Driver(options.root, options.scratch)
    for seed in range(options.interleavings):
        driver.interleave(seed)
    for seed in range(options.races):
        driver.race(seed)
    for name in STEPS if options.stride else ():
        driver.every_point(name, options.stride)
    print(json.dumps(vars(driver.outcome)))


if __name__ == "__main__":
    main()
