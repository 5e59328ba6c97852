"""The options of a watch (nothing heavy is imported here)."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from pipeline.config import ClusterConfig
from pipeline.errors import ConfigError
from pipeline.release.state import PRODUCTION
from pipeline.release.where import Where
from pipeline.release_config import Language
from pipeline.watch.rules import KL, RISK, Rule

ANY = "any"
ROLL_BACK_ON = (f"{RISK}-up", f"{KL}-up", f"{RISK}-tail", f"{KL}-tail")
"""Rules that move the alias where nobody names others."""
_LEAST_BASELINE = 100
_LEAST_FALSE_ALARMS = 0.001


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where the models are."""

    address: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT", help_behavior_hint="")] = None
    """Ray cluster to join; without it one that runs on this machine, or a new local one."""
    cpus_per_actor: float = 1.0
    """CPUs of an actor, which hosts the version and its reference."""
    gpus_per_actor: float = 0.0
    """GPUs of an actor."""
    max_actors: int = 1
    """Actors at once."""

    def config(self) -> ClusterConfig:
        """For `pipeline.cluster`: nothing is trained."""
        actor = {"cpus": self.cpus_per_actor, "gpus": self.gpus_per_actor}
        return ClusterConfig(
            address=self.address,
            num_workers=1,
            max_actors=self.max_actors,
            **{f"{name}_per_{one}": value for name, value in actor.items() for one in ("actor", "worker") if value},
        )


@dataclass(frozen=True, kw_only=True)
class Settings(Where):
    """What a watch is told."""

    logs: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="LOGS")]
    """JSONL log of production, rows with "prompt" and "output", or a directory of such logs."""
    alias: str = PRODUCTION
    """Watch the version that this alias points to, and follow the alias."""
    version: Annotated[int | None, tyro.conf.arg(metavar="VERSION", help_behavior_hint="")] = None
    """Watch this version, wherever the alias points."""
    follow: bool = False
    """Go on as the logs grow, until SIGTERM or SIGINT; without it the watch reads what is there, and ends."""
    false_alarms: float = 0.01
    """Probability of any alarm at all within --per_outputs outputs, though nothing drifted."""
    per_outputs: int = 10_000
    """Outputs for which --false_alarms is stated."""
    baseline_outputs: int = 1_000
    """Outputs of a version that later ones are held against: its first ones, unless --baseline names others."""
    baseline: Annotated[Path | None, tyro.conf.arg(metavar="LOG", help_behavior_hint="")] = None
    """Take baselines from the first rows of this log, and watch from the first output on."""
    rebaseline: Annotated[str | None, tyro.conf.arg(metavar="REASON", help_behavior_hint="")] = None
    """Take a new baseline of the same version, and arm all rules again. The same reason again does nothing."""
    every: int = 1
    """Test only every so-manyth output, where neighbours resemble each other; all are scored and logged."""
    roll_back: bool = False
    """Move the alias back when a rule of --roll_back_on raises an alarm."""
    roll_back_to: Annotated[str | None, tyro.conf.arg(metavar="reference|VERSION", help_behavior_hint="")] = None
    """Where to. Default: the version before."""
    roll_back_on: tuple[str, ...] = ROLL_BACK_ON
    """Rules that move the alias, or any."""
    webhook: Annotated[str | None, tyro.conf.arg(metavar="URL", help_behavior_hint="")] = None
    """POST every alert to this URL, as JSON."""
    webhook_from: Annotated[str | None, tyro.conf.arg(metavar="VARIABLE", help_behavior_hint="")] = None
    """Environment variable that holds the webhook's URL, where that is a secret."""
    webhook_token_from: Annotated[str | None, tyro.conf.arg(metavar="VARIABLE", help_behavior_hint="")] = None
    """Environment variable that holds a bearer token for the webhook."""
    metrics_port: Annotated[int | None, tyro.conf.arg(metavar="PORT", help_behavior_hint="")] = None
    """Serve Prometheus metrics here (they are in metrics.prom too)."""
    keep_days: int = 365
    """Days after which parts of the comparison log are removed."""
    language: Language = "en"
    """Of the page."""
    poll_s: float = 2.0
    """Seconds between two looks at the logs and the registry."""
    cluster: Cluster = field(default_factory=Cluster)

    def rolls_back(self, rule: Rule) -> bool:
        """Whether an alarm of this rule moves the alias."""
        return self.roll_back and (ANY in self.roll_back_on or rule.name in self.roll_back_on)

    def check(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            ConfigError: naming the option and the remedy.
        """
        if not _LEAST_FALSE_ALARMS <= self.false_alarms < 1:
            raise ConfigError(f"--false_alarms is {self.false_alarms:g}: give {_LEAST_FALSE_ALARMS:g} or more, below 1")
        for name, least in (("baseline_outputs", _LEAST_BASELINE), ("per_outputs", 1), ("every", 1), ("keep_days", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"--{name} is {getattr(self, name)}: give {least} or more")
        if not 0 < self.poll_s <= 3600:
            raise ConfigError(f"--poll_s is {self.poll_s:g}: give seconds above 0, an hour at most")
        if self.roll_back and self.version is not None:
            raise ConfigError("--roll_back moves an alias, but --version watches a version: leave one of them out")
        if self.roll_back_to is not None and not self.roll_back:
            raise ConfigError("--roll_back_to says where to go back, but not that: add --roll_back")
        if self.webhook is not None and self.webhook_from is not None:
            raise ConfigError("--webhook and --webhook_from both name a webhook: give one of them")
        for variable in (self.webhook_from, self.webhook_token_from):
            if variable is not None and not os.environ.get(variable):
                raise ConfigError(f"the environment variable {variable} is empty or not set: set it for the webhook")
        if self.webhook_token_from is not None and self.webhook_url() is None:
            raise ConfigError("--webhook_token_from is for a webhook: name that with --webhook or --webhook_from")
        url = self.webhook_url()
        if url is not None and not url.startswith(("http://", "https://")):
            raise ConfigError("the webhook's URL does not begin with https:// or http://: correct it")

    def webhook_url(self) -> str | None:
        """Where alerts are posted to."""
        return self.webhook if self.webhook_from is None else os.environ[self.webhook_from]

    def webhook_token(self) -> str | None:
        """The bearer token for it."""
        return None if self.webhook_token_from is None else os.environ[self.webhook_token_from]
