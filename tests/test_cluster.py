"""Builds on a Ray cluster of two nodes, each with one core, of which one is killed."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from retrieval_spec.build import build_datastore
from retrieval_spec.datastore.corpus import Corpus
from retrieval_spec.datastore.segments import open_segments, verify_segments
from retrieval_spec.demo_model import demo_model_dir
from tests.ray_nodes import ENVIRONMENT, Cluster
from tests.test_segments import inodes
from tests.test_spread import bytes_of

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed"),
]
FOLDERS = [
    "asyncio",
    "email",
    "encodings",
    "idlelib",
    "json",
    "lib2to3",
    "multiprocessing",
    "test",
    "unittest",
]
LIMIT_BYTES = 503_000_000
"""Segments of 250,000 tokens."""
_DRIVER = """
import sys
from retrieval_spec import spread
from retrieval_spec.cli import main
spread.PIECE_BYTES = 1 << 18
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """Some 6 MB of the interpreter's own sources."""
    folder, library, size = tmp_path_factory.mktemp("text"), Path(sysconfig.get_path("stdlib")), 0
    for path in sorted(library.glob("*.py")) + sorted(p for f in FOLDERS for p in library.glob(f"{f}/*.py")):
        if size < 6_000_000:
            shutil.copy2(path, folder / f"{path.parent.name}-{path.name}.py")
            size += path.stat().st_size
    return folder


@pytest.fixture(scope="module")
def expected(inputs, tmp_path_factory) -> dict[str, bytes]:
    """The bytes of a local build."""
    place = tmp_path_factory.mktemp("local") / "words"
    options = {"tokenizer": demo_model_dir(), "memory_limit_bytes": LIMIT_BYTES}
    build_datastore(Corpus([inputs]), out=place, name="words", **options)
    assert len(open_segments(place).stores) >= 6
    return bytes_of(place)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    nodes = Cluster()
    yield nodes
    nodes.close()


@pytest.fixture
def second_node(cluster) -> Iterator[subprocess.Popen]:
    node = cluster.add_node()
    yield node
    if node.poll() is None:
        cluster.kill(node)


class Build:
    """A build on the cluster, in a process of its own, from the command line."""

    def __init__(self, cluster: Cluster, inputs: Path, out: Path) -> None:
        self.out = out
        self._begun = out.with_name(f".{out.name}.segments")
        where = ["--engine", "ray", "--address", cluster.address]
        what = ["--tokenizer", str(demo_model_dir()), "--memory-limit", str(LIMIT_BYTES), "--out", str(out)]
        self.driver = subprocess.Popen(
            [sys.executable, "-c", _DRIVER, "build", str(inputs), *what, *where, "--json"],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def pieces(self) -> list[Path]:
        return [*self._begun.glob("*/pieces/[!.]*")]

    def begun_pieces(self) -> list[Path]:
        return [*self._begun.glob("*/pieces/.*.tmp-*/tokens")]

    def segments(self) -> list[Path]:
        return [*self._begun.glob("*/store/segments/[!.]*")]

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            assert self.driver.poll() is None, self.driver.stderr.read().decode()
            time.sleep(0.002)

    def end(self) -> None:
        _, said = self.driver.communicate(timeout=240)
        assert self.driver.returncode == 0, said.decode()


@pytest.fixture
def build(cluster, second_node, inputs, tmp_path) -> Iterator[Callable[[], Build]]:
    """Begins builds of one place, one after the other."""
    begun: list[Build] = []

    def begin() -> Build:
        begun.append(Build(cluster, inputs, tmp_path / "words"))
        return begun[-1]

    yield begin
    for each in begun:
        each.driver.kill()
        each.driver.communicate()


def check(build: Build, expected: dict[str, bytes]) -> None:
    assert bytes_of(build.out) == expected
    verify_segments(build.out)
    assert [path.name for path in build.out.parent.iterdir()] == [build.out.name]


def test_a_node_that_is_killed_while_it_encodes_changes_no_byte(cluster, second_node, build, expected):
    one = build()
    # Each node has one core: where two pieces are being written at once, each node writes one of them.
    one.wait_until(lambda: len(one.pieces()) >= 4 and len(one.begun_pieces()) == 2)
    cluster.kill(second_node)
    assert not one.out.exists()
    one.end()
    check(one, expected)


def test_a_node_that_is_killed_while_segments_are_sorted_changes_no_byte(
    cluster, second_node, build, expected
):
    one = build()
    one.wait_until(lambda: len(one.segments()) >= 2)
    cluster.kill(second_node)
    assert one.driver.poll() is None
    assert not one.out.exists()
    one.end()
    check(one, expected)


def test_a_driver_that_is_killed_finds_again_what_is_finished(build, expected):
    one = build()
    one.wait_until(lambda: len(one.segments()) >= 2)
    one.driver.send_signal(signal.SIGKILL)
    one.driver.communicate()
    assert not one.out.exists()
    finished, encoded = inodes(one.segments()), inodes(one.pieces())
    assert len(encoded) > 8
    again = build()
    again.wait_until(lambda: len(again.segments()) > len(finished))
    assert encoded <= inodes(again.pieces())
    again.end()
    assert finished <= inodes((again.out / "segments").iterdir())
    check(again, expected)
