"""A Ray cluster of two nodes on this machine, each with a working directory of its own, commanded over standard input:
``kill`` (the second node's raylet, with SIGKILL), ``add`` (another second node), ``stop``."""

from __future__ import annotations

import os
import sys
import tempfile
from typing import Any

from ray.cluster_utils import Cluster

# Ray takes up to half a minute to notice a dead node; the time is its own, so the tests shorten it.
HEALTH = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 3,
}


def main() -> None:
    cpus = int(sys.argv[1])
    os.chdir(tempfile.mkdtemp(prefix="node"))
    cluster = Cluster()
    quiet: dict[str, Any] = {"num_cpus": cpus, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    cluster.add_node(**quiet, _system_config=HEALTH)

    def add() -> Any:
        os.chdir(tempfile.mkdtemp(prefix="node"))  # raylets, and what they start, run where they were started
        return cluster.add_node(**quiet, object_spilling_directory=tempfile.mkdtemp(prefix="spill"))

    second = add()
    print(f"address {cluster.address}", flush=True)
    for line in sys.stdin:
        command = line.strip()
        if command == "kill":
            second.kill_raylet(check_alive=False)
            cluster.remove_node(second, allow_graceful=False)
        elif command == "add":
            second = add()
        elif command == "stop":
            break
        print(command, flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
