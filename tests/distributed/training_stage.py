"""One driver of a training stage, started by `stages`: the argument is a JSON file with its options."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from pipeline.cluster import connected
from pipeline.config import ClusterConfig
from pipeline.errors import PipelineError
from pipeline.storage import open_storage
from pipeline.training.spec import TrainSpec


def main() -> int:
    options = json.loads(Path(sys.argv[1]).read_text())
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:.1f} {text}", flush=True)

    spec = TrainSpec(**options["spec"])
    cluster = ClusterConfig(**spec.run["cluster"], address=options["address"])
    try:
        with connected(cluster, open_storage(options["storage"])) as described:
            say(described)
            from pipeline.training.stage import run_training

            result = run_training(spec, Path(options["storage"]) / "ray_train", lambda *progress: None, say)
    except PipelineError as error:
        say(f"error: {error}")
        return 1
    say(f"done {json.dumps(result.__dict__)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
