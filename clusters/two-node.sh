#!/usr/bin/env bash
# A Ray cluster of two (or more) machines without Kubernetes. Run it in a working copy where `make setup` is
# done, the same on every machine; see clusters/README.md.
set -euo pipefail
cd "$(dirname "$0")/.."

PORT="${PORT:-6379}"                      # of the head node
DASHBOARD_PORT="${DASHBOARD_PORT:-8265}"  # jobs are submitted to it
export RAY_AUTH_MODE=token                # only holders of the token may join or submit
export PATH="$PWD/.venv/bin:$PATH"        # so that the cluster's `python` is this environment's

usage() {
    cat >&2 <<'TEXT'
usage: clusters/two-node.sh head [options of ray start]               on the first machine
       clusters/two-node.sh worker HEAD_HOST [options of ray start]   on every other machine
       clusters/two-node.sh submit [jobs/NAME.py] --storage DIR|URL [options of the job, jobs/align.py if none is named]
                                                                      on the first machine
       clusters/two-node.sh stop                                      on every machine
TEXT
    exit 2
}

command -v ray >/dev/null || { echo "error: .venv has no ray: run make setup first" >&2; exit 1; }
command="${1:-}"
shift || usage

case "$command" in
head)
    # Made once and kept; the other machines need the same file (see the README).
    ray get-auth-token --generate >/dev/null
    exec ray start --head --port "$PORT" --dashboard-port "$DASHBOARD_PORT" "$@"
    ;;
worker)
    host="${1:-}"
    [ -n "$host" ] || usage
    shift
    ray get-auth-token >/dev/null 2>&1 || {
        echo "error: no token on this machine: copy ~/.ray/auth_token from the head node" >&2
        exit 1
    }
    exec ray start --address "$host:$PORT" "$@"
    ;;
submit)
    job=jobs/align.py
    case "${1:-}" in jobs/*.py) job="$1"; shift ;; esac
    exec ray job submit --address "http://127.0.0.1:$DASHBOARD_PORT" --working-dir . -- python "$job" "$@"
    ;;
stop)
    # Ray's own command: it ends every Ray process of this user on this machine.
    ray stop
    ;;
*)
    usage
    ;;
esac
