"""Writers of a datastore that meet each other, or a system that refuses: what is there afterwards."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import gc
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from retrieval_spec.datastore import atomic, compaction, segments, store
from retrieval_spec.datastore.compaction import WORK_NAME, compacting
from retrieval_spec.datastore.generation import GENERATION_NAME, Generation
from retrieval_spec.datastore.locks import locked
from retrieval_spec.datastore.manifest import Facts, TokenizerFacts, check_label
from retrieval_spec.datastore.sealed_json import sealed_json
from retrieval_spec.datastore.segments import (
    changing,
    entry_of,
    open_segments,
    publish_generation,
    segment_at,
)
from retrieval_spec.datastore.store import (
    open_datastore,
    replace_datastore,
    verify_datastore,
    write_datastore,
)
from retrieval_spec.errors import (
    DatastoreCorrupt,
    DatastoreError,
    DatastoreExists,
    InvalidRequest,
    MissingPath,
)
from tests.golden import GOLDEN, copy_golden
from tests.stores import write_corpus
from tests.test_store import facts_of, names_in


def without_exchange(monkeypatch, why: int | str) -> None:
    """A system that cannot exchange two names, or refuses to: by a system's name, or by an error's number."""
    if why == "darwin":
        monkeypatch.setattr(sys, "platform", why)
        return

    def refuse(*_):
        ctypes.set_errno(why)
        return -1

    library = SimpleNamespace(renameat2=refuse) if isinstance(why, int) else SimpleNamespace()
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: library)


@pytest.mark.parametrize("why", ["darwin", "an old C library", errno.ENOSYS, errno.EINVAL, errno.ENOTSUP])
def test_a_store_is_replaced_also_where_names_cannot_be_exchanged(tmp_path, monkeypatch, why):
    shutil.copytree(GOLDEN / "empty", tmp_path / "store")
    without_exchange(monkeypatch, why)
    replace_datastore(tmp_path / "store", *facts_of())
    assert verify_datastore(tmp_path / "store").name == "golden-uint16"
    assert names_in(tmp_path) == ["store"]


def test_an_exchange_that_is_refused_leaves_the_old_store(tmp_path, monkeypatch):
    shutil.copytree(GOLDEN / "empty", tmp_path / "store")
    without_exchange(monkeypatch, errno.EACCES)
    with pytest.raises(DatastoreError, match="Permission denied"):
        replace_datastore(tmp_path / "store", *facts_of())
    assert verify_datastore(tmp_path / "store").name == "golden-empty"
    assert names_in(tmp_path) == ["store"]


@pytest.mark.parametrize("occupant", ["folder", "file"])
def test_a_place_that_is_taken_at_the_last_moment_is_left_as_it_is(tmp_path, monkeypatch, occupant):
    place = tmp_path / "store"

    def taken_after_the_check(target):
        if occupant == "folder":
            place.mkdir()
            (place / "mine").touch()
        else:
            place.touch()

    monkeypatch.setattr(atomic, "check_free", taken_after_the_check)
    with pytest.raises(DatastoreExists, match="--out"):
        write_datastore(place, *facts_of())
    assert names_in(tmp_path) == ["store"]
    assert names_in(place) == ["mine"] if occupant == "folder" else place.read_bytes() == b""


def test_a_writer_whose_folder_was_swept_before_it_was_locked_takes_another(tmp_path, monkeypatch):
    place, real, swept = tmp_path / "store", fcntl.flock, []

    def after_a_sweep(fd, operation):
        if not swept:
            swept.extend(names_in(tmp_path))
            atomic.sweep(place)
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", after_a_sweep)
    write_datastore(place, *facts_of())
    assert len(swept) == 1
    assert verify_datastore(place).name == "golden-uint16"
    assert names_in(tmp_path) == ["store"]


def test_a_store_that_is_replaced_again_and_again_is_given_up(tmp_path, monkeypatch):
    place, tries = copy_golden(tmp_path), []

    def replaced(*_):
        tries.append(os.stat(place).st_ino)
        shutil.copytree(place, tmp_path / "next")
        os.rename(place, tmp_path / f"old-{len(tries)}")
        os.rename(tmp_path / "next", place)
        raise DatastoreCorrupt("a file of the folder that is gone")

    monkeypatch.setattr(store, "_load_columns", replaced)
    with pytest.raises(DatastoreError, match="replaced again and again") as caught:
        open_datastore(place)
    assert not isinstance(caught.value, DatastoreCorrupt)
    assert len(set(tries)) == 8


@pytest.mark.parametrize("gone", [True, False])
def test_a_lock_is_that_of_the_folder_that_is_there_now(tmp_path, monkeypatch, gone):
    place, real, locks = tmp_path / "store", fcntl.flock, []
    place.mkdir()

    def replaced_meanwhile(fd, operation):
        real(fd, operation)
        locks.append(os.fstat(fd).st_ino)
        if len(locks) == 1:
            os.rename(place, tmp_path / "old")
            if not gone:
                place.mkdir()

    monkeypatch.setattr(fcntl, "flock", replaced_meanwhile)
    before = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    if gone:
        with pytest.raises(MissingPath), locked(place):
            pass
        assert len(locks) == 1
    else:
        with locked(place):
            assert locks == [os.stat(tmp_path / "old").st_ino, os.stat(place).st_ino]
    assert (os.listdir("/proc/self/fd") if before else []) == before


def test_a_folder_that_cannot_be_opened_is_not_called_missing(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(DatastoreError, match="Too many open files") as caught, locked(tmp_path):
        pass
    assert not isinstance(caught.value, MissingPath)


@pytest.fixture
def grown(tmp_path) -> Path:
    """A datastore of two segments."""
    place = write_corpus(tmp_path / "store", [[1, 2, 3]], 100)
    with changing(place) as change:
        columns = open_datastore(place).columns
        change.publish((*change.entries, change.write(facts_like(place), columns)))
    return place


def facts_like(place: Path, **changes: object) -> Facts:
    manifest = open_datastore(place).manifest
    facts = Facts(
        name=manifest.name,
        vocab_size=manifest.vocab_size,
        depth_tokens=manifest.depth_tokens,
        tokenizer=manifest.tokenizer,
        created_by=manifest.created_by,
    )
    return replace(facts, **changes)


def test_a_datastore_that_changes_again_and_again_is_given_up(grown, monkeypatch):
    tries = []

    def changed(*_):
        tries.append(number := 10 + len(tries))
        publish_generation(grown, Generation(number, entries))
        raise MissingPath("a segment that the newer generation does without")

    entries = segments.entries_of(open_segments(grown))
    monkeypatch.setattr(segments, "_opened", changed)
    with pytest.raises(DatastoreError, match="changed again and again"):
        open_segments(grown)
    assert len(tries) == 8


@pytest.mark.parametrize(
    "change",
    [{"tokenizer": TokenizerFacts(fingerprint="sha256:" + "1" * 64)}, {"depth_tokens": 5}],
    ids=["tokenizer", "depth"],
)
def test_segments_that_do_not_fit_each_other_are_refused(grown, change):
    with changing(grown) as held:
        other = held.write(facts_like(grown, **change), open_datastore(grown).columns)
        held.publish((*held.entries, other))
    with pytest.raises(DatastoreCorrupt, match="do not fit each other"):
        open_segments(grown)


@pytest.mark.parametrize("occupant", ["link", "folder", "pipe"])
def test_a_generation_that_is_no_file_is_refused_and_nothing_stays_open(grown, occupant):
    place = grown / GENERATION_NAME
    place.rename(grown / "elsewhere.json")
    if occupant == "link":
        place.symlink_to("elsewhere.json")
    elif occupant == "folder":
        place.mkdir()
    else:
        os.mkfifo(place)
    before = open_files()
    with pytest.raises(DatastoreCorrupt, match=GENERATION_NAME):
        open_segments(grown)
    assert open_files() == before


def open_files() -> list[str]:
    return os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []


@pytest.mark.row("D3")
def test_what_could_not_be_verified_is_closed_at_once(tmp_path):
    place = copy_golden(tmp_path)
    with open(place / "positions.bin", "r+b") as file:
        file.write(b"\xff")
    gc.collect()
    before = open_files()
    gc.disable()  # which would close it sooner or later
    try:
        for _ in range(3):
            with pytest.raises(DatastoreCorrupt, match=r"positions\.bin was altered"):
                verify_datastore(place)
            assert open_files() == before
    finally:
        gc.enable()


def test_prefault_reads_every_segment(grown, monkeypatch):
    read = []
    monkeypatch.setattr(store.Datastore, "prefault", lambda self: read.append(self.path))
    open_segments(grown).prefault()
    assert len(set(read)) == 2


def test_a_build_that_goes_on_throws_away_what_cannot_be_opened(grown):
    (place,) = (f"segments/{name}" for name in names_in(grown / "segments"))
    assert segment_at(grown, place) == entry_of(open_datastore(grown / place), place)
    (grown / place / "tokens.bin").unlink()
    assert segment_at(grown, place) is None
    assert not (grown / place).exists()
    assert segment_at(grown, place) is None


def test_a_generation_that_miscounts_its_segments_is_refused(grown):
    fields = json.loads((grown / GENERATION_NAME).read_bytes())
    assert fields.pop("num_segments") == 2
    del fields["generation_sha256"]
    data = sealed_json({**fields, "num_segments": 1}, "generation_sha256")
    (grown / GENERATION_NAME).write_bytes(data)
    with pytest.raises(DatastoreCorrupt, match="lists other segments; got 2; expected 1"):
        open_segments(grown)


def test_a_checksum_that_stands_twice_is_no_seal(tmp_path):
    place = copy_golden(tmp_path)
    manifest = (place / "manifest.json").read_bytes()
    seal = json.loads(manifest)["manifest_sha256"].encode()
    doubled = manifest.replace(b'"name":', b'"created_for": "' + seal + b'", "name":')
    (place / "manifest.json").write_bytes(doubled)
    with pytest.raises(DatastoreCorrupt, match="repeated checksum"):
        open_datastore(place)


@pytest.mark.parametrize("value", [10**5_000, -(10**5_000)], ids=["positive", "negative"])
def test_a_name_that_cannot_even_be_shown_is_refused(value):
    with pytest.raises(InvalidRequest, match="the name is not allowed; got a int; expected 1 to 128"):
        check_label("the name", value)


def test_a_compaction_with_nothing_to_merge_does_not_wait_for_another_writer(grown):
    with changing(grown), compacting(grown) as compaction:
        (grown / "segments" / "0123456789abcdef").mkdir()
        done = compaction.publish()
    assert (done.generation, done.num_segments, done.num_outdated) == (1, 2, 0)
    assert (grown / "segments" / "0123456789abcdef").exists()  # its writer may be at it
    with compacting(grown) as compaction:
        compaction.publish()
    assert not (grown / "segments" / "0123456789abcdef").exists()


def test_a_compaction_whose_folder_is_swept_before_it_is_locked_makes_it_again(grown, monkeypatch):
    sweeps, real = [], compaction.locked

    def after_a_sweep(folder, **options):
        if not sweeps:
            with changing(grown):
                sweeps.append((grown / WORK_NAME).exists())
        return real(folder, **options)

    monkeypatch.setattr(compaction, "locked", after_a_sweep)
    with compacting(grown):
        assert (grown / WORK_NAME).is_dir()
    assert sweeps == [False]
