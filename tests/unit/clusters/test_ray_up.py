"""Ray's own checker on the files for `ray up`, in a process that decides Ray's token mode before it imports it."""

from __future__ import annotations

import copy
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from manifests import CLUSTERS, EXAMPLES, FILL

CHECKER = """
import json, sys
from ray.autoscaler._private.util import prepare_config, validate_config
answers = []
for config in json.load(sys.stdin):
    try:
        config = prepare_config(config)
        validate_config(config)
    except Exception as error:
        answers.append(str(error).strip().splitlines()[0])
    else:
        answers.append(config)
print(json.dumps(answers))
"""
FILES = ("aws", "gcp", "on-premises")
TYPOS = {
    "aws": ("idle_timeout_minuts", 10),
    "gcp": ("head_start_ray_comands", ["ray start"]),
    "on-premises": ("rsync_filters", [".gitignore"]),
}


def config(name: str) -> dict[str, Any]:
    text = (CLUSTERS / "ray-up" / f"{name}.yaml").read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.safe_load(FILL.fill(text, EXAMPLES))
    return found


@functools.cache
def checked() -> tuple[list[Any], list[Any], list[Any]]:
    """Ray's answers on the files, on the files with a misspelt field, and with one in a node type."""
    right = [config(name) for name in FILES]
    wrong = [config(name) | dict([TYPOS[name]]) for name in FILES]
    deep = [copy.deepcopy(config("aws")) for _ in range(2)]
    deep[0]["available_node_types"]["cpu"]["min_worker"] = 1
    deep[1]["available_node_types"]["gpu"]["resources"] = {"GPU": "one"}
    done = subprocess.run(
        [sys.executable, "-c", CHECKER],
        input=json.dumps([*right, *wrong, *deep]),
        env=os.environ | {"RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    return answers[:3], answers[3:6], answers[6:]


@pytest.mark.parametrize("position", range(3), ids=FILES)
def test_ray_takes_the_file(position: int) -> None:
    assert isinstance(checked()[0][position], dict), checked()[0][position]


@pytest.mark.parametrize("position", range(3), ids=FILES)
def test_ray_refuses_a_field_with_a_typo(position: int) -> None:
    assert TYPOS[FILES[position]][0] in checked()[1][position]


def test_ray_refuses_typos_in_node_types() -> None:
    assert all(isinstance(answer, str) for answer in checked()[2])


def test_every_machine_that_is_named_joins() -> None:
    prepared = checked()[0][FILES.index("on-premises")]
    assert prepared["provider"]["worker_ips"] == ["192.0.2.2", "192.0.2.3"]
    assert prepared["max_workers"] == 2


@pytest.mark.parametrize("name", FILES)
def test_a_token_is_needed_and_the_dashboard_is_not_public(name: str) -> None:
    found = config(name)
    head, worker = found["head_start_ray_commands"][-1], found["worker_start_ray_commands"][-1]
    for command in (head, worker):
        assert "RAY_AUTH_MODE=token" in command
        assert command.index("RAY_AUTH_MODE=token") < command.index("ray start")
    assert "--dashboard-host=127.0.0.1" in head
    assert found["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert any(command.startswith("chmod 600 ~/.ray/auth_token") for command in found["setup_commands"])


@pytest.mark.parametrize("name", FILES)
def test_the_commands_are_shell_and_install_this_project(name: str) -> None:
    found = config(name)
    lists = [f"{who}start_ray_commands" for who in ("head_", "worker_")] + ["setup_commands", "head_setup_commands"]
    for command in [command for which in lists for command in found.get(which, [])]:
        done = subprocess.run(["bash", "-n"], input=command, capture_output=True, text=True, check=False, timeout=30)
        assert (done.returncode, done.stderr) == (0, ""), command
    assert found["file_mounts"]["~/ra-dpo"] == "."
    assert "make -C ~/ra-dpo setup" in found["setup_commands"]
    assert found["rsync_filter"] == [".gitignore"]


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_clouds_have_nodes_with_and_without_gpus_and_none_when_nothing_runs(name: str) -> None:
    types = config(name)["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    assert types["cpu"]["resources"] == {"CPU": 8}
    assert types["gpu"]["resources"] == {"CPU": 8, "GPU": 1}
    assert types["cpu"]["min_workers"] == types["gpu"]["min_workers"] == 0


def test_aws_lets_in_ssh_alone_and_gives_workers_less_than_the_head() -> None:
    found = config("aws")
    (rule,) = found["provider"]["security_group"]["IpPermissions"]
    assert (rule["FromPort"], rule["ToPort"], rule["IpRanges"]) == (22, 22, [{"CidrIp": EXAMPLES["SSH_CIDR"]}])
    nodes = {name: kind["node_config"] for name, kind in found["available_node_types"].items()}
    profiles = {name: node["IamInstanceProfile"]["Arn"] for name, node in nodes.items()}
    assert profiles["cpu"] == profiles["gpu"] == EXAMPLES["WORKER_PROFILE_ARN"]
    assert profiles["head"] == EXAMPLES["HEAD_PROFILE_ARN"]
    assert "InstanceMarketOptions" not in nodes["head"]
    for node in nodes.values():
        assert node["MetadataOptions"]["HttpTokens"] == "required"
