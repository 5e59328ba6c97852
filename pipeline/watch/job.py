"""The watch itself: look at the registry and the logs, score, tell, commit; once, or until it is told to end.

::

    registry ─► which version ─► actors with the version and its reference
    logs ─────► whole lines ───► Watcher.take ─► commit (state and comparison log) ─► alerts: roll-back, document,
                                                                                      webhook, metrics, page

An alarm is committed before anything is done about it, and done about before the next look at the registry.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from types import FrameType

from pipeline.actors import Pool
from pipeline.cluster import connected
from pipeline.console import Console, quiet_libraries
from pipeline.errors import ArtifactError, ConfigError, DataError, PipelineError
from pipeline.release.line import Line
from pipeline.release.state import PRODUCTION, check_alias
from pipeline.storage import Storage, open_storage
from pipeline.traffic import LogRow
from pipeline.watch import logs
from pipeline.watch.alerts import DIRECTORY, place_of
from pipeline.watch.metrics import Surroundings
from pipeline.watch.publishing import PAGE, Publisher
from pipeline.watch.rules import rules_for
from pipeline.watch.scoring import Scored, Scorers
from pipeline.watch.settings import ANY, ROLL_BACK_ON, Settings
from pipeline.watch.subject import Subject, load_subject
from pipeline.watch.telling import Teller
from pipeline.watch.watcher import Watcher
from pipeline.watch.webhook import Webhook

_LINES, _LEAST_LINES = 512, 64
"""Read at once, at most and at least."""
_TURN_S = 5.0
"""What scoring them should take: an alarm is told, and a signal heard, when they are scored."""
_COMMIT_S = 5.0
_RETRY_S = 10.0
"""Between two attempts at a roll-back that failed."""
_PAGE_S = 60.0
_FORGET_S = 3600.0


def watch(settings: Settings) -> int:
    """Watch what the settings say; returns the exit code."""
    settings.check()
    source = logs.Logs(settings.logs)
    source.check()
    line = settings.open()
    storage = open_storage(settings.storage)
    log_path = storage.here / "logs" / f"watch-{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}.log"
    quiet_libraries(log_path)
    with Console(log_path) as console, contextlib.ExitStack() as stack:
        job = _Job(settings, storage, line, source, console, stack)
        console.line(f"Ra-DPO watch: {job.target} of line {line.name}, logs {settings.logs}, storage {storage.root}")
        stack.enter_context(
            job.place.lock(lambda: console.line("another watch of this is running; waiting for it to end"))
        )
        job.run()
    return 0


class _Job:
    def __init__(
        self,
        settings: Settings,
        storage: Storage,
        line: Line,
        source: logs.Logs,
        console: Console,
        stack: contextlib.ExitStack,
    ) -> None:
        self._settings, self._storage, self._line = settings, storage, line
        self._source, self._console, self._stack = source, console, stack
        self._alias = None if settings.version is not None else settings.alias
        if self._alias is not None:
            check_alias(self._alias)
        self.target = self._alias or f"version-{settings.version}"
        inside = () if self._alias == PRODUCTION else (self.target,)
        self.place = storage.place(DIRECTORY, line.name, *inside)
        self._stop = threading.Event()
        self._joined = False
        self._scorers = contextlib.ExitStack()
        self._hosted: tuple[str, Scorers] | None = None
        self._publisher = Publisher(storage, self.place, self.target, self._alias, settings.language)
        self._unread, self._lines = 0, _LINES
        self._registry_failures = 0
        self._complaint = ""
        self._due: dict[str, float] = {}

    def run(self) -> None:
        """Watch until there is nothing more to read, or until told to end."""
        settings, say = self._settings, self._console.line
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._scorers)
            webhook = None
            if (url := settings.webhook_url()) is not None:
                outbox = self.place.below("outbox")
                webhook = stack.enter_context(Webhook(outbox, url, settings.webhook_token(), say))
            self._webhook = webhook
            alerts = place_of(self._storage, self._line.name)
            self._teller = Teller(alerts, self._open_line, self._alias, settings.roll_back_to, say)
            if settings.metrics_port is not None:
                self._publisher.serve(settings.metrics_port, self._stack)
            self._watcher = Watcher(self.place, self.target, self._alias, settings, say)
            stack.enter_context(self._signals())
            self._take_up(self._load(self._line.number(self._alias or str(settings.version))))
            self._tell()
            self._publish()
            while not self._stop.is_set():
                if self._turn():
                    continue
                self._commit()
                if not settings.follow:
                    break
                self._stop.wait(settings.poll_s)
            self._commit()
            self._publish()
        state = self._watcher.state
        skipped = sum(one.count for one in state.skipped.values())
        say(f"{state.outputs:,} outputs scored, {skipped:,} {'row' if skipped == 1 else 'rows'} skipped")
        say(f"page: {self.place.root}/{PAGE}")

    # -- one turn ------------------------------------------------------------------------------------------

    def _turn(self) -> bool:
        """Read some lines and do what follows from them; false when there was nothing to read."""
        state = self._watcher.state
        look = self._source.look(state.positions)
        state.positions, self._unread = look.positions, look.unread_bytes
        state.restarted += look.restarted
        state.lost_bytes += look.lost_bytes
        if look.lost_bytes:
            self._console.line(f"note: {look.lost_bytes:,} bytes of a log that went away had not been read")
        lines, after = self._read()
        # After the lines were written, so that the outputs of a version that has just been promoted are known as its;
        # a new version's baseline is committed here, and the lines are not taken yet.
        ready = self._follow_alias()
        if ready:  # else they wait until the version can be loaded
            state.positions = after
            if lines:
                began = time.monotonic()
                self._watcher.take(lines, self._score)
                fitting = self._lines * _TURN_S / max(time.monotonic() - began, 1e-3)
                self._lines = max(_LEAST_LINES, min(_LINES, int(fitting)))
        if any(not one.told for one in state.pending) or (state.pending and self._is_due("retry", _RETRY_S)):
            self._commit()
            self._tell()
        if self._is_due("commit", _COMMIT_S):
            self._commit()
        if self._is_due("page", _PAGE_S):
            self._publish_if_possible()
            if lines:
                self._console.line(f"{state.outputs:,} outputs scored, {self._unread:,} bytes to read")
        if self._is_due("forget", _FORGET_S) and (removed := self._watcher.forget()):
            self._console.line(f"{removed} part(s) of the comparison log were older than it is kept, and removed")
        return bool(lines) and ready

    def _read(self) -> tuple[list[logs.Line], tuple[logs.Position, ...]]:
        """Some lines of the first file that has any, and the positions behind them."""
        positions = list(self._watcher.state.positions)
        for place in range(len(positions)):
            while self._source.has_more(positions[place]):
                before = positions[place]
                lines, positions[place] = logs.read(before, self._lines)
                if lines:
                    return lines, tuple(positions)
                if positions[place] == before:  # a line that is not whole yet
                    break
        return [], tuple(positions)

    def _score(self, rows: Sequence[LogRow]) -> list[Scored | str]:
        if not rows:
            return []
        subject = self._watcher.subject
        assert subject is not None
        if self._hosted is None or self._hosted[0] != subject.id:
            self._join()
            self._scorers.close()
            cluster = subject.run.cluster
            pool = Pool(cluster.cpus_per_actor, cluster.gpus_per_actor, cluster.max_actors)
            self._hosted = subject.id, self._scorers.enter_context(Scorers(subject, pool, self._console.line))
        return self._hosted[1].score(rows)

    def _join(self) -> None:
        """Ray, for as long as the watch runs; only when there is something to score."""
        if not self._joined:
            cluster = self._settings.cluster.config()
            self._console.line(self._stack.enter_context(connected(cluster, self._storage, least_workers=0)))
            self._joined = True
            self._listen()  # Ray has put a handler of its own in place

    # -- the registry --------------------------------------------------------------------------------------

    def _follow_alias(self) -> bool:
        """See where the alias points; false when it points to a version that cannot be loaded."""
        subject = self._watcher.subject
        if self._alias is None:
            return True
        try:
            version = self._open_line().number(self._alias)
            if subject is not None and version == subject.version:
                self._complaint = ""
                return True
            subject = None
            loaded = self._load(version)
        except (PipelineError, OSError) as error:
            self._registry_failures += 1
            if (complaint := str(error)) != self._complaint:
                self._complaint = complaint
                goes_on = f"version {subject.version} is still watched" if subject else "the logs wait"
                self._console.line(f"note: the registry: {complaint}; {goes_on}")
            return subject is not None
        self._take_up(loaded)
        return True

    def _open_line(self) -> Line:
        """The line again: raises where its registry is gone meanwhile, which a look at a known line would not see."""
        return self._settings.registry().line(self._line.name)

    def _load(self, version: int) -> Subject:
        cluster = self._settings.cluster.config()
        subject = load_subject(self._line, version, self._storage.here / "versions", cluster)
        self._check_rules(subject)
        return subject

    def _take_up(self, subject: Subject) -> None:
        """Watch a version from now on."""
        self._console.line(f"watching version {subject.version}: {', '.join(subject.measures)}")
        begun = self._watcher.watch(subject)
        epoch = self._watcher.state.epoch
        assert epoch is not None
        if self._settings.baseline is not None and epoch.thresholds is None:
            self._take_baseline()
        if begun or self._settings.baseline is not None:
            self._watcher.commit()

    def _check_rules(self, subject: Subject) -> None:
        known = {rule.name for rule in rules_for(subject.measures, subject.primary)}
        # The usual names stand also where a version has no such rule.
        if unknown := set(self._settings.roll_back_on) - known - {ANY, *ROLL_BACK_ON}:
            raise ConfigError(
                f"--roll_back_on: version {subject.version} has no rule {sorted(unknown)[0]!r}; it has "
                f"{', '.join(sorted(known))}"
            )

    def _take_baseline(self) -> None:
        path = self._settings.baseline
        assert path is not None
        source = logs.Logs(path)
        source.check()
        epoch = self._watcher.state.epoch
        assert epoch is not None
        self._watcher.state.gathered = {}  # what production's own log gave is no part of it
        for position in source.look(()).positions:
            lines: list[logs.Line] = []
            while epoch.thresholds is None:
                lines, position = logs.read(position, _LINES)
                if not lines:
                    break
                self._watcher.take_baseline(lines, self._score)
        if epoch.thresholds is None:
            have = len(next(iter(self._watcher.state.gathered.values()), []))
            raise DataError(
                f"--baseline: {path} has {have} usable outputs of version {epoch.version}, but a baseline takes "
                f"{epoch.baseline_outputs}: give more, or lower --baseline_outputs"
            )

    # -- what comes of it ----------------------------------------------------------------------------------

    def _tell(self) -> None:
        """Do something about alarms, and write them down."""
        for pending in list(self._watcher.state.pending):
            alert = self._teller.settle(pending)
            if alert is not None and self._webhook is not None:
                self._teller.send(self.place.below("outbox"), alert)
                self._webhook.wake()
            if pending.told and not pending.roll_back:
                self._watcher.state.pending.remove(pending)

    def _commit(self) -> None:
        self._watcher.commit()
        self._publisher.committed(self._watcher, self._surroundings())

    def _publish(self) -> None:
        self._publisher.committed(self._watcher, self._surroundings())
        self._publisher.publish(self._watcher, self._line.name)

    def _publish_if_possible(self) -> None:
        """The page can wait: what is in the way of it (a damaged alert, a storage that is away) is said when the
        watch ends."""
        with contextlib.suppress(ArtifactError):
            self._publish()

    def _surroundings(self) -> Surroundings:
        undelivered = 0 if self._webhook is None else self._webhook.undelivered
        return Surroundings(self._line.name, self.target, self._unread, self._registry_failures, undelivered)

    def _is_due(self, what: str, every_s: float) -> bool:
        now = time.monotonic()
        if now < self._due.setdefault(what, now + every_s):
            return False
        self._due[what] = now + every_s
        return True

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        self._listen()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _listen(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._told_to_end)

    def _told_to_end(self, number: int, frame: FrameType | None) -> None:
        if self._stop.is_set():
            raise KeyboardInterrupt  # said twice: at once; the next watch goes on from the last commit
        self._console.line("told to end: what is under way is finished and committed")
        self._stop.set()
