"""What the guard tells Prometheus. Ray gathers it from all replicas of a node, with ``ray_`` before every name."""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge, Histogram

_SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]


class Meters:
    """The metrics of one replica."""

    def __init__(self) -> None:
        self.requests = Counter(
            "ra_dpo_serving_requests_total",
            "Requests by the version that answered (none when none did) and the HTTP status.",
            ("version", "status"),
        )
        self.seconds = Histogram(
            "ra_dpo_serving_request_seconds", "From a request's arrival to the end of its answer.", _SECONDS
        )
        self.lookup = Histogram(
            "ra_dpo_serving_lookup_seconds", "What a request waits for the registry's answer.", _SECONDS
        )
        self.tokens = Counter("ra_dpo_serving_tokens_total", "Tokens sampled.", ("version",))
        self.waiting = Gauge("ra_dpo_serving_rows_waiting", "Outputs that wait.")
        self.running = Gauge("ra_dpo_serving_rows_running", "Outputs that are being decoded.")
        self.loaded = Gauge("ra_dpo_serving_versions_loaded", "Versions in memory.")
        self.version = Gauge("ra_dpo_serving_version", "The version that the served alias points to.")
        self.age = Gauge("ra_dpo_serving_registry_age_seconds", "Since the last successful look-up in the registry.")
        self.lookup_failures = Counter("ra_dpo_serving_lookup_failures_total", "Look-ups that failed or hung.")
        self.load_failures = Counter(
            "ra_dpo_serving_load_failures_total", "Versions that could not be loaded.", ("version",)
        )
        self.fallbacks = Counter(
            "ra_dpo_serving_fallbacks_total", "Requests that the reference answered for another version."
        )
        self.logged = Counter("ra_dpo_serving_log_rows_total", "Answers given to the comparison log.")
        self.log_dropped = Counter("ra_dpo_serving_log_dropped_total", "Answers that the log has lost.")
