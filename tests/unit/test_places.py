"""The same contract on a local disk, in memory and on an object store that really listens."""

from __future__ import annotations

import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import objects
from pipeline.errors import ArtifactError
from pipeline.places import Place

REPOSITORY = Path(__file__).parents[2]
KINDS = ["local", "memory", "s3"]
STEPS = ["write", "create", "publish", "remove"]


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "local":
        yield Place(str(tmp_path / "not yet" / "there [1] *"))
    elif request.param == "memory":
        yield Place(f"memory://{tmp_path.name}/cache")
        fsspec.filesystem("memory").store.clear()
    else:
        yield Place(f"{request.getfixturevalue('s3_url')}/cache")


def publish(place: Place, data: bytes, name: str) -> None:
    with place.scratch() as scratch:
        (scratch / "made").write_bytes(data)
        place.publish(scratch / "made", name)
        assert not (scratch / "made").exists()


class TestFiles:
    def test_nothing_is_there_and_looking_makes_nothing(self, place: Place, tmp_path: Path) -> None:
        assert place.names() == []
        assert place.size("a") is None
        with pytest.raises(FileNotFoundError):
            place.read("a")
        with pytest.raises(FileNotFoundError):
            list(place.chunks("a"))
        place.remove("a")
        assert list(tmp_path.iterdir()) == []

    def test_a_published_file(self, place: Place) -> None:
        data = os.urandom(3_000_001)
        publish(place, data, "a.bin")
        assert place.names() == ["a.bin"]
        assert place.size("a.bin") == len(data)
        assert place.read("a.bin") == data
        assert place.read("a.bin", 1_000_000, 1_000_010) == data[1_000_000:1_000_010]
        assert place.read("a.bin", 2_999_999) == data[2_999_999:]

    @pytest.mark.parametrize("size", [1 << 20, 1000, 10**7])
    def test_chunks(self, place: Place, size: int) -> None:
        data = os.urandom(2_500_000)
        publish(place, data, "a")
        chunks = list(place.chunks("a", size))
        assert b"".join(chunks) == data
        assert {len(chunk) for chunk in chunks[:-1]} <= {size}
        assert place.read("a") == data

    def test_an_empty_file(self, place: Place) -> None:
        publish(place, b"", "none")
        assert (place.size("none"), place.read("none"), place.read("none", 0, 4)) == (0, b"", b"")
        assert list(place.chunks("none")) == []
        assert place.map("none") is None

    def test_documents(self, place: Place) -> None:
        place.write("b.json", b"first")
        place.write("b.json", b"second, longer")
        publish(place, b"third", "b.json")
        assert place.read("b.json") == b"third"
        place.write("a.json", b"")
        assert place.names() == ["a.json", "b.json"]
        place.remove("a.json")
        assert place.names() == ["b.json"]
        assert place.size("a.json") is None

    def test_create_wins_once(self, place: Place) -> None:
        assert place.create("once", b"first")
        assert not place.create("once", b"second")
        assert place.read("once") == b"first"

    def test_names_are_sorted_and_of_files_only(self, place: Place) -> None:
        for name in ("b", "a", "ä", "B", "a-2"):
            place.write(name, b"1")
        place.below("deeper").write("c", b"1")
        with place.scratch() as scratch:
            (scratch / "half").write_bytes(b"1")
            assert place.names() == sorted(["b", "a", "ä", "B", "a-2"])
        assert place.below("deeper").names() == ["c"]

    def test_places_are_below_places(self, place: Place) -> None:
        place.below("x", "y").write("a", b"deep")
        assert place.below("x").below("y").read("a") == b"deep"
        assert Place(place.below("x", "y").root).read("a") == b"deep"
        assert place.names() == []
        assert place.below("x").names() == []

    def test_folders_and_times(self, place: Place) -> None:
        assert place.folders() == []
        began = time.time()
        for name in ("y", "x"):
            place.below(name).write("a", b"1")
        place.write("b", b"1")
        assert place.folders() == ["x", "y"]
        assert abs(place.below("x").modified("a") - began) < 60
        with pytest.raises(FileNotFoundError):
            place.modified("none")

    def test_a_file_of_another_place_is_adopted(self, place: Place) -> None:
        source, data = place.below("source"), os.urandom(2_000_000)
        publish(source, data, "a")
        place.below("made").adopt(source, "a", "b")
        place.below("made").adopt(source, "a", "b")
        assert (place.below("made").names(), place.below("made").read("b")) == (["b"], data)
        source.write("a", b"other")
        source.remove("a")
        assert place.below("made").read("b") == data
        with pytest.raises(FileNotFoundError):
            place.below("made").adopt(source, "a", "c")
        assert place.below("made").names() == ["b"]

    def test_many_names(self, place: Place) -> None:
        names = [f"{number:04d}" for number in range(40)]
        for name in reversed(names):
            place.write(name, name.encode())
        assert place.names() == names


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    data=st.binary(max_size=40),
    ranges=st.lists(st.tuples(st.integers(0, 50), st.none() | st.integers(0, 50)), max_size=6),
)
def test_ranges_are_slices(place: Place, data: bytes, ranges: list[tuple[int, int | None]]) -> None:
    place.write("a", data)
    for start, stop in ranges:
        assert place.read("a", start, stop) == data[start:stop]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["write", "create", "publish", "remove"]), st.sampled_from("abc"), st.binary(max_size=5)
        )
    )
)
def test_a_place_is_a_dictionary(place: Place, steps: list[tuple[str, str, bytes]]) -> None:
    for name in place.names():
        place.remove(name)
    expected: dict[str, bytes] = {}
    for what, name, data in steps:
        if what == "write":
            place.write(name, data)
        elif what == "publish":
            publish(place, data, name)
        elif what == "remove":
            place.remove(name)
        else:
            assert place.create(name, data) == (name not in expected)
        if what == "remove":
            expected.pop(name, None)
        elif what != "create" or name not in expected:
            expected[name] = data
        assert place.names() == sorted(expected)
    assert {name: place.read(name) for name in place.names()} == expected


class TestLocal:
    def test_a_map(self, tmp_path: Path) -> None:
        place = Place(str(tmp_path))
        place.write("a", b"0123456789")
        mapped = place.map("a")
        assert isinstance(mapped, mmap.mmap)
        place.write("a", b"other")  # a new file: who has the old one mapped keeps it
        assert mapped[2:5] == b"234"
        with pytest.raises(TypeError):
            mapped[0] = 1
        with pytest.raises(FileNotFoundError):
            place.map("none")

    def test_a_relative_root_and_a_file_url(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        place = Place("here")
        monkeypatch.chdir("/")
        place.write("a", b"1")
        assert place.is_local
        assert place.root == str(tmp_path / "here")
        assert Place(f"file://{tmp_path}/here").read("a") == b"1"

    def test_a_file_from_another_disk_is_copied(self, tmp_path: Path, small_disk: Callable[[str], Path]) -> None:
        elsewhere = small_disk("size=128k") / "a"
        elsewhere.write_bytes(b"from afar")
        place = Place(str(tmp_path / "place"))
        place.publish(elsewhere, "a")
        assert place.read("a") == b"from afar"
        assert not elsewhere.exists()
        assert list((tmp_path / "place" / ".scratch").iterdir()) == []

    def test_an_adopted_file_takes_no_room_on_its_own_disk(
        self, tmp_path: Path, small_disk: Callable[[str], Path]
    ) -> None:
        here = Place(str(tmp_path / "here"))
        here.write("a", b"1")
        here.below("again").adopt(here, "a", "b")
        assert (tmp_path / "here" / "a").samefile(tmp_path / "here" / "again" / "b")
        there = Place(str(small_disk("size=1m") / "there"))
        there.adopt(here, "a", "b")
        assert there.read("b") == b"1"

    def test_free_bytes(self, tmp_path: Path) -> None:
        assert (Place(str(tmp_path / "not" / "there")).free_bytes() or 0) > 0
        assert Place("memory://x").free_bytes() is None

    def test_readers_never_see_half_a_document(self, tmp_path: Path) -> None:
        place, over = Place(str(tmp_path)), threading.Event()
        place.write("a", b"0" * 100_000)
        seen: set[bytes] = set()

        def look() -> None:
            while not over.is_set():
                data = place.read("a")
                seen.add(data[:1] if data == data[:1] * 100_000 else b"torn")

        thread = threading.Thread(target=look)
        thread.start()
        for number in range(50):
            place.write("a", str(number % 10).encode() * 100_000)
        over.set()
        thread.join()
        assert b"torn" not in seen


class TestRemote:
    def test_a_file_system_that_wants_directories(self, tmp_path: Path) -> None:
        files = objects.ObjectFiles("memory://x")
        files._fs, files._base = LocalFileSystem(auto_mkdir=False), str(tmp_path / "deep" / "er")
        files.write("a", b"1")
        assert (tmp_path / "deep" / "er" / "a").read_bytes() == b"1"

    def test_own_settings_of_fsspec_come_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"read_timeout": 99}})
        assert objects._s3_options()["config_kwargs"] == {**objects.S3_CLIENT, "read_timeout": 99}

    def test_somebody_elses_directory_for_temporary_files(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        (tmp_path / "theirs").mkdir()
        (tmp_path / f"ra-dpo-{os.getuid()}").symlink_to(tmp_path / "theirs")
        with pytest.raises(ArtifactError, match="memory://x cannot be written: it belongs to another user; set TMPDIR"):  # noqa: SIM117
            with Place("memory://x").scratch():
                pass
        assert list((tmp_path / "theirs").iterdir()) == []


def run(code: str, root: str) -> subprocess.Popen[str]:
    """A process of its own that says 'ready' when it has come to its point."""
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(
        [sys.executable, "-c", code, root],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


LOCKS_AND_WAITS = """
import sys, time
from pipeline.places import Place
place = Place(sys.argv[1])
place.stale_s = 3
with place.lock(lambda: None):
    print("ready", flush=True)
    time.sleep(60)
"""

FILLS_AND_WAITS = """
import sys, time
from pipeline.places import Place
with Place(sys.argv[1]).scratch() as scratch:
    (scratch / "half").write_bytes(bytes(1000))
    print("ready", flush=True)
    time.sleep(60)
"""


class TestLock:
    def test_it_is_taken_again_and_again(self, place: Place) -> None:
        for _ in range(3):
            with place.lock(pytest.fail):
                pass
        assert place.names() == []

    def test_an_exception_releases_it(self, place: Place) -> None:
        with pytest.raises(RuntimeError, match="stop"), place.lock(pytest.fail):
            raise RuntimeError("stop")
        with place.lock(pytest.fail):
            pass

    def test_threads(self, place: Place) -> None:
        place.stale_s = 3
        order, holding, waits = [], threading.Event(), threading.Event()

        def second() -> None:
            holding.wait(20)
            with place.lock(waits.set):
                order.append("second")

        thread = threading.Thread(target=second)
        thread.start()
        with place.lock(pytest.fail):
            holding.set()
            assert waits.wait(20)
            time.sleep(0.3)
            order.append("first")
        thread.join(20)
        assert order == ["first", "second"]

    @pytest.mark.parametrize("place", ["local", "s3"], indirect=True)
    def test_a_process_that_lives_is_waited_for_and_one_that_is_killed_is_not(self, place: Place) -> None:
        place.stale_s = 3
        process, waits = run(LOCKS_AND_WAITS, place.root), []
        killed_at: list[float] = []
        killer = threading.Timer(
            1 if place.is_local else 4,
            lambda: (killed_at.append(time.monotonic()), process.send_signal(signal.SIGKILL)),
        )
        try:
            killer.start()
            with place.lock(lambda: waits.append(1)):
                taken_at = time.monotonic()
        finally:
            killer.cancel()
            process.kill()
            process.wait()
        assert waits == [1]
        assert killed_at, "the lock was taken from a process that lived"
        assert taken_at - killed_at[0] < (5 if place.is_local else 15)


class TestScratch:
    def test_it_goes_with_its_block(self, place: Place) -> None:
        with place.scratch() as scratch, place.scratch() as other:
            assert scratch != other
            (scratch / "deep").mkdir()
            (scratch / "deep" / "file").write_bytes(b"1")
        assert not scratch.exists()
        assert not other.exists()
        with pytest.raises(RuntimeError, match="stop"), place.scratch() as scratch:
            raise RuntimeError("stop")
        assert not scratch.exists()

    @pytest.mark.parametrize("place", ["local", "memory"], indirect=True)
    def test_what_a_killed_process_left_is_swept(
        self, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        monkeypatch.setattr(tempfile, "tempdir", None)
        parent = Path(place.root) / ".scratch" if place.is_local else tmp_path / f"ra-dpo-{os.getuid()}"
        process = run(FILLS_AND_WAITS, place.root)
        try:
            with place.scratch():
                assert len(list(parent.glob("*/half"))) == 1  # of one that lives
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert len(list(parent.glob("*/half"))) == 1
        with place.scratch() as scratch:
            assert [path for path in parent.iterdir() if path.is_dir()] == [scratch]
        assert list(parent.iterdir()) == []


class TestLocalRefusals:
    def test_a_full_disk(self, small_disk: Callable[[str], Path]) -> None:
        root = small_disk("size=128k")
        place = Place(str(root))
        place.write("old", b"kept")
        match = rf"{root} cannot be written: the disk is full; free some space or set --reference\.root"
        with pytest.raises(ArtifactError, match=match):
            place.write("new", bytes(2**20))
        with pytest.raises(ArtifactError, match=match), place.scratch() as scratch:
            (scratch / "big").write_bytes(bytes(2**20))
        assert place.names() == ["old"]
        assert list((root / ".scratch").iterdir()) == []
        assert place.read("old") == b"kept"

    def test_a_full_disk_for_temporary_files(
        self, small_disk: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(small_disk("size=128k")))
        with pytest.raises(ArtifactError, match=r"memory://x cannot be written: the disk is full.*set TMPDIR"):  # noqa: SIM117
            with Place("memory://x").scratch() as scratch:
                (scratch / "big").write_bytes(bytes(2**20))

    def test_a_read_only_disk(self, small_disk: Callable[[str], Path]) -> None:
        root = small_disk("ro")
        place = Place(str(root / "deep" / "er"))
        assert place.names() == []
        for act in (
            lambda: place.write("a", b"1"),
            lambda: place.create("a", b"1"),
            lambda: place.lock(pytest.fail).__enter__(),
            lambda: place.scratch().__enter__(),
        ):
            with pytest.raises(ArtifactError, match=rf"{root}.*Read-only file system; set --reference\.root"):
                act()

    def test_a_file_in_place_of_the_root(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        place = Place(str(tmp_path / "file"))
        for act in (place.names, lambda: place.read("a"), lambda: place.write("a", b"")):
            with pytest.raises(ArtifactError, match=r"file cannot be \w+: Not a directory; set --reference\.root"):
                act()

    def test_errors_of_the_callers_block_pass_through(self, place: Place) -> None:
        denied = PermissionError(13, "Permission denied", "/data/rows.jsonl")
        with pytest.raises(PermissionError, match=r"rows\.jsonl"), place.scratch():
            raise denied
        with pytest.raises(PermissionError, match=r"rows\.jsonl"), place.lock(pytest.fail):
            raise denied

    @pytest.mark.parametrize("root", ["nosuch://bucket/x", "memory://", "memory:///"])
    def test_roots_that_name_nothing(self, root: str) -> None:
        with pytest.raises(ArtifactError, match=rf"{root}.*set --reference\.root"):
            Place(root)

    def test_a_package_that_is_missing(self) -> None:
        """The import is refused in a process of its own, as it is where the package is not installed."""
        code = "import sys; sys.modules['s3fs'] = None\nfrom pipeline.places import Place\nPlace('s3://bucket/x')"
        done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
        assert "ArtifactError: 's3://bucket/x' cannot be used: Install s3fs" in done.stderr


@contextmanager
def listener() -> Iterator[int]:
    """A port that takes connections and never says anything."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(16)
        yield sock.getsockname()[1]


class TestS3Refusals:
    def attempts(self, place: Place) -> list[Callable[[], object]]:
        return [
            place.names,
            lambda: place.size("a"),
            lambda: place.read("a"),
            lambda: place.read("a", 1, 2),
            lambda: list(place.chunks("a")),
            lambda: place.write("a", b"1"),
            lambda: place.create("a", b"1"),
            lambda: publish(place, b"1", "a"),
            lambda: place.lock(pytest.fail).__enter__(),
        ]

    def refuse(self, place: Place, message: str, step: int = 1) -> None:
        for number, attempt in enumerate(self.attempts(place)[::step]):
            began = time.monotonic()
            with pytest.raises(ArtifactError, match=message) as caught:
                attempt()
            assert place.root in str(caught.value), number
            assert "set --reference.root" in str(caught.value)
            assert "\n" not in str(caught.value)
            assert time.monotonic() - began < 30

    def test_nobody_listens(self, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{sock.getsockname()[1]}")
            self.refuse(Place(s3_url), "the endpoint cannot be reached.*check the network and the address", step=3)

    def test_somebody_listens_and_says_nothing(self, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(objects, "S3_CLIENT", {**objects.S3_CLIENT, "read_timeout": 0.3})
        with listener() as port:
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
            with pytest.raises(ArtifactError, match="the endpoint cannot be reached"):
                Place(s3_url).names()

    def test_a_key_nobody_knows(self, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        self.refuse(Place(s3_url), "the credentials are refused|access is denied")

    def test_a_wrong_secret(self, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        self.refuse(Place(s3_url), "the credentials are refused|access is denied")

    def test_no_credentials_at_all(self, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        self.refuse(Place(s3_url), "the credentials are refused|access is denied")

    def test_no_such_bucket(self, s3_url: str) -> None:
        self.refuse(Place("s3://nowhere/cache"), "there is no such bucket; make the bucket or correct its name")

    def test_a_url_without_a_bucket(self, s3_url: str) -> None:
        with pytest.raises(ArtifactError, match="s3:// names no bucket"):
            Place("s3://")


class TestS3:
    def test_many_create_one_name(self, s3_url: str) -> None:
        place, won = Place(s3_url), []
        start = threading.Barrier(6)

        def work(number: int) -> None:
            for round_ in range(3):
                start.wait(30)
                if place.create(f"once-{round_}", str(number).encode()):
                    won.append((round_, number))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sorted(round_ for round_, _ in won) == list(range(3))
        for round_, number in won:
            assert place.read(f"once-{round_}") == str(number).encode()

    def test_a_file_in_many_parts_streams(self, s3_url: str) -> None:
        """Larger than one part of an upload and than one block of a stream."""
        place, block = Place(s3_url), os.urandom(1 << 20)
        publish(place, block * 101, "big")
        assert place.size("big") == 101 << 20
        tracemalloc.start()
        try:
            assert [chunk == block for chunk in place.chunks("big")] == [True] * 101
            assert tracemalloc.get_traced_memory()[1] < 40 << 20
        finally:
            tracemalloc.stop()
        assert place.read("big", (100 << 20) - 3, (100 << 20) + 3) == block[-3:] + block[:3]
