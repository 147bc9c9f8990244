"""Real `kill -9` at calls that change a disk, put there by strace: also where Python sees none."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from retrieval_spec.datastore import atomic
from retrieval_spec.datastore.store import verify_datastore, write_datastore
from tests.conftest import REPOSITORY
from tests.golden import GOLDEN
from tests.test_store import CRASH, facts_of, names_in

CALLS = ("openat", "write", "fsync", "rename", "renameat2", "unlink", "unlinkat", "rmdir", "mkdir", "close")


def traced(place: Path, action: str, *options: str) -> int:
    """Lets the writer of tests/test_store.py work under strace, and returns how it ended."""
    never = "999"
    writer = [
        sys.executable,
        "-c",
        CRASH,
        str(place),
        "fsync",
        never,
        action,
        "exchange",
        str(GOLDEN / "uint16"),
    ]
    command = ["strace", "-qq", "-o", str(place.with_name("trace")), *options, *writer]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True).returncode


def points(folder: Path, action: str, call: str) -> range:
    """Which calls of this name the writer makes once it is at work, counted from the start of its process."""
    place = begin(folder, action)
    assert traced(place, action, "-e", f"trace={','.join(CALLS)}") == 0
    lines = (folder / "trace").read_text().splitlines()
    at_work = next(number for number, line in enumerate(lines) if f".{place.name}.tmp-" in line)
    shutil.rmtree(folder)

    def count(some: list[str]) -> int:
        return sum(re.match(rf"{call}\(", line) is not None for line in some)

    return range(count(lines[:at_work]) + 1, count(lines) + 1)


def begin(folder: Path, action: str) -> Path:
    folder.mkdir()
    if action == "replace_datastore":
        shutil.copytree(GOLDEN / "int32", folder / "store")
    return folder / "store"


@pytest.fixture(scope="module")
def can_trace(tmp_path_factory):
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    trace = tmp_path_factory.mktemp("probe") / "trace"
    kill_itself = ["strace", "-o", str(trace), "-e", "inject=exit_group:signal=KILL", "true"]
    if subprocess.run(kill_itself, capture_output=True).returncode != -signal.SIGKILL:
        pytest.skip("strace may not trace here")


EVERYWHERE = [pytest.mark.long, pytest.mark.timeout(1_200)]


@pytest.mark.row("D1")
@pytest.mark.parametrize(
    ("action", "calls"),
    [
        ("replace_datastore", ("rename", "renameat2")),
        pytest.param("write_datastore", CALLS, marks=EVERYWHERE),
        pytest.param("replace_datastore", CALLS, marks=EVERYWHERE),
    ],
    ids=["replace at renames", "write", "replace"],
)
def test_killed_at_a_call_of_the_system_the_old_or_the_new_store_is_there(tmp_path, can_trace, action, calls):
    num_killed = 0
    for call in calls:
        for number in points(tmp_path / "first", action, call):
            place = begin(tmp_path / "place", action)
            ended = traced(place, action, "-e", f"inject={call}:signal=KILL:when={number}")
            num_killed += ended == -signal.SIGKILL
            (place.parent / "trace").unlink()
            atomic.sweep(place)
            if action == "replace_datastore" or place.exists():
                assert verify_datastore(place).name in ("golden-int32", "golden-uint16")
                shutil.rmtree(place)
            write_datastore(place, *facts_of())
            assert names_in(place.parent) == ["store"]
            shutil.rmtree(place.parent)
    print(action, num_killed, "killed")
    assert num_killed >= len(calls) // 2
