"""The guard as an application of Ray Serve: ``import_path: pipeline.serving.app:build``, its options as ``args``."""

# No postponed annotations here: Serve looks at the type of build's argument to validate what a configuration gives.

from ray import serve
from ray.serve.config import BackpressureConfig
from starlette.applications import Starlette

from pipeline.serving.guard import Guard
from pipeline.serving.options import GuardOptions

NAME = "guard"
_DRAINED_S = 60.0
"""How long a replica that is taken away may take to finish its answers."""
_SPARE = 64
"""Requests that a replica holds beside those whose outputs wait or are decoded: so many wait for a version."""


@serve.ingress()
class Replica:
    """One process that answers."""

    async def __init__(self, options: GuardOptions) -> None:  # type: ignore[misc]  # Serve awaits it
        self._guard = await Guard.open(options)

    def __serve_build_asgi_app__(self) -> Starlette:
        return self._guard.app()

    async def __del__(self) -> None:
        """Called by Serve when the last answer is given."""
        if hasattr(self, "_guard"):
            await self._guard.close()


def build(args: GuardOptions) -> serve.Application:
    """The application with these options."""
    deployment = serve.deployment(
        name=NAME,
        num_replicas=args.replicas,
        ray_actor_options={"num_cpus": args.cpus_per_replica, "num_gpus": args.gpus_per_replica},
        graceful_shutdown_timeout_s=_DRAINED_S,
        graceful_shutdown_wait_loop_s=0.2,
        # The guard refuses what is too much itself, in OpenAI's words; Serve's own limits lie behind that.
        max_ongoing_requests=args.max_queued + args.max_rows * args.max_batches + _SPARE,
        max_queued_requests=_SPARE,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1.0),
    )
    return deployment(Replica).bind(args)
