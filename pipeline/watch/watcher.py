"""From lines of production's logs to measures, a comparison log, and alarms: what a watch does between two commits.

::

    lines ─► rows ─► rows of the watched version ─► scored outputs ─┬► comparison log
               │             │                          │           ├► baseline, until it is complete
               └─────────────┴── counted by reason ◄────┘           └► detector ─► alarms, to be told (`Pending`)

Everything that is to survive is in the `State`, which is committed together with the comparison log.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from pipeline.places import Place
from pipeline.traffic import LogRow, parse
from pipeline.watch import state as states
from pipeline.watch.alerts import Alert, alert_id
from pipeline.watch.comparison import Comparison, riskiest
from pipeline.watch.days import Day, forget, risky
from pipeline.watch.detector import Alarm, Detector, Progress
from pipeline.watch.logs import TOO_LONG, Line
from pipeline.watch.ranks import Baseline
from pipeline.watch.rules import Rule, rules_for
from pipeline.watch.scored import Scored
from pipeline.watch.settings import Settings
from pipeline.watch.state import Epoch, Pending
from pipeline.watch.subject import Subject
from pipeline.watch.thresholds import threshold

OTHER_LINE, OTHER_VERSION = "of another line", "of another version"

Score = Callable[[Sequence[LogRow]], "list[Scored | str]"]


class Watcher:
    """One watch of one line.

    Args:
        place: its directory.
        target: what is watched, for names of alerts: the alias, or ``version-3``.
        clock: the time, UTC.
    """

    def __init__(
        self,
        place: Place,
        target: str,
        alias: str | None,
        settings: Settings,
        say: Callable[[str], None],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._place, self._target, self._alias = place, target, alias
        self._settings, self._say, self._clock = settings, say, clock
        self.state = states.load(place)
        self._log = Comparison(place.below("comparison"), self.state.part, self.state.part_rows)
        self._detector: Detector | None = None
        self._baseline: Baseline | None = None
        self.subject: Subject | None = None
        self._committed: dict[str, Any] = {}

    # -- what is watched -----------------------------------------------------------------------------------

    def watch(self, subject: Subject) -> bool:
        """Go on with a subject, or begin a baseline for it; true when a baseline was begun."""
        self.subject, self._detector, self._baseline = subject, None, None
        epoch, asked = self.state.epoch, self._settings.rebaseline
        if epoch is None or epoch.id != subject.id or asked not in (None, epoch.asked):
            self._begin(subject, asked)
            return True
        self._say_what_waits(epoch)
        if epoch.thresholds is not None:
            self._arm(epoch, states.load_baseline(self._place, epoch))
        return False

    def _say_what_waits(self, epoch: Epoch) -> None:
        """Options whose values a baseline keeps, where others are given now."""
        kept: dict[str, float] = {
            "baseline_outputs": epoch.baseline_outputs,
            "per_outputs": epoch.window,
            "false_alarms": epoch.false_alarms,
        }
        if other := [f"--{name} {value:g}" for name, value in kept.items() if value != getattr(self._settings, name)]:
            self._say(
                f"note: baseline {epoch.number} was begun with {', '.join(other)}, and keeps it; other values hold "
                "from the next baseline on (--rebaseline with a reason takes one)"
            )

    def _begin(self, subject: Subject, asked: str | None) -> None:
        number = 1 if self.state.epoch is None else self.state.epoch.number + 1
        self.state.epoch = Epoch(
            number,
            subject.version,
            subject.id,
            self._clock().isoformat(timespec="seconds"),
            asked,
            self._settings.baseline_outputs,
            self._settings.per_outputs,
            self._settings.false_alarms,
        )
        self.state.gathered, self.state.progress = {}, Progress()
        self._say(
            f"baseline {number} begins: the first {self._settings.baseline_outputs:,} outputs of version "
            f"{subject.version}; until it is complete there are no alarms"
        )

    def rules(self) -> tuple[Rule, ...]:
        """Of the watched version."""
        assert self.subject is not None
        return rules_for(self.subject.measures, self.subject.primary)

    def _complete(self, epoch: Epoch) -> None:
        """The baseline is there: settle the thresholds, and arm the rules."""
        baseline = Baseline(self._seed(epoch), {name: tuple(values) for name, values in self.state.gathered.items()})
        rules = self.rules()
        share = epoch.false_alarms / len(rules)
        # Rules of one kind have one threshold: it depends on no distribution.
        by_kind = {kind: threshold(kind, baseline.size, epoch.window, share) for kind in {rule.kind for rule in rules}}
        epoch.thresholds = {rule.name: by_kind[rule.kind] for rule in rules}
        self.state.gathered = {}
        states.save_baseline(self._place, epoch, baseline)
        self._arm(epoch, baseline)
        self._say(
            f"baseline {epoch.number} is complete: {len(rules)} rules, which all together raise a false alarm within "
            f"{epoch.window:,} outputs with a probability of at most {epoch.false_alarms:.3g}"
        )

    def _seed(self, epoch: Epoch) -> str:
        return f"{self._target} {epoch.number} {epoch.id} {epoch.begun}"

    def _arm(self, epoch: Epoch, baseline: Baseline) -> None:
        assert epoch.thresholds is not None
        self._detector = Detector(baseline, epoch.thresholds, self.rules(), epoch.window, self.state.progress)
        self._baseline = baseline

    def baseline_values(self) -> Mapping[str, Sequence[float]]:
        """Of the complete baseline, by measure; empty before that."""
        return {} if self._baseline is None else self._baseline.values

    # -- outputs -------------------------------------------------------------------------------------------

    def take(self, lines: Sequence[Line], score: Score) -> None:
        """Score the lines' outputs, write them to the comparison log, and look for drift. Nothing is committed."""
        rows = [(line.where, row) for line in lines if (row := self._row(line)) is not None]
        for (where, row), scored in zip(rows, score([row for _, row in rows]), strict=True):
            day = self._day(row.time)
            if isinstance(scored, str):
                self.state.skip(scored, where)
                day.skip(scored)
            else:
                self._output(where, row, scored, day)
        forget(self.state.days)

    def take_baseline(self, lines: Sequence[Line], score: Score) -> None:
        """Add to the baseline from a log of its own, whose outputs are written nowhere else."""
        epoch = self.state.epoch
        assert epoch is not None
        rows = [row for line in lines if (row := self._row(line)) is not None]
        for scored in score(rows):
            if epoch.thresholds is None and not isinstance(scored, str):
                self._gather(scored, epoch)

    def _row(self, line: Line) -> LogRow | None:
        assert self.subject is not None
        reason, time = TOO_LONG, None
        if line.text is not None:
            try:
                row = parse(line.text)
            except ValueError as error:
                reason = f"malformed: {error}"
            else:
                time = row.time
                if row.line not in (None, self.subject.line):
                    reason = OTHER_LINE
                elif row.version not in (None, self.subject.version):
                    reason = OTHER_VERSION
                else:
                    return row
        self.state.skip(reason, line.where)
        self._day(time).skip(reason)
        return None

    def _day(self, time: str | None) -> Day:
        return self.state.days.setdefault(f"{self._when(time):%Y-%m-%d}", Day())

    def _when(self, time: str | None) -> datetime:
        """When a row was written. A clock that is ahead must not push the real days out, nor make the newest output
        one of the future, behind which silence would not be seen."""
        now = self._clock().replace(microsecond=0)
        return now if time is None else min(now, datetime.fromisoformat(time))

    def _output(self, where: str, row: LogRow, scored: Scored, day: Day) -> None:
        state, epoch = self.state, self.state.epoch
        assert epoch is not None
        assert self.subject is not None
        state.outputs += 1
        state.cut += scored.cut
        state.anew += scored.anew
        state.last_output = max(state.last_output or "", self._when(row.time).isoformat())
        if state.outputs % self._settings.every:
            use = "logged"
        elif epoch.thresholds is None:
            use = "baseline"
            self._gather(scored, epoch)
        else:
            use = "watched"
            assert self._detector is not None
            for alarm in self._detector.add(scored.measures):
                self._alarm(alarm, where, row, epoch)
        day.add(scored.measures, random.random())
        if day.is_risky(scored.measures["risk"]):
            version = self.subject.version
            day.show(risky(where, row.time, version, row.prompt, scored.tokens, scored.risks, scored.measures))
        self._log.append(
            {
                "output": state.outputs,
                "where": where,
                "id": row.id,
                "time": row.time,
                "version": self.subject.version,
                "epoch": epoch.number,
                "use": use,
                "measures": {name: float(f"{value:.8g}") for name, value in scored.measures.items()},
                "riskiest": riskiest(scored.tokens, scored.risks),
                "cut": scored.cut,
                "anew": scored.anew,
            }
        )

    def _gather(self, scored: Scored, epoch: Epoch) -> None:
        assert self.subject is not None
        for name in self.subject.measures:
            self.state.gathered.setdefault(name, []).append(scored.measures[name])
        if len(next(iter(self.state.gathered.values()))) >= epoch.baseline_outputs:
            self._complete(epoch)

    # -- alarms --------------------------------------------------------------------------------------------

    def _alarm(self, alarm: Alarm, where: str, row: LogRow, epoch: Epoch) -> None:
        assert self.subject is not None
        name = alarm.rule.name
        what = f"version {epoch.version}" if self._alias is None else f"{self._alias} (version {epoch.version})"
        alert = Alert(
            id=alert_id(self._target, epoch.number, alarm.output, name),
            when=self._clock().isoformat(timespec="seconds"),
            line=self.subject.line,
            alias=self._alias,
            version=epoch.version,
            rule=name,
            message=f"{what}: {sentence(alarm)}",
            figures={
                "measure": alarm.rule.measure,
                "statistic": alarm.statistic,
                "threshold": alarm.threshold,
                "outputs": alarm.output,
                "since": alarm.since,
                "mean_since": alarm.mean_since,
                "baseline_mean": alarm.baseline_mean,
                "baseline": epoch.number,
                "false_alarms": epoch.false_alarms,
                "per_outputs": epoch.window,
                "where": where,
                "id": row.id,
                "time": row.time,
            },
            action="none",
            action_message="",
        )
        self.state.alarms[name] = self.state.alarms.get(name, 0) + 1
        self.state.pending.append(Pending(alert, self._alias is not None and self._settings.rolls_back(alarm.rule)))
        self._say(f"ALARM {alert.message}")

    # -- keeping -------------------------------------------------------------------------------------------

    def commit(self) -> None:
        """Make what was done since the last commit count; nothing is written when nothing was done.

        Raises:
            ArtifactError: when it cannot be written, or another watch writes here.
        """
        today = self._clock().date()
        self.state.part, self.state.part_rows = self._log.write(today)
        if (content := asdict(self.state)) == self._committed:
            return
        states.save(self._place, self.state)
        self._committed = content | {"commit": self.state.commit}
        self._log.turn(today)

    def forget(self) -> int:
        """Remove what is older than it is to be kept; returns how many parts of the comparison log."""
        return self._log.forget(self._clock().date(), self._settings.keep_days)


def sentence(alarm: Alarm) -> str:
    """What a rule found, in words."""
    rule, over = alarm.rule, alarm.output - alarm.since
    if rule.kind == "tail":
        what = f"more outputs than expected are beyond the worst 1% of the baseline in {rule.measure}"
    else:
        what = f"{rule.measure} is {'higher' if rule.up else 'lower'} than in the baseline"
    return (
        f"{what}: mean {alarm.mean_since:.4g} over the last {over:,} outputs, {alarm.baseline_mean:.4g} in the "
        f"baseline (statistic {alarm.statistic:.1f}, threshold {alarm.threshold:.1f})"
    )
