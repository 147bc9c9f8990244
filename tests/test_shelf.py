"""Datastores that are exchanged while sessions draft: in process, where every state can be looked into."""

from __future__ import annotations

import gc
import os
import shutil
from itertools import cycle
from pathlib import Path
from threading import Event

import numpy as np
import pytest

from retrieval_spec.datastore.manifest import TokenizerFacts
from retrieval_spec.datastore.residency import residency
from retrieval_spec.datastore.segments import open_segments, verify_segments
from retrieval_spec.datastore.snapshot import snapshot
from retrieval_spec.drafters.preset import Preset, Source
from retrieval_spec.engine import Engine
from retrieval_spec.errors import (
    DatastoreCorrupt,
    DatastoreError,
    DatastoreExists,
    InvalidRequest,
    InvalidTokens,
    LimitExceeded,
    MissingPath,
    TokenizerMismatch,
)
from retrieval_spec.feedback import Feedback
from retrieval_spec.grow import append_token_documents, compact
from retrieval_spec.shelf import Shelf
from tests.stores import write_corpus, write_dense
from tests.threads import in_threads

VOCAB_SIZE = 1_000
FINGERPRINT = "sha256:" + "0" * 64
OTHER = TokenizerFacts(fingerprint="sha256:" + "1" * 64)
PROMPT = [1, 2, 3]


def documents(follower: int, count: int = 6) -> list[list[int]]:
    """Documents in which `follower` and its successors follow the prompt."""
    return [[*PROMPT, *range(follower, follower + 8), 900 + number] for number in range(count)]


def ids(*values) -> np.ndarray:
    return np.array(values, np.int32)


def engine_over(*places: Path, preset="corpus", **options) -> tuple[Engine, Shelf]:
    stores = [open_segments(place, "mmap") for place in places]
    engine = Engine(VOCAB_SIZE, preset=preset, datastores=stores)
    return engine, Shelf(engine, stores, "mmap", **options)


def first_token(session) -> int:
    token_ids = session.draft(8).token_ids
    return int(token_ids[0]) if len(token_ids) else -1


def mapped_files(folder: Path) -> list[str]:
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]


@pytest.fixture
def docs(tmp_path) -> Path:
    return write_corpus(tmp_path / "docs", documents(10), VOCAB_SIZE)


@pytest.fixture
def newer(tmp_path) -> Path:
    return write_corpus(tmp_path / "newer", documents(50), VOCAB_SIZE)


@pytest.mark.parametrize("preset", ["corpus", "default"])
def test_open_sessions_and_new_ones_draft_from_what_was_taken_up(docs, newer, preset):
    engine, shelf = engine_over(docs, preset=preset)
    session = engine.open_session(PROMPT)
    assert first_token(session) == 10
    prepared = shelf.prepare("docs", newer)
    assert first_token(session) == 10
    shelf.put(prepared)
    assert [first_token(one) for one in (session, engine.open_session(PROMPT))] == [50, 50]
    session.commit([50])
    assert first_token(session) == 51
    assert shelf.get("docs").segments.path == newer


@pytest.mark.row("K3")
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux to tell what is mapped")
def test_nothing_of_the_old_generation_stays_mapped_and_its_files_can_go(docs, newer):
    engine, shelf = engine_over(docs)
    session = engine.open_session(PROMPT)
    session.draft(8)
    assert mapped_files(docs)
    assert shelf.residency("docs").mapped == shelf.get("docs").segments.num_bytes
    assert shelf.residency("docs").resident > 0
    shelf.put(shelf.prepare("docs", newer))
    shutil.rmtree(docs)
    gc.collect()
    assert not mapped_files(docs)
    assert shelf.get("docs").retired.num_bytes == 0
    assert first_token(session) == 50


def test_what_is_still_used_is_counted(docs, newer):
    engine, shelf = engine_over(docs)
    kept = engine.drafters["corpus:docs"].corpus
    shelf.put(shelf.prepare("docs", newer))
    assert shelf.get("docs").retired.num_bytes >= kept.num_bytes
    del kept
    assert shelf.get("docs").retired.num_bytes == 0


def test_segments_that_stay_are_neither_mapped_nor_read_again(docs):
    engine, shelf = engine_over(docs)
    before = shelf.get("docs").segments
    done = append_token_documents(
        docs, [ids(7, 7, 70, 71, 72)], "more", tokenizer_fingerprint=FINGERPRINT, threads=1
    )
    assert (done.num_added, done.generation, done.num_segments) == (1, 1, 2)
    shelf.put(shelf.prepare("docs"))
    after = shelf.get("docs").segments
    assert after.generation == 1
    assert after.stores[0] is before.stores[0]
    assert first_token(engine.open_session([7, 7])) == 70
    assert first_token(engine.open_session(PROMPT)) == 10
    assert shelf.prepare("docs").sources == {}


def test_a_compacted_generation_is_taken_up(docs):
    engine, shelf = engine_over(docs)
    for number in (70, 80):
        append_token_documents(docs, [ids(7, number)], "", tokenizer_fingerprint=FINGERPRINT, threads=1)
        shelf.put(shelf.prepare("docs"))
    compact(docs, max_ratio=np.inf, threads=1)
    session = engine.open_session(PROMPT)
    shelf.put(shelf.prepare("docs"))
    assert len(shelf.get("docs").segments.stores) == 1
    assert first_token(session) == 10


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    path.write_bytes(data)


@pytest.mark.row("K3")
def test_a_damaged_generation_is_refused_and_the_old_one_stays(docs, newer):
    engine, shelf = engine_over(docs)
    damage(newer / "positions.bin")
    with pytest.raises(DatastoreCorrupt, match="was altered"):
        shelf.prepare("docs", newer)
    append_token_documents(docs, [ids(7, 70)], "", tokenizer_fingerprint=FINGERPRINT, threads=1)
    damage(next((docs / "segments").glob("*/tokens.bin")))
    with pytest.raises(DatastoreCorrupt, match="was altered"):
        shelf.prepare("docs")
    assert shelf.get("docs").segments.generation == 0
    assert first_token(engine.open_session(PROMPT)) == 10


@pytest.mark.row("F8")
def test_other_vocabularies_tokenizers_kinds_and_places_are_refused(docs, tmp_path, monkeypatch):
    engine, shelf = engine_over(docs)
    large = write_corpus(tmp_path / "large", documents(10), VOCAB_SIZE + 1)
    with pytest.raises(TokenizerMismatch, match="larger vocabulary"):
        shelf.prepare("docs", large)
    monkeypatch.setattr("tests.stores.TokenizerFacts", lambda fingerprint: OTHER)
    other = write_corpus(tmp_path / "other", documents(10), VOCAB_SIZE)
    with pytest.raises(TokenizerMismatch, match="another tokenizer"):
        shelf.prepare("docs", other)
    with pytest.raises(TokenizerMismatch, match="another tokenizer"):
        shelf.prepare_new("other", other)
    with pytest.raises(MissingPath):
        shelf.prepare("docs", tmp_path / "nowhere")
    with pytest.raises(MissingPath, match="no datastore has this name"):
        shelf.prepare("nobody")
    assert first_token(engine.open_session(PROMPT)) == 10


@pytest.mark.parametrize("preset", ["corpus", "default"])
def test_a_datastore_comes_goes_and_comes_back(docs, newer, preset):
    engine, shelf = engine_over(docs, preset=preset)
    before = engine.open_session([5, *PROMPT])
    names = engine.source_names
    shelf.put(shelf.prepare_new("newer", newer))
    assert engine.source_names == (*names, "corpus:newer")
    assert set(engine.datastores) == {"docs", "newer"}
    with pytest.raises(DatastoreExists, match="swap it"):
        shelf.prepare_new("newer", newer)

    def drafted(session):
        tree = session.draft(8)
        return {token for token in tree.token_ids[tree.parents < 0].tolist() if token in (10, 50)}

    both = engine.open_session(PROMPT)
    assert drafted(both) == {10, 50}
    assert max(int(mask) for mask in both.draft(8).sources) < 1 << len(engine.source_names)
    before.truncate(4)  # its verifier knows no more sources than when it began
    assert drafted(before) == {10}
    shelf.unload("docs")
    assert drafted(both) == {50}
    assert drafted(before) == set()
    assert set(engine.datastores) == {"newer"}
    assert engine.source_names == (*names, "corpus:newer")
    shelf.put(shelf.prepare_new("docs", docs))
    assert drafted(both) == {10, 50}
    assert engine.source_names == (*names, "corpus:newer")


def test_an_engine_without_datastores_takes_one(docs):
    engine, shelf = engine_over()
    shelf.put(shelf.prepare_new("docs", docs))
    assert first_token(engine.open_session(PROMPT)) == 10


def test_presets_that_rank_their_sources_take_none_but_exchange_theirs(docs, newer):
    engine, shelf = engine_over(docs, preset="sam")
    with pytest.raises(InvalidRequest, match="in an order of its own"):
        shelf.prepare_new("newer", newer)
    session = engine.open_session([*PROMPT, *range(10, 15)])
    assert first_token(session) == 15
    shelf.put(shelf.prepare("docs", newer))
    assert first_token(session) == 15  # a published rule's session ends over what it began with
    assert first_token(engine.open_session([*PROMPT, *range(50, 55)])) == 55
    assert shelf.get("docs").retired.num_bytes > 0


@pytest.mark.row("K3")
def test_a_datastore_is_exchanged_while_another_thread_drafts_from_it(docs, newer):
    engine, _ = engine_over(docs, preset="default")
    (corpus,) = [drafter for name, drafter in engine.drafters.items() if name.startswith("corpus")]
    others = [engine_over(place)[0].drafters["corpus:" + place.name] for place in (newer, docs)]

    is_done = Event()

    def work(is_drafting: bool) -> set[int]:
        first = set()
        if is_drafting:
            for _ in range(300):
                sessions = [engine.open_session(PROMPT) for _ in range(2)]
                first |= {int(tree.token_ids[0]) for tree in engine.draft_batch(sessions, 16)}
            is_done.set()
        turns = cycle(others)
        while not is_done.wait(0.0002):
            corpus.take_up(next(turns))
        return first

    assert in_threads(work, [True, False])[0] == {10, 50}


def test_whoever_trusts_a_folder_reads_no_checksums(docs, newer):
    damage(newer / "positions.bin")
    engine, shelf = engine_over(docs, is_trusted=True)
    shelf.put(shelf.prepare("docs", newer))
    assert first_token(engine.open_session(PROMPT)) == 50


def test_there_is_a_bit_for_sixteen_sources_and_no_more(docs, tmp_path):
    places = [write_corpus(tmp_path / f"store-{n}", documents(10), VOCAB_SIZE) for n in range(16)]
    _, shelf = engine_over(*places)
    with pytest.raises(LimitExceeded, match=r"too many drafting sources; expected <= 16; swap"):
        shelf.prepare_new("docs", docs)
    assert len(shelf.names) == 16
    shelf.put(shelf.prepare("store-3", docs))


def test_a_source_that_learns_is_not_added(docs):
    engine, shelf = engine_over(preset=Preset((Source("ngram_cache"),)))
    with pytest.raises(InvalidRequest, match="a source that learns cannot be added"):
        shelf.prepare_new("docs", docs)
    assert engine.source_names == ("ngram_cache",)


def test_states_are_added_if_verifiers_were_told_of_their_projection(docs, tmp_path):
    vectors = np.random.default_rng(0).normal(size=(sum(map(len, documents(10))) - 6, 8))
    preset = Preset((Source("corpus"), Source("dense")))
    states = write_dense(tmp_path / "states", documents(10), VOCAB_SIZE, vectors)
    same = write_dense(tmp_path / "same", documents(10), VOCAB_SIZE, vectors)
    other = write_dense(tmp_path / "other", documents(10), VOCAB_SIZE, vectors, model="sha256:" + "b" * 64)
    untold, shelf = engine_over(docs, preset=preset)
    with pytest.raises(InvalidRequest, match="verifiers were told no projection"):
        shelf.prepare_new("states", states)
    assert untold.projection is None
    told, shelf = engine_over(docs, states, preset=preset)
    with pytest.raises(InvalidRequest, match=f"told no projection .* got sha256:{'b' * 64}"):
        shelf.prepare_new("other", other)
    shelf.put(shelf.prepare_new("same", same))
    assert told.source_names == ("corpus:docs", "dense:states", "dense:same")


def told(token: int, state: np.ndarray) -> tuple[list[int], Feedback]:
    return [token], Feedback(hidden_state=state.astype(np.float32))


def test_open_sessions_draft_from_the_states_that_were_taken_up(tmp_path):
    vectors, large = np.eye(8)[:6], 70_000
    old = write_dense(tmp_path / "old", [[1, 2, 3, 4, 5, 6, 7]], VOCAB_SIZE, vectors)
    new = write_dense(tmp_path / "new", [[1, 2, 3, 60_000, 5, 6, 7]], large, vectors)
    odd = write_dense(
        tmp_path / "odd", [[1, 2, 3, 4, 5, 6, 7]], VOCAB_SIZE, vectors, model="sha256:" + "b" * 64
    )
    short = write_dense(tmp_path / "short", [[1, 2], [3, 4, 5, 6, 7]], VOCAB_SIZE, np.eye(8)[:5], np.uint16)
    stores = [open_segments(old)]
    engine = Engine(large, preset="dresd", datastores=stores)
    shelf = Shelf(engine, stores)
    session = engine.open_session([9])

    def drafted(state=vectors[1]) -> list[int]:
        session.commit(*told(3, state))
        return session.draft(4).token_ids.tolist()

    assert drafted() == [4, 5, 6, 7]
    shelf.put(shelf.prepare("old", new))
    assert drafted() == [60_000, 5, 6, 7], "ids that the old datastore did not have"
    with pytest.raises(InvalidRequest, match="verifiers use the old one"):
        shelf.put(shelf.prepare("old", odd))
    assert drafted() == [60_000, 5, 6, 7]
    shelf.unload("old")
    assert drafted() == []
    shelf.put(shelf.prepare_new("old", short))
    session.commit(*told(2, np.eye(8)[0]))
    assert session.draft(4).token_ids.tolist() == [], "what separates documents is no token"


def test_a_kind_that_no_source_drafts_from_is_refused(docs, tmp_path):
    _, shelf = engine_over(docs)
    states = write_dense(tmp_path / "states", [[1, 2, 3, 4]], VOCAB_SIZE, np.eye(3, 8))
    with pytest.raises(InvalidRequest, match=r"no source of the preset drafts from .* got kind dense"):
        shelf.prepare_new("states", states)


def test_a_source_that_learned_is_not_exchanged(docs, newer):
    _, shelf = engine_over(docs, preset=Preset((Source("ngram_cache"),)))
    with pytest.raises(InvalidRequest, match="start the server again"):
        shelf.prepare("docs", newer)
    with pytest.raises(InvalidRequest, match="start the server again"):
        shelf.unload("docs")


def test_a_link_is_followed_again(docs, newer, tmp_path):
    (tmp_path / "current").symlink_to(docs)
    stores = [open_segments(tmp_path / "current")]
    engine = Engine(VOCAB_SIZE, preset="corpus", datastores=stores)
    shelf = Shelf(engine, stores)
    (tmp_path / "next").symlink_to(newer)
    os.replace(tmp_path / "next", tmp_path / "current")
    shelf.put(shelf.prepare("docs"))
    assert first_token(engine.open_session(PROMPT)) == 50


def test_token_documents_are_checked_before_anything_is_written(docs):
    append = {"origin": "", "tokenizer_fingerprint": FINGERPRINT, "threads": 1}
    with pytest.raises(InvalidTokens):
        append_token_documents(docs, [ids(1, VOCAB_SIZE)], **append)
    with pytest.raises(TokenizerMismatch):
        append_token_documents(docs, [ids(1)], **{**append, "tokenizer_fingerprint": "sha256:" + "1" * 64})
    assert open_segments(docs).generation == 0
    nothing = append_token_documents(docs, [ids(), ids(*documents(10)[0])], **append)
    assert (nothing.num_added, nothing.num_duplicates, nothing.generation) == (0, 1, 0)
    twice = append_token_documents(docs, [ids(8, 9), ids(8, 9)], **append)
    assert (twice.num_added, twice.num_duplicates, twice.generation) == (1, 1, 1)
    verify_segments(docs)


def test_a_snapshot_is_the_generation_that_is_open(docs, tmp_path):
    append = {"origin": "", "tokenizer_fingerprint": FINGERPRINT, "threads": 1}
    snapshot(open_segments(docs), tmp_path / "first")
    append_token_documents(docs, [ids(7, 70)], **append)
    segments = open_segments(docs)
    append_token_documents(docs, [ids(7, 80)], **append)
    snapshot(segments, tmp_path / "second")
    assert verify_segments(tmp_path / "first").num_documents == 6
    assert verify_segments(tmp_path / "second").num_documents == 7
    assert open_segments(tmp_path / "second").generation == 1
    linked = (tmp_path / "second" / "tokens.bin").stat()
    assert linked.st_ino == (docs / "tokens.bin").stat().st_ino
    compact(docs, max_ratio=np.inf, threads=1)
    assert verify_segments(tmp_path / "second").num_documents == 7
    append_token_documents(tmp_path / "second", [ids(7, 90)], **append)
    assert verify_segments(docs).num_documents == 8
    with pytest.raises(DatastoreError, match="no longer on disk"):
        snapshot(segments, tmp_path / "third")
    with pytest.raises(DatastoreExists):
        snapshot(open_segments(docs), tmp_path / "second")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["docs", "first", "second"]


def test_a_snapshot_is_copied_where_links_cannot_be_made(docs, tmp_path, monkeypatch):
    def refused(*arguments, **options):
        raise OSError(18, "cross-device link")

    monkeypatch.setattr(os, "link", refused)
    snapshot(open_segments(docs), tmp_path / "copy")
    assert verify_segments(tmp_path / "copy").num_documents == 6


def test_what_is_read_into_memory_counts_as_resident_and_not_as_mapped(docs):
    read = open_segments(docs, "memory")
    assert residency(read.stores) == (0, read.num_bytes)
