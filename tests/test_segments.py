from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from retrieval_spec import encoding as encoding_module
from retrieval_spec.build import build_datastore
from retrieval_spec.cli import main
from retrieval_spec.datastore import locks
from retrieval_spec.datastore import segments as segments_module
from retrieval_spec.datastore.corpus import Corpus
from retrieval_spec.datastore.documents import Documents, document_id, joined, shown_id
from retrieval_spec.datastore.generation import (
    GENERATION_NAME,
    MAX_SEGMENTS,
    Generation,
    SegmentEntry,
    format_generation,
    parse_generation,
)
from retrieval_spec.datastore.progress import NoProgress
from retrieval_spec.datastore.segments import changing, open_segments, publish_generation, verify_segments
from retrieval_spec.drafters.base import Budget
from retrieval_spec.drafters.corpus import CorpusDrafter
from retrieval_spec.engine import Engine
from retrieval_spec.errors import (
    DatastoreCorrupt,
    DatastoreError,
    DatastoreVersion,
    InvalidRequest,
    LimitExceeded,
    MissingPath,
    TokenizerMismatch,
)
from retrieval_spec.grow import append_documents, compact, remove_documents
from tests.golden import copy_golden
from tests.kills import SEAMS, run_until
from tests.stores import write_corpus
from tests.word_tokenizers import write_tokenizer

WORDS = {f"w{n}": n for n in range(61)}
REPOSITORY = Path(__file__).parent.parent


@pytest.fixture
def tokenizer(tmp_path) -> Path:
    return write_tokenizer(tmp_path / "model", WORDS)


def texts(first: int, count: int) -> list[str]:
    """Documents that no other `first` has."""
    return [" ".join(f"w{(first + n * step) % 60}" for n in range(5 + step)) for step in range(1, count + 1)]


def write_texts(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return path


@pytest.fixture
def store(tmp_path, tokenizer) -> Path:
    one = write_texts(tmp_path / "one.jsonl", texts(0, 6))
    return build_datastore(Corpus([one]), tokenizer=tokenizer, out=tmp_path / "store")


def held(path: Path) -> list[list[int]]:
    """All documents of the current generation, as a reader finds them."""
    found = []
    for segment in open_segments(path).stores:
        documents = Documents.from_columns(segment.columns)
        edges = [*documents.starts.tolist(), len(documents.tokens)]
        for start, stop in pairwise(edges):
            found.append(documents.tokens[start : stop - 1].tolist())
    return found


def ids_of(lines: list[str]) -> list[list[int]]:
    return [[WORDS[word] for word in line.split()] for line in lines]


# Generations


ENTRY = SegmentEntry("segments/0123456789abcdef", "a" * 64, 12, 3)


def test_a_generation_is_read_as_it_was_written():
    generation = Generation(7, (SegmentEntry(".", "b" * 64, 5, 1), ENTRY))
    assert parse_generation(format_generation(generation)) == generation


@pytest.mark.row("F5/F6")
@pytest.mark.parametrize("place", ["..", "segments/..", "/etc", "segments/0123456789ABCDEF", "segments", ""])
def test_a_place_outside_the_store_is_refused(place):
    with pytest.raises(DatastoreCorrupt, match="place"):
        parse_generation(format_generation(Generation(1, (SegmentEntry(place, "a" * 64, 1, 1),))))


@pytest.mark.row("F1")
def test_every_flipped_bit_of_a_generation_is_found():
    data = format_generation(Generation(3, (ENTRY,)))
    for at in range(len(data)):
        for bit in (0, 3, 7):
            altered = bytearray(data)
            altered[at] ^= 1 << bit
            with pytest.raises((DatastoreCorrupt, DatastoreVersion)):
                parse_generation(bytes(altered))


@pytest.mark.row("F2")
def test_a_generation_without_segments_or_with_one_twice_is_refused():
    for entries in ((), (ENTRY, ENTRY)):
        with pytest.raises(DatastoreCorrupt):
            parse_generation(format_generation(Generation(1, entries)))


def test_more_segments_than_a_generation_lists_are_refused_before_anything_changes(store):
    entries = tuple(SegmentEntry(f"segments/{n:016x}", "a" * 64, 1, 1) for n in range(MAX_SEGMENTS + 1))
    with pytest.raises(LimitExceeded, match="too many segments"):
        publish_generation(store, Generation(1, entries))
    assert open_segments(store).generation == 0
    generation = Generation(1, entries[:-1])
    assert (
        parse_generation(format_generation(generation)) == generation
    )  # as many as are allowed fit the file


# Documents


def test_documents_of_several_parts_become_one_corpus():
    narrow = Documents(
        np.array([1, 2, 65_535, 3, 65_535], np.uint16),
        np.array([0, 3]),
        np.array([10, 11]),
        np.array([0, 1], np.uint32),
        ("a", "b"),
    )
    end = 2**31 - 1
    wide = Documents(
        np.array([70_000, end], np.int32),
        np.array([0]),
        np.array([12]),
        np.array([0], np.uint32),
        ("b",),
    )
    both = joined([narrow, wide])
    assert both.tokens.tolist() == [1, 2, end, 3, end, 70_000, end]
    assert both.starts.tolist() == [0, 3, 5]
    assert [both.origin_names[origin] for origin in both.origins] == ["a", "b", "b"]
    kept = both.kept(np.array([True, False, True]))
    assert kept.tokens.tolist() == [1, 2, end, 70_000, end]
    assert (kept.starts.tolist(), kept.ids.tolist()) == ([0, 3], [10, 12])


def test_an_id_depends_on_the_tokens_and_not_on_their_width():
    assert document_id(np.array([1, 2], np.uint16)) == document_id(np.array([1, 2], np.int32))
    assert document_id(np.array([1, 2], np.int32)) != document_id(np.array([2, 1], np.int32))


# Changes


def test_appended_documents_are_held_and_those_known_are_not_added_again(tmp_path, store, tokenizer):
    more = write_texts(tmp_path / "more.jsonl", [*texts(0, 6)[2:4], *texts(7, 4)])
    changed = append_documents(store, Corpus([more]), tokenizer=tokenizer)
    assert (changed.generation, changed.num_segments, changed.num_added, changed.num_duplicates) == (
        1,
        2,
        4,
        2,
    )
    assert held(store) == ids_of(texts(0, 6) + texts(7, 4))
    verify_segments(store)
    again = append_documents(store, Corpus([more]), tokenizer=tokenizer)
    assert (again.generation, again.num_added, again.num_duplicates) == (1, 0, 6)


def test_files_without_text_add_nothing_and_that_is_said(tmp_path, store, tokenizer):
    with pytest.raises(InvalidRequest, match="the inputs hold no text"):
        append_documents(store, Corpus([write_texts(tmp_path / "none.jsonl", [])]), tokenizer=tokenizer)
    assert open_segments(store).generation == 0
    assert [path.name for path in store.iterdir() if path.name.startswith(".")] == []


@pytest.mark.row("F8")
def test_another_tokenizer_is_refused(tmp_path, store):
    other = write_tokenizer(tmp_path / "other", {**WORDS, "more": 61})
    with pytest.raises(TokenizerMismatch):
        append_documents(store, Corpus([write_texts(tmp_path / "m.jsonl", texts(7, 1))]), tokenizer=other)
    assert open_segments(store).generation == 0


@pytest.mark.row("T2")
def test_removed_documents_are_gone_also_from_the_disk(tmp_path, store, tokenizer):
    more = write_texts(tmp_path / "more.jsonl", texts(7, 4))
    append_documents(store, Corpus([more]), tokenizer=tokenizer)
    gone = ids_of(texts(0, 6))[1]
    changed = remove_documents(store, ids=[document_id(np.array(gone))], origins=["*more.jsonl"])
    assert changed.num_removed == 5
    assert held(store) == [document for document in ids_of(texts(0, 6)) if document != gone]
    verify_segments(store)
    needle = np.array(gone, np.uint16).tobytes()
    assert not any(needle in path.read_bytes() for path in store.rglob("*.bin"))
    assert not (store / "manifest.json").exists()  # the first segment was written again elsewhere


def test_removing_nothing_or_everything_is_refused(store):
    with pytest.raises(InvalidRequest, match="no document is"):
        remove_documents(store, origins=["nowhere"])
    with pytest.raises(InvalidRequest, match="would remain"):
        remove_documents(store, origins=["*"])
    assert held(store) == ids_of(texts(0, 6))


def test_compaction_keeps_every_document_and_gives_the_drafts_of_one_build(tmp_path, store, tokenizer):
    files = [tmp_path / "one.jsonl"]
    for first in (7, 13, 29):
        files.append(write_texts(tmp_path / f"{first}.jsonl", texts(first, 3)))
        append_documents(store, Corpus(files[-1:]), tokenizer=tokenizer)
    before = held(store)
    assert len(open_segments(store).stores) == 4
    changed = compact(store)
    assert (changed.num_segments, held(store)) == (1, before)
    verify_segments(store)
    whole = build_datastore(Corpus(files), tokenizer=tokenizer, out=tmp_path / "whole")
    compacted = open_segments(store).stores[0].columns
    for name, column in open_segments(whole).stores[0].columns.items():
        assert compacted[name].tolist() == column.tolist()
    assert compact(store).generation == changed.generation  # nothing is left to do


def test_a_store_of_several_segments_drafts_from_all_of_them(tmp_path, store, tokenizer):
    more = write_texts(tmp_path / "more.jsonl", texts(7, 4))
    append_documents(store, Corpus([more]), tokenizer=tokenizer)
    vocab_size = open_segments(store).manifest.vocab_size
    several = CorpusDrafter.open(vocab_size, store)
    for document in held(store):
        tree = several.start(np.array(document[:3], np.int32)).propose(Budget(16)).check(vocab_size)
        paths = [[int(tree.token_ids[node]) for node in tree.path_to(leaf)] for leaf in range(len(tree))]
        assert document[3:] in paths
    session = Engine(vocab_size, datastores=[store]).open_session(held(store)[-1][:3])
    assert len(session.draft(16)) > 0


def test_a_source_that_reads_one_segment_says_what_to_do(tmp_path, store, tokenizer):
    append_documents(store, Corpus([write_texts(tmp_path / "more.jsonl", texts(7, 4))]), tokenizer=tokenizer)
    with pytest.raises(InvalidRequest, match="retrieval-spec compact"):
        Engine(61, preset="rest", datastores=[store])


def test_other_kinds_and_missing_folders_are_refused(tmp_path, tokenizer):
    with pytest.raises(InvalidRequest, match="cannot be changed so"):
        compact(copy_golden(tmp_path, "rows"))
    with pytest.raises(MissingPath):
        compact(tmp_path / "nowhere")


def test_a_store_without_ids_can_grow(tmp_path, tokenizer):
    old = write_corpus(tmp_path / "old", [[1, 2, 3], [4, 5]], 61, np.uint16)
    documents = Documents.from_columns(open_segments(old).stores[0].columns)
    assert documents.ids.tolist() == [document_id(np.array([1, 2, 3])), document_id(np.array([4, 5]))]
    assert remove_documents(old, ids=documents.ids[:1].tolist()).num_removed == 1
    assert held(old) == [[4, 5]]
    verify_segments(old)  # that of a single name, the empty one, too


# Writers and readers at once


@pytest.mark.row("K3")
def test_two_writers_exclude_each_other(tmp_path, store, tokenizer):
    with changing(store), pytest.raises(DatastoreError, match="another process is changing"):
        remove_documents(store, origins=["*"])
    script = (
        "import sys; from retrieval_spec.grow import remove_documents as r; r(sys.argv[1], origins=['*'])"
    )
    with changing(store):
        other = subprocess.run(
            [sys.executable, "-c", script, str(store)], cwd=REPOSITORY, capture_output=True
        )
    assert b"another process is changing" in other.stderr


@pytest.mark.row("K3")
def test_who_waited_for_a_folder_that_was_replaced_holds_the_new_one(tmp_path, monkeypatch):
    folder = tmp_path / "store"
    folder.mkdir()
    opened, entered, leave = threading.Event(), threading.Event(), threading.Event()
    real = locks._opened

    def wait() -> None:
        with locks.locked(folder, None):
            entered.set()
            assert leave.wait(20)

    def told(path: Path) -> int:
        fd = real(path)
        opened.set()
        return fd

    with locks.locked(folder):
        monkeypatch.setattr(locks, "_opened", told)
        waiter = threading.Thread(target=wait)
        waiter.start()
        assert opened.wait(20)
        folder.rename(tmp_path / "old")
        folder.mkdir()
    assert entered.wait(20)
    with pytest.raises(DatastoreError, match="another process"), locks.locked(folder):
        pass
    leave.set()
    waiter.join()


@pytest.mark.row("K3")
def test_a_writer_that_waited_changes_what_the_other_one_left(store, monkeypatch):
    waits, found = threading.Event(), []
    real = segments_module.locked

    @contextlib.contextmanager
    def locked(*arguments):
        waits.set()
        with real(*arguments):
            yield

    def write() -> None:
        with changing(store, patience_s=None) as second:
            found.append(second.segments.generation)

    with changing(store) as first:
        monkeypatch.setattr(segments_module, "locked", locked)
        writer = threading.Thread(target=write)
        writer.start()
        assert waits.wait(20)
        first.publish(first.entries)
    writer.join()
    assert found == [1]


@pytest.mark.row("F4", "K3")
def test_a_reader_keeps_its_generation_whatever_a_writer_does(tmp_path, store, tokenizer):
    append_documents(store, Corpus([write_texts(tmp_path / "more.jsonl", texts(7, 4))]), tokenizer=tokenizer)
    reader = open_segments(store)
    before = [segment.columns["tokens"].tolist() for segment in reader.stores]
    compact(store)
    remove_documents(store, origins=["*more.jsonl"])
    assert [segment.columns["tokens"].tolist() for segment in reader.stores] == before


@pytest.mark.row("K3")
def test_readers_always_find_one_whole_generation(tmp_path, store, tokenizer):
    allowed = [ids_of(texts(0, 6)), ids_of(texts(0, 6) + texts(7, 4))]
    more = write_texts(tmp_path / "more.jsonl", texts(7, 4))
    stop, seen, wrong = threading.Event(), [], []

    def read() -> None:
        while not stop.is_set():
            found = held(store)
            (seen if found in allowed else wrong).append(allowed.index(found) if found in allowed else found)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(12):
            append_documents(store, Corpus([more]), tokenizer=tokenizer)
            compact(store)
            remove_documents(store, origins=["*more.jsonl"])
    finally:
        stop.set()
        reader.join()
    assert not wrong
    assert set(seen) == {0, 1}


@pytest.mark.row("F1")
@pytest.mark.parametrize("damage", ["missing", "truncated", "another", "another that fits", "no generation"])
def test_a_damaged_generation_or_segment_is_refused(tmp_path, store, tokenizer, damage):
    append_documents(store, Corpus([write_texts(tmp_path / "more.jsonl", texts(7, 4))]), tokenizer=tokenizer)
    (segment,) = (store / "segments").iterdir()
    if damage == "missing":
        shutil.rmtree(segment)
    elif damage == "truncated":
        os.truncate(segment / "tokens.bin", 4)
    elif damage == "another":
        shutil.rmtree(segment)
        shutil.copytree(write_corpus(tmp_path / "x", [[1, 2]], 61), segment)
    elif damage == "another that fits":
        shutil.rmtree(segment)
        shutil.copytree(store, segment, ignore=shutil.ignore_patterns("segments", GENERATION_NAME))
    else:
        (store / GENERATION_NAME).write_bytes(b"{}")
    with pytest.raises(DatastoreCorrupt):
        open_segments(store)


# Crashes


@pytest.mark.row("D1")
@pytest.mark.parametrize("change", ["append", "remove", "compact"])
def test_after_kill_9_at_any_call_the_old_or_the_new_generation_is_there(tmp_path, store, tokenizer, change):
    append_documents(store, Corpus([write_texts(tmp_path / "two.jsonl", texts(7, 4))]), tokenizer=tokenizer)
    three = write_texts(tmp_path / "three.jsonl", texts(13, 4))
    work = {
        "append": lambda path: append_documents(path, Corpus([three]), tokenizer=tokenizer, threads=1),
        "remove": lambda path: remove_documents(path, origins=["*one.jsonl"], threads=1),
        "compact": lambda path: compact(path, threads=1),
    }[change]
    old = held(store)
    shutil.copytree(store, tmp_path / "changed")
    work(tmp_path / "changed")
    new = held(tmp_path / "changed")
    num_killed, found_old, found_new = 0, 0, 0
    for seam, stride in SEAMS.items():
        for call in range(1, 100, stride):
            place = tmp_path / "place"
            shutil.copytree(store, place)
            ended = run_until(seam, call, lambda place=place: work(place))
            if ended == "killed":
                num_killed += 1
                verify_segments(place)
                found = held(place)
                assert found in (old, new)
                found_old, found_new = found_old + (found == old), found_new + (found == new)
                if found == old or change != "append":
                    with contextlib.suppress(InvalidRequest):  # what was removed is not there twice
                        work(place)
                assert held(place) == new
                listed = {
                    entry.place for entry in parse_generation((place / GENERATION_NAME).read_bytes()).segments
                }
                assert {f"segments/{path.name}" for path in (place / "segments").iterdir()} == listed - {"."}
                if "." not in listed:
                    assert {path.name for path in place.iterdir()} == {GENERATION_NAME, "segments"}
                assert not any(path.name.startswith(".") for path in place.rglob("*"))
            shutil.rmtree(place)
            if ended == "done":
                break
    assert num_killed >= 30
    assert found_old >= 20
    assert found_new >= 1


# Builds in parts


def small_segments(monkeypatch, tokens: int) -> None:
    monkeypatch.setattr(encoding_module, "MIN_SEGMENT_TOKENS", 1)
    monkeypatch.setattr(encoding_module, "BUILD_BYTES", 0)
    monkeypatch.setattr(encoding_module, "BUILD_BYTES_PER_TOKEN", 1)
    monkeypatch.setattr(encoding_module, "_BATCH_CHARACTERS", 30)


def test_a_corpus_that_is_too_long_for_the_memory_becomes_segments(tmp_path, tokenizer, monkeypatch):
    small_segments(monkeypatch, 40)
    lines = write_texts(tmp_path / "one.jsonl", texts(0, 9))
    place = build_datastore(
        Corpus([lines]), tokenizer=tokenizer, out=tmp_path / "parts", memory_limit_bytes=40
    )
    segments = open_segments(place)
    assert len(segments.stores) >= 3
    assert all(segment.manifest.num_tokens <= 40 for segment in segments.stores)
    assert held(place) == ids_of(texts(0, 9))
    verify_segments(place)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "one.jsonl", "parts"]
    assert sorted(path.name for path in place.iterdir()) == [GENERATION_NAME, "segments"]


def test_duplicates_are_left_out_on_request_also_across_segments(tmp_path, tokenizer, monkeypatch):
    small_segments(monkeypatch, 40)
    lines = write_texts(tmp_path / "one.jsonl", texts(0, 5) + texts(0, 5) + texts(7, 2))
    place = build_datastore(
        Corpus([lines]),
        tokenizer=tokenizer,
        out=tmp_path / "parts",
        memory_limit_bytes=40,
        drop_duplicates=True,
    )
    assert held(place) == ids_of(texts(0, 5) + texts(7, 2))


@pytest.mark.row("D1")
def test_a_killed_build_goes_on_after_what_is_finished(tmp_path, tokenizer, monkeypatch):
    small_segments(monkeypatch, 40)
    lines = write_texts(tmp_path / "one.jsonl", texts(0, 9))

    def build() -> Path:
        return build_datastore(
            Corpus([lines]), tokenizer=tokenizer, out=tmp_path / "parts", memory_limit_bytes=40, threads=1
        )

    num_resumed = 0
    for seam in ("rename", "replace", "fsync", "open", "mkdir", "unlink"):
        for call in range(1, 120, 5):
            if run_until(seam, call, build) == "done":
                shutil.rmtree(tmp_path / "parts")
                break
            work = tmp_path / ".parts.segments"
            finished = inodes(work.glob("*/store/segments/[!.]*"))
            if not (tmp_path / "parts").exists():
                build()
                kept = inodes((tmp_path / "parts/segments").iterdir())
                assert finished <= kept
                num_resumed += bool(finished)
            assert held(tmp_path / "parts") == ids_of(texts(0, 9))
            verify_segments(tmp_path / "parts")
            shutil.rmtree(tmp_path / "parts")
            shutil.rmtree(work, ignore_errors=True)
    assert num_resumed >= 5


def inodes(folders: Iterable[Path]) -> set[tuple[str, int, int]]:
    """Which folder each segment is: one that was written again is another."""
    return {(path.name, path.stat().st_ino, path.stat().st_mtime_ns) for path in folders}


@pytest.mark.row("K3")
def test_a_second_build_of_one_place_is_refused_and_does_not_disturb_the_first(
    tmp_path, tokenizer, monkeypatch
):
    small_segments(monkeypatch, 40)
    lines = write_texts(tmp_path / "one.jsonl", texts(0, 9))
    out = tmp_path / "parts"
    refused = []

    class WhileAnotherBegins(NoProgress):
        def start(self, stage: str, total: int | None, unit: str) -> None:
            if stage == "encoding":
                return  # the first one takes its lock after that
            with pytest.raises(DatastoreError, match="another process"):
                build_datastore(Corpus([lines]), tokenizer=tokenizer, out=out, memory_limit_bytes=40)
            refused.append(stage)

    build_datastore(
        Corpus([lines]), tokenizer=tokenizer, out=out, memory_limit_bytes=40, progress=WhileAnotherBegins()
    )
    assert {"sorting", "writing"} <= set(refused)
    assert held(out) == ids_of(texts(0, 9))


def test_a_build_of_another_corpus_does_not_go_on_after_this_one(tmp_path, tokenizer, monkeypatch):
    small_segments(monkeypatch, 40)
    lines = write_texts(tmp_path / "one.jsonl", texts(0, 9))
    out = tmp_path / "parts"
    run_until(
        "rename",
        2,
        lambda: build_datastore(Corpus([lines]), tokenizer=tokenizer, out=out, memory_limit_bytes=40),
    )
    assert inodes((tmp_path / ".parts.segments").glob("*/store/segments/[!.]*"))
    write_texts(tmp_path / "one.jsonl", texts(13, 9))
    build_datastore(Corpus([lines]), tokenizer=tokenizer, out=out, memory_limit_bytes=40)
    assert held(out) == ids_of(texts(13, 9))


# The command line


def run(*arguments: object) -> dict:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(printed.getvalue())


def test_a_datastore_grows_shrinks_and_is_compacted_from_the_command_line(tmp_path, store, tokenizer):
    more = write_texts(tmp_path / "more.jsonl", texts(7, 4))
    assert run("append", store, more, "--tokenizer", tokenizer)["num_added"] == 4
    facts = run("inspect", store, "--sample", 0)
    assert (facts["generation"], len(facts["segments"])) == (1, 2)
    assert sorted(facts["origins"].values()) == [4, 6]
    shown = shown_id(document_id(np.array(ids_of(texts(7, 4))[0])))
    assert run("remove", store, "--id", shown, "--origin", "*one.jsonl")["num_removed"] == 7
    assert run("compact", store, "--memory-limit", "2G")["num_segments"] == 1
    assert held(store) == ids_of(texts(7, 4))[1:]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["remove", "STORE", "--id", "12"], "16 hexadecimal digits"),
        (["remove", "STORE"], "no document is"),
        (["compact", "STORE", "--memory-limit", "much"], "such as 4G"),
        (["compact", "STORE", "--memory-limit", "1K"], "too little memory"),
        (["append", "STORE", "nowhere.txt", "--tokenizer", "MODEL"], "nowhere.txt"),
    ],
)
def test_bad_input_ends_with_one_line(store, tokenizer, capsys, arguments, said):
    words = [{"STORE": str(store), "MODEL": str(tokenizer)}.get(word, word) for word in arguments]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
