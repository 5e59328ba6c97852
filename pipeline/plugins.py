"""Functions of the user's own, named ``module:function`` in a run's options."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pipeline.digests import digest_file
from pipeline.errors import PipelineError


def load_function(what: str, name: str, error_type: type[PipelineError]) -> Callable[..., Any]:
    """The function ``module:function``; the working directory is importable.

    Args:
        what: what it is to the user ("scorer"), for messages.
        name: ``module:function``.
        error_type: of what is raised when the module cannot be imported or has no such function.
    """
    module_name, _, function_name = name.partition(":")
    # A job's entry script has its own folder on the path, not the directory the user stands in.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise error_type(
            f"{what} {name!r}: module {module_name!r} cannot be imported ({type(error).__name__}: {error}). "
            "It must lie in the working directory or be installed wherever the job runs"
        ) from error
    function: Callable[..., Any] | None = getattr(module, function_name, None)
    if not callable(function):
        found = sorted(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        near = difflib.get_close_matches(function_name, found, n=1)
        raise error_type(
            f"{what} {name!r}: module {module_name!r} has no function {function_name!r}"
            + (f"; did you mean '{module_name}:{near[0]}'?" if near else f" (it has: {', '.join(found) or 'none'})")
        )
    return function


def function_digests(what: str, names: Iterable[str]) -> dict[str, str]:
    """Digest of the file behind every function of the user's own: editing it gives other results."""
    digests = {}
    for name in names:
        spec = importlib.util.find_spec(name.partition(":")[0]) if ":" in name else None
        if spec is not None and spec.origin:
            digests[f"{what} {name}"] = digest_file(Path(spec.origin))
    return digests
