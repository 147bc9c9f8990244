"""Power that fails at any call of a writer: the old datastore or the new one is there, whole, and what was
done stays done. The disk is simulated (tests/simulated_disk.py); what it may hold is read by the package.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from retrieval_spec.datastore import atomic, segments
from retrieval_spec.datastore.compaction import compacting
from retrieval_spec.datastore.documents import Documents
from retrieval_spec.datastore.generation import GENERATION_NAME
from retrieval_spec.datastore.manifest import Facts, TokenizerFacts
from retrieval_spec.datastore.segments import changing, open_segments
from retrieval_spec.datastore.store import replace_datastore, write_datastore
from retrieval_spec.errors import DatastoreError, MissingPath
from tests.simulated_disk import Disk, Tree, crash_states, key_of, needs_proc, recording, tree_of, write_tree
from tests.stores import array_of

pytestmark = needs_proc

DOCUMENTS = {"old": [[1, 2, 3], [4, 5]], "new": [[7, 8], [9, 9, 9, 1]], "more": [[11, 12, 13]]}


def facts_and_columns(name: str):
    documents = DOCUMENTS[name]
    array = array_of(documents)
    starts = np.cumsum([0, *(len(document) + 1 for document in documents)])[:-1].astype(np.int64)
    facts = Facts(
        name=name,
        vocab_size=61,
        depth_tokens=array.depth_tokens,
        tokenizer=TokenizerFacts(fingerprint="sha256:" + "0" * 64),
        created_by="tests",
    )
    return facts, {**array.columns(), "documents": starts}


PARTS = {name: facts_and_columns(name) for name in DOCUMENTS}


def append(place: Path) -> None:
    with changing(place) as change:
        change.publish([*change.entries, change.write(*PARTS["more"])])


def keep_the_last(place: Path) -> None:
    """What removing and compacting do: other segments in the place of those before."""
    with changing(place) as change:
        change.publish([change.write(*PARTS["new"])])


def compact(place: Path) -> None:
    with compacting(place) as compaction:
        compaction.write(compaction.entries, *PARTS["new"])
        compaction.publish()


def replace_in_two_renames(place: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atomic, "_swap", lambda first, second: False)
        replace_datastore(place, *PARTS["new"])


@dataclass(frozen=True)
class Work:
    """What a writer does, from what, and what is read afterwards."""

    do: Callable[[Path], object]
    begins_with: tuple[str, ...]
    gives: list[str]


WORKS = {
    "write": Work(lambda place: write_datastore(place, *PARTS["new"]), (), ["new"]),
    "replace": Work(lambda place: replace_datastore(place, *PARTS["new"]), ("old",), ["new"]),
    "replace in two renames": Work(replace_in_two_renames, ("old",), ["new"]),
    "append": Work(append, ("old",), ["old", "more"]),
    "append again": Work(append, ("old", "more"), ["old", "more", "more"]),
    "put others in their place": Work(keep_the_last, ("old", "more"), ["new"]),
    "compact": Work(compact, ("old", "more"), ["new"]),
}


def begin(place: Path, names: tuple[str, ...]) -> None:
    if names:
        write_datastore(place, *PARTS[names[0]])
    for _ in names[1:]:
        append(place)


def found_at(place: Path) -> object:
    """What the next writer and its readers find: names of documents, nothing, or what is wrong."""
    try:
        atomic.sweep(place)
        opened = open_segments(place)
        opened.check()
    except MissingPath:
        return ()
    except DatastoreError as error:
        return str(error)
    return tuple(name for store in opened.stores for name in [name_of(store.columns)])


def name_of(columns) -> str:
    documents = Documents.from_columns(columns)
    edges = [*documents.starts.tolist(), len(documents.tokens)]
    held = [documents.tokens[start : stop - 1].tolist() for start, stop in itertools.pairwise(edges)]
    return next(name for name, expected in DOCUMENTS.items() if expected == held)


class Reader:
    """Reads states with the package itself, equal ones once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: dict[object, object] = {}

    def read(self, tree: Tree) -> object:
        key = key_of(without_drafts(tree))
        if key not in self.known:
            write_tree(self.folder, tree)
            self.known[key] = found_at(self.folder / "store")
            shutil.rmtree(self.folder)
        return self.known[key]


def without_drafts(tree: Tree) -> Tree:
    """Leaves out what stands in temporary folders and files: whatever it is, it is deleted unread."""
    return {
        name: b"" if ".tmp-" in name else without_drafts(content) if isinstance(content, dict) else content
        for name, content in tree.items()
    }


def recorded(folder: Path, work: Work) -> tuple[Tree, list[tuple]]:
    folder.mkdir()
    begin(folder / "store", work.begins_with)
    before = tree_of(folder)
    with recording(folder) as notes:
        work.do(folder / "store")
    return before, notes.events


def outcomes(reader: Reader, before: Tree, events: list[tuple], work: Work, ordered: bool) -> Counter:
    """How often the states were old, new, broken, or old after the work was said to be done."""
    found: Counter[str] = Counter()
    for count, tree in crash_states(before, events, ordered):
        seen = reader.read(tree)
        is_done = count == len(events)
        if seen == tuple(work.gives):
            found["new"] += 1
        elif seen == work.begins_with:
            found["lost" if is_done else "old"] += 1
        else:
            found["broken"] += 1
    return found


ORDERS = pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "unordered"])


@pytest.mark.quick
@pytest.mark.row("D2")
@ORDERS
@pytest.mark.parametrize("name", WORKS)
def test_after_power_loss_the_old_or_the_new_datastore_is_there(tmp_path, name, ordered):
    work = WORKS[name]
    before, events = recorded(tmp_path / "disk", work)
    found = outcomes(Reader(tmp_path / "state"), before, events, work, ordered)
    assert len(events) >= 19
    assert (found["broken"], found["lost"]) == (0, 0)
    assert found["old"] > 100
    assert found["new"] >= 1
    print(name, "ordered" if ordered else "unordered", dict(found))


def where_names_change(events: list[tuple]) -> list[int]:
    """After which calls a killed writer leaves names that are not on disk yet, or half of what it deletes."""
    kinds = [event[0] for event in events]
    last = max(number for number, kind in enumerate(kinds) if kind in ("rename", "exchange"))
    return [last + 1, *([last + 3] if "unlink" in kinds[last:] else [])]


@pytest.mark.row("D4")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if name == "compact" else ()) for name in WORKS]
)
@pytest.mark.parametrize(
    ("points", "ordered"),
    [
        (where_names_change, False),
        pytest.param(lambda events: range(1, len(events)), False, marks=pytest.mark.long),
        pytest.param(lambda events: range(1, len(events)), True, marks=pytest.mark.long),
    ],
    ids=["at names", "anywhere", "anywhere ordered"],
)
def test_power_that_fails_while_the_next_writer_clears_up_after_a_killed_one(tmp_path, name, ordered, points):
    work = WORKS[name]
    before, events = recorded(tmp_path / "disk", work)
    reader, found = Reader(tmp_path / "state"), Counter()
    for killed_after in sorted(set(points(events))):
        disk = Disk(before)
        for event in events[:killed_after]:
            disk.apply(event)
        again = tmp_path / f"after-{killed_after}"
        write_tree(again, disk.live())
        with recording(again) as notes:
            again_done = redo(again / "store", work)
        both = [*events[:killed_after], *notes.events]
        for count, tree in crash_states(before, both, ordered):
            if count >= killed_after:
                found["good" if reader.read(tree) in again_done else "broken"] += 1
    assert found["broken"] == 0
    assert found["good"] > 0
    print(name, "ordered" if ordered else "unordered", dict(found))


def redo(place: Path, work: Work) -> set[object]:
    """Lets the next writer do the same work, and returns what may be found until it is done, and then."""
    found = {work.begins_with, tuple(work.gives)}
    if not work.begins_with and place.exists():
        atomic.sweep(place)
    else:
        work.do(place)
        found.add(tuple([*work.gives, "more"] if work.do is append else work.gives))
    return found


# The checks themselves: bugs that are planted into the protocol must be noticed.


def no_sync_of_files(patch):
    real = os.fsync
    patch.setattr(os, "fsync", lambda fd: None if os.path.isfile(f"/proc/self/fd/{fd}") else real(fd))


def no_sync_of_the_manifest(patch):
    real = os.fsync

    def sync(fd):
        if not os.readlink(f"/proc/self/fd/{fd}").endswith("manifest.json"):
            real(fd)

    patch.setattr(os, "fsync", sync)


def no_sync_before_the_rename(patch):
    real = os.fsync

    def sync(fd):
        if ".tmp-" not in os.path.basename(os.readlink(f"/proc/self/fd/{fd}")):
            real(fd)

    patch.setattr(os, "fsync", sync)


def no_sync_of_the_parent(patch):
    patch.setattr(atomic, "sync_folder", lambda path: None)


def old_files_deleted_before_the_sync(patch):
    def exchange(self):
        os.fsync(self._dir_fd)
        assert atomic._swap(self.path, self.target)
        atomic._remove(self.path)
        atomic.sync_folder(self.target.parent)

    patch.setattr(atomic.Draft, "exchange", exchange)


def generation_written_in_place(patch):
    def publish(folder, generation):
        fd = os.open(folder / GENERATION_NAME, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(fd, segments.format_generation(generation))
        os.fsync(fd)
        os.close(fd)
        atomic.sync_folder(folder)

    patch.setattr(segments, "publish_generation", publish)


BUGS = {
    no_sync_of_files: "write",
    no_sync_of_the_manifest: "write",
    no_sync_before_the_rename: "write",
    no_sync_of_the_parent: "write",
    old_files_deleted_before_the_sync: "replace",
    generation_written_in_place: "append",
}


@pytest.mark.quick
@pytest.mark.row("D2m")
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_a_bug_that_is_planted_into_the_protocol_is_noticed(tmp_path, monkeypatch, bug):
    work = WORKS[BUGS[bug]]
    (tmp_path / "disk").mkdir()
    begin(tmp_path / "disk" / "store", work.begins_with)
    before = tree_of(tmp_path / "disk")
    with recording(tmp_path / "disk") as notes, pytest.MonkeyPatch.context() as patch:
        bug(patch)
        work.do(tmp_path / "disk" / "store")
    found = outcomes(Reader(tmp_path / "state"), before, notes.events, work, ordered=False)
    assert found["broken"] + found["lost"] > 0
