from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from pipeline.memory import available_bytes

NO_LIMIT_V1 = 9223372036854771712
GIB = 2**30


def write(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


def v2(group: str, limit: object, used: int, cached: int = 0) -> dict[str, object]:
    at = f"sys/fs/cgroup{group}"
    statistics = f"anon {used - cached}\nactive_file {cached // 2}\ninactive_file {cached - cached // 2}\nsock 0"
    return {f"{at}/memory.max": limit, f"{at}/memory.current": used, f"{at}/memory.stat": statistics}


def v1(group: str, limit: int, used: int, cached: int = 0) -> dict[str, object]:
    at = f"sys/fs/cgroup/memory{group}"
    statistics = f"inactive_file 7\ntotal_active_file {cached}\ntotal_inactive_file 0"
    return {
        f"{at}/memory.limit_in_bytes": limit,
        f"{at}/memory.usage_in_bytes": used,
        f"{at}/memory.stat": statistics,
    }


def cgroup(*lines: str) -> dict[str, object]:
    return {"proc/self/cgroup": "\n".join(lines)}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8 * GIB),
        (cgroup("0::/"), 8 * GIB),
        (cgroup("0::/a/b") | v2("/a/b", "max", GIB), 8 * GIB),
        (cgroup("0::/a/b") | v2("/a/b", 2 * GIB, GIB), GIB),
        (cgroup("0::/a/b") | v2("/a/b", 2 * GIB, GIB, cached=GIB // 2), GIB + GIB // 2),
        # The tightest limit on the way up counts, and the machine's own memory.
        (cgroup("0::/a/b") | v2("/a/b", 4 * GIB, GIB) | v2("/a", 3 * GIB, 2 * GIB), GIB),
        (cgroup("0::/a/b") | v2("/a/b", 64 * GIB, GIB), 8 * GIB),
        (cgroup("0::/a") | v2("/a", GIB, GIB + 4096), 0),
        # Inside a container only its own mount is seen, whatever the path says.
        (cgroup("0::/../../kubepods/pod1") | v2("", 3 * GIB, GIB), 2 * GIB),
        (cgroup("0::/docker/12ab") | v2("", 3 * GIB, GIB), 2 * GIB),
        (cgroup("4:memory:/docker/12ab", "0::/") | v1("", 3 * GIB, GIB), 2 * GIB),
        (cgroup("4:memory:/a", "1:name=systemd:/x") | v1("/a", 3 * GIB, GIB, cached=GIB), 3 * GIB),
        (cgroup("4:cpu,memory:/a") | v1("/a", 2 * GIB, GIB) | v1("", NO_LIMIT_V1, 5 * GIB), GIB),
        (cgroup("4:cpu:/a") | v1("/a", 2 * GIB, GIB), 8 * GIB),
        # Both versions: the second is mounted beside the controllers of the first.
        (
            cgroup("4:cpu:/", "0::/a")
            | {"sys/fs/cgroup/unified/a/memory.max": GIB, "sys/fs/cgroup/unified/a/memory.current": 0},
            GIB,
        ),
        (cgroup("", "nonsense", "0::/a") | {"sys/fs/cgroup/a/memory.max": "?"}, 8 * GIB),
    ],
)
def test_the_tightest_limit_counts(tmp_path: Path, files: dict[str, object], expected: int) -> None:
    assert available_bytes(write(tmp_path, files), machine_bytes=8 * GIB) == expected


def test_of_this_machine() -> None:
    assert 0 < available_bytes() <= psutil.virtual_memory().total
