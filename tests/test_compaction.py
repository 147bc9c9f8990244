"""Compaction beside other writers, in processes of their own."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from retrieval_spec.build import build_datastore
from retrieval_spec.cli import main
from retrieval_spec.datastore.compaction import compacting
from retrieval_spec.datastore.corpus import Corpus
from retrieval_spec.datastore.documents import Documents
from retrieval_spec.datastore.generation import GENERATION_NAME, SegmentEntry, parse_generation
from retrieval_spec.datastore.segments import WORK_NAME, changing, open_segments, verify_segments
from retrieval_spec.errors import DatastoreError, MissingPath
from retrieval_spec.grow import append_documents, compact, groups_of, remove_documents
from tests.conftest import REPOSITORY
from tests.word_tokenizers import write_tokenizer

WORDS = {f"w{n}": n for n in range(61)}
PATIENCE_S = 60


@pytest.fixture
def tokenizer(tmp_path) -> Path:
    return write_tokenizer(tmp_path / "model", WORDS)


def documents(number: int) -> list[list[int]]:
    rng = np.random.default_rng(number)
    return [rng.integers(0, 61, 20).tolist() for _ in range(6)]


def lines_of(tmp_path: Path, number: int) -> Path:
    texts = [" ".join(f"w{id_}" for id_ in document) for document in documents(number)]
    path = tmp_path / f"{number}.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def append(store: Path, tokenizer: Path, number: int) -> None:
    append_documents(store, Corpus([lines_of(store.parent, number)]), tokenizer=tokenizer, threads=1)


@pytest.fixture
def store(tmp_path, tokenizer) -> Path:
    """Three segments of equal size."""
    corpus = Corpus([lines_of(tmp_path, 0)])
    path = build_datastore(corpus, tokenizer=tokenizer, out=tmp_path / "store")
    append(path, tokenizer, 1)
    append(path, tokenizer, 2)
    return path


def held(store: Path) -> list[list[int]]:
    parts = [Documents.from_columns(segment.columns) for segment in open_segments(store).stores]
    return [token_ids.tolist() for part in parts for token_ids, _ in part.each()]


def all_of(*numbers: int) -> list[list[int]]:
    return [document for number in numbers for document in documents(number)]


def assert_whole(store: Path) -> None:
    """Nothing is damaged, and nothing lies about that the generation does not list."""
    verify_segments(store)
    generation = parse_generation((store / GENERATION_NAME).read_bytes())
    listed = {entry.place for entry in generation.segments} - {"."}
    assert {f"segments/{path.name}" for path in (store / "segments").iterdir()} == listed
    assert not [path for path in store.rglob(".*")]


HELD_UP = """
import sys, time
from pathlib import Path
from retrieval_spec import grow

plain = grow.rewritten

def held_up(*arguments):
    columns = plain(*arguments)
    Path(sys.argv[2], "begun").touch()
    while not Path(sys.argv[2], "go").exists():
        time.sleep(0.01)
    return columns

grow.rewritten = held_up
changed = grow.compact(sys.argv[1], threads=1)
print(changed.generation, changed.num_segments, changed.num_outdated)
"""


class HeldUp:
    """A compaction in a process of its own that stops when it has merged, until it is told to go on."""

    def __init__(self, store: Path, flags: Path) -> None:
        flags.mkdir()
        self.flags = flags
        command = [sys.executable, "-c", HELD_UP, str(store), str(flags)]
        self.process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
        deadline = time.monotonic() + PATIENCE_S
        while not (flags / "begun").exists():
            assert time.monotonic() < deadline
            assert self.process.poll() is None
            time.sleep(0.01)

    def tell(self) -> None:
        (self.flags / "go").touch()

    def finish(self) -> list[int]:
        """Returns the generation, the number of segments and how many merged ones were thrown away."""
        self.tell()
        printed, _ = self.process.communicate(timeout=PATIENCE_S)
        assert self.process.returncode == 0
        return [int(word) for word in printed.split()]

    def kill(self) -> None:
        self.process.kill()
        assert self.process.wait() == -signal.SIGKILL
        self.process.communicate()


@pytest.mark.row("K3")
def test_documents_are_appended_while_a_compaction_runs(tmp_path, store, tokenizer):
    compaction = HeldUp(store, tmp_path / "flags")
    append(store, tokenizer, 3)
    append(store, tokenizer, 4)
    assert len(open_segments(store).stores) == 5
    assert list((store / WORK_NAME).iterdir()) == []  # it is about to write; the sweeps left its folder
    assert compaction.finish() == [5, 3, 0]
    assert held(store) == all_of(0, 1, 2, 3, 4)
    assert_whole(store)


@pytest.mark.row("T2")
def test_what_was_removed_meanwhile_does_not_come_back(tmp_path, store, tokenizer):
    compaction = HeldUp(store, tmp_path / "flags")
    remove_documents(store, origins=["*1.jsonl"])
    assert compaction.finish() == [3, 2, 1]
    assert held(store) == all_of(0, 2)
    assert_whole(store)
    assert compact(store).num_outdated == 0
    assert held(store) == all_of(0, 2)


def test_a_compaction_waits_for_a_writer_that_is_at_work_when_it_is_done(tmp_path, store, tokenizer):
    compaction = HeldUp(store, tmp_path / "flags")
    with changing(store) as change:
        compaction.tell()
        time.sleep(0.5)
        assert compaction.process.poll() is None
        assert open_segments(store).generation == change.segments.generation
    assert compaction.finish() == [3, 1, 0]
    assert held(store) == all_of(0, 1, 2)
    assert_whole(store)


@pytest.mark.row("K3")
def test_two_compactions_exclude_each_other(tmp_path, store):
    compaction = HeldUp(store, tmp_path / "flags")
    with pytest.raises(DatastoreError, match="another process is compacting"):
        compact(store)
    assert compaction.finish() == [3, 1, 0]


@pytest.mark.row("D1", "D4")
def test_what_a_killed_compaction_left_is_deleted_by_the_next_writer(tmp_path, store, tokenizer):
    compaction = HeldUp(store, tmp_path / "flags")
    (store / WORK_NAME / "0123456789abcdef").mkdir()
    (store / WORK_NAME / "0123456789abcdef" / "tokens.bin").write_bytes(b"half")
    compaction.kill()
    assert (store / WORK_NAME).exists()
    append(store, tokenizer, 3)
    assert held(store) == all_of(0, 1, 2, 3)
    assert_whole(store)


def test_a_compaction_keeps_its_folder_whatever_sweeps(store, tokenizer):
    with compacting(store) as compaction:
        (store / WORK_NAME / "0123456789abcdef").mkdir()
        append(store, tokenizer, 3)
        assert (store / WORK_NAME / "0123456789abcdef").exists()
        assert len(compaction.segments.stores) == 3
    assert not (store / WORK_NAME).exists()


def test_a_store_that_was_replaced_meanwhile_is_left_alone(tmp_path, store, tokenizer):
    compaction = HeldUp(store, tmp_path / "flags")
    corpus = Corpus([lines_of(tmp_path, 7)])
    build_datastore(corpus, tokenizer=tokenizer, out=store, replace=True)
    compaction.tell()
    compaction.process.communicate(timeout=PATIENCE_S)
    assert held(store) == all_of(7)
    verify_segments(store)


LOOP = """
import sys
from pathlib import Path
from retrieval_spec.grow import compact

while not Path(sys.argv[2]).exists():
    compact(sys.argv[1], threads=1)
"""


@pytest.mark.row("K3")
def test_appends_removals_and_compactions_at_once_lose_and_double_nothing(tmp_path, store, tokenizer):
    stop = tmp_path / "stop"
    process = subprocess.Popen([sys.executable, "-c", LOOP, str(store), str(stop)], cwd=REPOSITORY)
    wanted = all_of(0, 1, 2)
    try:
        for number in range(3, 18):
            append(store, tokenizer, number)
            wanted += all_of(number)
            assert held(store) == wanted
            if number % 5 == 0:
                remove_documents(store, origins=[f"*/{number}.jsonl"], threads=1)
                wanted = wanted[:-6]
    finally:
        stop.touch()
        assert process.wait(PATIENCE_S) == 0
    assert held(store) == wanted
    compact(store, max_ratio=math.inf)
    assert held(store) == wanted
    assert_whole(store)
    assert len(open_segments(store).stores) == 1


# Which segments are merged


def entries(*sizes: int) -> list[SegmentEntry]:
    return [SegmentEntry(f"segments/{at:016x}", "a" * 64, size, 1) for at, size in enumerate(sizes)]


def sizes_of(*sizes: int, **limits: float) -> list[list[int]]:
    groups = groups_of(entries(*sizes), **{"max_tokens": 10**9, **limits})
    assert [entry for group in groups for entry in group] == entries(*sizes)
    return [[entry.num_tokens for entry in group] for group in groups]


def test_small_segments_are_merged_and_large_ones_left():
    assert sizes_of(10) == [[10]]
    assert sizes_of(10, 10) == [[10, 10]]
    assert sizes_of(1_000, 10, 10) == [[1_000], [10, 10]]
    assert sizes_of(1_000, 100, 10) == [[1_000], [100], [10]]
    assert sizes_of(40, 10) == [[40, 10]]
    assert sizes_of(41, 10) == [[41], [10]]
    assert sizes_of(1_000, 1, 900) == [[1_000, 1, 900]]


def test_all_become_one_on_request_as_far_as_memory_allows():
    assert sizes_of(1_000, 100, 0, 10, max_ratio=math.inf) == [[1_000, 100, 0, 10]]
    assert sizes_of(10, 10, 10, 10, max_tokens=20) == [[10, 10], [10, 10]]
    assert sizes_of(30, 10, 10, max_tokens=20) == [[30], [10, 10]]


def test_many_small_appends_stay_few_segments_and_tokens_are_not_written_again_and_again():
    sizes, num_written = [100_000], 0
    for _ in range(3_000):
        groups = sizes_of(*sizes, 10)
        num_written += sum(sum(group) for group in groups if len(group) > 1)
        sizes = [sum(group) for group in groups]
        assert len(sizes) <= 9
    assert sum(sizes) == 130_000
    assert num_written < 20 * 30_000


def test_the_command_merges_what_pays_or_all(tmp_path, tokenizer, capsys):
    many = [" ".join(["w1", *(f"w{n % 60}" for n in range(400))])]
    (tmp_path / "large.txt").write_text(" ".join(many * 20))
    path = build_datastore(Corpus([tmp_path / "large.txt"]), tokenizer=tokenizer, out=tmp_path / "large")
    for number in (1, 2):
        append(path, tokenizer, number)

    def compacted(*options: str) -> int:
        assert main(["compact", str(path), "--json", *options]) == 0
        return int(json.loads(capsys.readouterr().out)["num_segments"])

    before = held(path)
    assert [compacted(), compacted(), compacted("--all")] == [2, 2, 1]
    assert held(path) == before


def test_what_is_no_datastore_is_left_alone(tmp_path):
    with pytest.raises(MissingPath):
        compact(tmp_path / "nowhere")
    (tmp_path / "plain").mkdir()
    with pytest.raises(DatastoreError):
        compact(tmp_path / "plain")
    assert os.listdir(tmp_path / "plain") == []
