"""Versions as artefacts of Weights & Biases, where that is on: the same files under the same number and aliases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config import WandbConfig
from pipeline.release.line import Line
from pipeline.release.manifest import Manifest
from pipeline.release.state import CANDIDATE
from pipeline.tracking import start_run, wandb_mode


def mirror(
    config: WandbConfig, directory: Path, line: Line, manifest: Manifest, result: Mapping[str, Any], copies: Path
) -> str | None:
    """Log a version, and what became of it, as an artefact; a tracker that fails ends no release.

    Args:
        directory: of W&B's files.
        result: of the release (``release.json``).
        copies: where the version's files go when the registry is on an object store; an offline run reads them when it
            is synchronised.

    Returns:
        What went wrong, in a line, or None.
    """
    mode = wandb_mode(config)
    if mode == "disabled":
        return None
    import wandb

    aliases = [f"version-{manifest.version}", *([CANDIDATE] if manifest.version == result["version"] else [])]
    if result["after"] == manifest.version:
        aliases.append(str(result["alias"]))
    kept = {name: result[name] for name in ("version", "outcome", "before", "after", "record", "digest")}
    try:
        path = line.versions.fetch(manifest, copies)
        run = start_run(config, mode, directory, f"{line.name}-version-{manifest.version}", kept, job_type="release")
        artifact = wandb.Artifact(
            f"policy-{line.name}", type="model", metadata={**manifest.provenance, "release": kept}
        )
        # The registry's files never change, so that no copy of them is made first.
        artifact.add_dir(str(path), policy="immutable", skip_cache=True)
        run.log_artifact(artifact, aliases=aliases)
        run.finish(exit_code=0)
    except Exception as error:  # whatever a tracker or its network can do
        return f"W&B has no copy of version {manifest.version}: {type(error).__name__}: {error}"
    return None
