"""The options of the guard (nothing heavy is imported here)."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import tyro
from pydantic import Field, model_validator

from pipeline.section import Section

_CANARY = re.compile(r"([a-z][a-z0-9_-]{0,30})=(\d*\.?\d+)")


def _written(metavar: str, name: str | None = None) -> Any:
    """How an option that need not be given stands on the command line."""
    return tyro.conf.arg(name=name, metavar=metavar, help_behavior_hint="")


class GuardOptions(Section):
    """What is served, and within which limits. The same options go into 'args' of a Serve configuration."""

    storage: Annotated[str | None, _written("DIR|URL")] = None
    """Directory or URL of runs, whose registry is served (default: ./runs)."""
    registry_root: Annotated[str | None, _written("DIR|URL", "registry.root")] = None
    """The registry, where it is not below the storage: a directory or URL."""
    line: Annotated[str | None, _written("NAME")] = None
    """A line of versions by its name or how that begins; needed only when there are several."""
    alias: str = "production"
    """What answers a request that names no version."""
    canary: Annotated[str | None, _written("ALIAS=SHARE")] = None
    """Such as candidate=0.1: this share of production's requests is answered by another alias. Which ones
    is decided by a hash of the request's user or id, so that one user always gets the same."""
    preload: bool = True
    """Load the candidate before anybody asks for it, so that its promotion costs no request any time."""
    fallback: Literal["none", "reference"] = "none"
    """What answers when the chosen version cannot be loaded: nothing (error 503), or the reference, whose answers say
    so."""
    max_loaded: int = Field(4, ge=1)
    """Versions kept in memory. For as long as requests are in flight, one more may be there."""
    token_env: Annotated[str | None, _written("VARIABLE")] = None
    """Name of an environment variable that holds a bearer token, which every request then has to show. It has to be
    set where the replicas run."""
    max_prompt_tokens: Annotated[int | None, _written("TOKENS")] = Field(None, ge=1)
    """Longest prompt (default: what the model's context leaves)."""
    max_tokens: int = Field(256, ge=1)
    """Longest output."""
    max_choices: int = Field(16, ge=1)
    """Outputs of one request: prompts times n."""
    max_body_bytes: int = Field(1 << 20, ge=1024)
    """Largest body of a request."""
    max_queued: int = Field(256, ge=1)
    """Outputs that wait in a replica; what comes beyond them is sent away with 429."""
    max_rows: int = Field(32, ge=1)
    """Outputs that are decoded side by side in one batch."""
    max_batch_tokens: int = Field(32_768, ge=1)
    """Tokens of all outputs of a batch with their prompts: what bounds the memory that long ones take."""
    max_batches: int = Field(4, ge=1)
    """Batches that a replica decodes in turns, token by token."""
    batch_wait_s: float = Field(0.002, ge=0, le=1)
    """How long an idle replica waits for company for the first request."""
    stale_s: float = Field(5.0, ge=0)
    """For how long the registry may be out of reach before requests are refused with 503."""
    lookup_s: float = Field(2.0, gt=0)
    """How long a request waits for the registry's answer before it takes the last one (see stale_s)."""
    load_wait_s: float = Field(60.0, gt=0)
    """How long a request waits for a version that is being loaded."""
    log: Annotated[str | None, _written("DIR")] = None
    """Directory for the comparison log, which jobs/watch.py reads. It will hold users' prompts."""
    log_share: float = Field(0.0, ge=0, le=1)
    """Share of the answers that are logged, by a hash of the request's id."""
    replicas: int = Field(1, ge=1)
    """Processes that answer."""
    cpus_per_replica: float = Field(1.0, gt=0)
    """CPUs, and threads, of one."""
    gpus_per_replica: float = Field(0.0, ge=0)
    """GPUs of one; with any it computes there."""

    @model_validator(mode="after")
    def _check(self) -> GuardOptions:
        if self.canary is not None:
            found = _CANARY.fullmatch(self.canary)
            if not found or not 0 < float(found[2]) <= 1:
                raise ValueError("canary: give ALIAS=SHARE with a share above 0 and up to 1, such as candidate=0.1")
            if found[1] in (self.alias, "reference"):
                raise ValueError(f"canary: {found[1]} is what answers anyway: name another alias")
            if self.max_loaded < 2:
                raise ValueError("max_loaded: a canary needs 2 at least, its own version and production's")
        if self.log_share > 0 and self.log is None:
            raise ValueError("log: name a directory for the comparison log, or leave log_share at 0")
        if self.log is not None and "://" in self.log:
            raise ValueError(f"log: {self.log} is a URL, but a log grows line by line: name a directory")
        if self.log is not None and self.log_share == 0:
            raise ValueError("log_share: set the share of answers that are logged, such as 0.1")
        return self

    @property
    def canary_alias(self) -> str | None:
        """The alias of the canary, if there is one."""
        return None if self.canary is None else self.canary.split("=")[0]

    @property
    def canary_share(self) -> float:
        """Its share of the requests."""
        return 0.0 if self.canary is None else float(self.canary.split("=")[1])
