"""Which registry a command means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from pipeline.release.line import Line
from pipeline.release.registry import Registry, open_registry, root_of
from pipeline.storage import open_storage


@dataclass(frozen=True)
class Where:
    """Which registry, and which line of it."""

    storage: Annotated[str | None, tyro.conf.arg(metavar="DIR|URL", help_behavior_hint="")] = None
    """Directory or URL of runs, whose registry is meant (default: ./runs)."""
    root: Annotated[str | None, tyro.conf.arg(name="registry.root", metavar="DIR|URL", help_behavior_hint="")] = None
    """The registry, where it is not below the storage."""
    line: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")] = None
    """A line of versions by its name or how that begins; needed only when there are several."""

    def registry(self) -> Registry:
        """The registry that is meant."""
        return open_registry(root_of(open_storage(self.storage), self.root))

    def open(self) -> Line:
        """The line that is meant."""
        return self.registry().line(self.line)
