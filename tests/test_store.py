from __future__ import annotations

import errno
import json
import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from retrieval_spec.datastore import atomic
from retrieval_spec.datastore.manifest import Facts, TokenizerFacts
from retrieval_spec.datastore.store import (
    inspect_datastore,
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
from tests.conftest import REPOSITORY
from tests.fake_progress import ToldProgress
from tests.golden import COLUMNS, FILES, GOLDEN, change_column, change_manifest, copy_golden
from tests.stores import write_dense

STORES = ("uint16", "int32", "empty")


def facts_of(name: str = "uint16") -> tuple[Facts, dict[str, np.ndarray]]:
    store = open_datastore(GOLDEN / name)
    manifest = store.manifest
    facts = Facts(
        name=manifest.name,
        vocab_size=manifest.vocab_size,
        depth_tokens=manifest.depth_tokens,
        tokenizer=manifest.tokenizer,
        created_by=manifest.created_by,
    )
    return facts, dict(store.columns)


def names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


# Opening


@pytest.mark.parametrize("name", STORES)
def test_columns_are_plain_read_only_arrays_of_the_manifest(name):
    store = open_datastore(GOLDEN / name)
    for entry in store.manifest.files.values():
        column = store.columns[entry.column]
        assert type(column) is np.ndarray
        assert not column.flags.writeable
        assert column.flags.aligned
        assert (column.dtype.str, column.shape, column.nbytes) == (entry.dtype, entry.shape, entry.num_bytes)
    store.prefault()


CUTS = [
    (name, file, cut)
    for name in STORES
    for file in FILES
    for cut in ("missing", "longer by one byte", "shorter by one byte", "empty")
    if (GOLDEN / name / file).stat().st_size or cut in ("missing", "longer by one byte")
]


@pytest.mark.row("F1")
@pytest.mark.parametrize(("name", "file", "cut"), CUTS)
def test_a_file_of_another_size_is_refused(tmp_path, name, file, cut):
    store = copy_golden(tmp_path, name)
    path = store / file
    data = path.read_bytes()
    if cut == "missing":
        path.unlink()
    else:
        changed_bytes = {"longer by one byte": data + b"\0", "shorter by one byte": data[:-1], "empty": b""}
        path.write_bytes(changed_bytes[cut])
    with pytest.raises(DatastoreCorrupt, match=file):
        open_datastore(store)


def test_a_missing_folder_is_a_missing_path(tmp_path):
    for open_it in (open_datastore, verify_datastore, inspect_datastore):
        with pytest.raises(MissingPath, match="build it with"):
            open_it(tmp_path / "nowhere")


def test_a_file_or_a_folder_of_something_else_is_no_datastore(tmp_path):
    (tmp_path / "file").write_text("text")
    (tmp_path / "folder").mkdir()
    for name, said in (("file", "expected a folder"), ("folder", r"manifest\.json")):
        with pytest.raises(DatastoreCorrupt, match=said):
            open_datastore(tmp_path / name)


@pytest.mark.row("F5/F6")
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("kind", ["symlink", "dangling symlink", "fifo", "folder", "device"])
def test_only_regular_files_are_opened(tmp_path, file, kind):
    store = copy_golden(tmp_path)
    path = store / file
    target = tmp_path / "elsewhere"
    path.rename(target)
    if kind == "symlink":
        path.symlink_to(target)
    elif kind == "dangling symlink":
        path.symlink_to(tmp_path / "nowhere")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(DatastoreCorrupt, match=file):
        open_datastore(store)


@pytest.mark.row("F2")
def test_a_size_that_lies_is_refused_before_anything_is_mapped(tmp_path, monkeypatch):
    store = copy_golden(tmp_path)

    def lie(manifest):
        manifest.update(num_tokens=2**32, num_documents=5)
        manifest["files"]["tokens.bin"].update(shape=[2**32], bytes=2**33)
        manifest["files"]["positions.bin"].update(shape=[2**32 - 5], bytes=4 * (2**32 - 5))

    change_manifest(store, lie)
    for name in FILES[:4]:
        os.truncate(store / name, 0)
    monkeypatch.setattr(mmap, "mmap", None)
    with pytest.raises(DatastoreCorrupt, match=r"has another size; got \d+ bytes; expected \d+ bytes"):
        open_datastore(store)


def test_a_store_without_a_column_is_refused(tmp_path):
    store = copy_golden(tmp_path)
    change_manifest(store, lambda manifest: manifest["files"].pop("buckets.bin"))
    with pytest.raises(DatastoreCorrupt, match="lacks a column"):
        open_datastore(store)


def test_other_columns_and_stray_files_are_left_alone(tmp_path):
    facts, columns = facts_of()
    write_datastore(tmp_path / "store", facts, {**columns, "extra": np.arange(3, dtype=np.int64)})
    (tmp_path / "store" / "notes.txt").write_text("mine")
    assert verify_datastore(tmp_path / "store").files["extra.bin"].num_bytes == 24
    assert inspect_datastore(tmp_path / "store")["stray_files"] == ["notes.txt"]


def test_inspect_is_ready_for_json():
    shown = json.loads(json.dumps(inspect_datastore(GOLDEN / "int32")))
    assert shown["num_tokens"] == 34
    assert shown["num_documents"] == 5
    assert shown["tokenizer"]["fingerprint"].startswith("sha256:")
    assert shown["files"]["tokens.bin"]["bytes"] == 136
    assert shown["stray_files"] == []


def test_opening_takes_the_same_time_whatever_the_size(tmp_path):
    facts, _ = facts_of("empty")
    num_tokens = 20_000_000
    tokens = np.full(num_tokens, 7, np.int32)
    tokens[-1] = 2**31 - 1
    large = {
        "tokens": tokens,
        "positions": np.arange(1, num_tokens, dtype=np.uint32),
        "buckets": np.array([0] * 8 + [num_tokens - 1], np.uint32),
        "documents": np.zeros(1, np.int64),
    }
    write_datastore(tmp_path / "large", facts, large)
    assert best_open_ms(tmp_path / "large") <= 5.0


def best_open_ms(path: Path) -> float:
    times_ms = []
    for _ in range(10):
        began = time.perf_counter()
        store = open_datastore(path)
        times_ms.append(1e3 * (time.perf_counter() - began))
        del store
    return min(times_ms)


OPEN_UNDER_AUDIT = """
import sys
from retrieval_spec.datastore.store import open_datastore, verify_datastore
seen = []
sys.addaudithook(lambda event, arguments: seen.append(event))
open_datastore(sys.argv[1]).prefault()
verify_datastore(sys.argv[1])
allowed = {"open", "mmap.__new__", "object.__getattr__", "sys._getframe", "builtins.id"}
allowed |= {"_thread.start_new_thread", "_thread.start_joinable_thread"}  # to read ahead; told since 3.12
print(sorted(set(seen) - allowed))
"""


@pytest.mark.row("F5/F6")
def test_opening_runs_no_code_and_imports_nothing():
    command = [sys.executable, "-c", OPEN_UNDER_AUDIT, str(GOLDEN / "uint16")]
    unmeasured = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    ran = subprocess.run(command, env=unmeasured, capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert ran.stdout == "[]\n"


# Verifying


@pytest.mark.parametrize("name", [*STORES, "rows"])
def test_golden_stores_verify_and_tell_their_progress(name):
    told = ToldProgress()
    verify_datastore(GOLDEN / name, told)
    assert [stage for stage, *_ in told.stages] == ["checksums", "structure"]
    assert all(total == done for _, total, _, done in told.stages)


@pytest.mark.quick
@pytest.mark.row("F1")
@pytest.mark.parametrize("column", COLUMNS)
def test_every_flipped_byte_is_found_and_named(tmp_path, column):
    store = copy_golden(tmp_path)
    path = store / f"{column}.bin"
    data = path.read_bytes()
    chosen = random.Random(column)
    for index in range(len(data)):
        flipped = bytearray(data)
        flipped[index] ^= 1 << chosen.randrange(8)
        path.write_bytes(flipped)
        open_datastore(store)
        with pytest.raises(DatastoreCorrupt, match=rf"{column}\.bin was altered.*rebuild"):
            verify_datastore(store)


@pytest.mark.row("F1")
def test_a_changed_value_at_every_file_border_of_the_large_column_is_found(tmp_path):
    store = copy_golden(tmp_path, "int32")
    path = store / "buckets.bin"
    data = path.read_bytes()
    for index in (0, 4095, 4096, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:index] + bytes([data[index] ^ 1]) + data[index + 1 :])
        with pytest.raises(DatastoreCorrupt, match=r"buckets\.bin"):
            verify_datastore(store)


def changed(values: np.ndarray, index: int, value: int) -> np.ndarray:
    copy = values.copy()
    copy[index] = value
    return copy


CONTRADICTIONS = [
    ("tokens", 2, 50_000, "outside the vocabulary at index 2"),
    ("tokens", 2, 65_535, "number of separators"),
    ("tokens", 8, 7, "number of separators"),
    ("positions", 5, 34, "leaves the corpus at index 5"),
    ("positions", 0, 2**32 - 1, "leaves the corpus at index 0"),
    ("buckets", 0, 1, "does not span"),
    ("buckets", -1, 28, "does not span"),
    ("buckets", 3, 2**32 - 1, "falls at index 4"),
    ("documents", 0, 1, "does not begin"),
    ("documents", 1, 0, "does not rise at index 1"),
    ("documents", 1, -9, "does not rise at index 1"),
    ("documents", 2, 2**62, "does not rise at index 3"),
    ("documents", -1, 34, "leaves the corpus"),
    ("documents", 1, 8, "does not end with the separator"),
]


@pytest.mark.row("F2")
@pytest.mark.parametrize(("column", "index", "value", "said"), CONTRADICTIONS, ids=str)
def test_hashed_columns_that_contradict_each_other_are_refused(tmp_path, column, index, value, said):
    store = copy_golden(tmp_path)
    values = open_datastore(store).columns[column]
    change_column(store, column, changed(values, index, value).tobytes())
    open_datastore(store)
    with pytest.raises(DatastoreCorrupt, match=said):
        verify_datastore(store)


@pytest.mark.row("F2")
def test_negative_ids_are_refused(tmp_path):
    store = copy_golden(tmp_path, "int32")
    values = open_datastore(store).columns["tokens"]
    change_column(store, "tokens", changed(values, 3, -1).tobytes())
    with pytest.raises(DatastoreCorrupt, match="outside the vocabulary at index 3; got -1"):
        verify_datastore(store)


@pytest.mark.row("F2")
def test_tokens_without_documents_are_refused(tmp_path):
    facts, columns = facts_of("empty")
    tokens = np.array([1, 2], np.uint16)
    positions = np.array([1, 1], np.uint32)
    write_datastore(tmp_path / "store", facts, {**columns, "tokens": tokens, "positions": positions})
    with pytest.raises(DatastoreCorrupt, match="'documents' is empty"):
        verify_datastore(tmp_path / "store")


def test_checks_see_across_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("retrieval_spec.datastore.layout._CHUNK", 2)
    verify_datastore(GOLDEN / "uint16")
    for column, index, value, said in CONTRADICTIONS:
        store = copy_golden(tmp_path)
        values = open_datastore(store).columns[column]
        change_column(store, column, changed(values, index, value).tobytes())
        with pytest.raises(DatastoreCorrupt, match=said):
            verify_datastore(store)
        shutil.rmtree(store)


# Writing


@pytest.mark.parametrize("name", STORES)
def test_what_is_written_is_what_is_read(tmp_path, name):
    facts, columns = facts_of(name)
    written = write_datastore(tmp_path / "store", facts, columns)
    assert verify_datastore(tmp_path / "store") == written
    for column, values in open_datastore(tmp_path / "store").columns.items():
        np.testing.assert_array_equal(values, columns[column])
    assert names_in(tmp_path) == ["store"]


def test_foreign_byte_order_and_strides_are_stored_the_same(tmp_path):
    facts, columns = facts_of("int32")
    foreign = {
        name: np.repeat(values.astype(values.dtype.newbyteorder(">")), 2)[::2]
        for name, values in columns.items()
    }
    assert write_datastore(tmp_path / "store", facts, foreign) == open_datastore(GOLDEN / "int32").manifest


@pytest.mark.parametrize("occupant", ["store", "folder", "file", "dangling link"])
def test_a_taken_place_is_left_as_it_is(tmp_path, occupant):
    facts, columns = facts_of()
    place = tmp_path / "store"
    if occupant == "store":
        shutil.copytree(GOLDEN / "empty", place)
    elif occupant == "folder":
        place.mkdir()
    elif occupant == "file":
        place.write_text("mine")
    else:
        place.symlink_to("nowhere")
    with pytest.raises(DatastoreExists, match="--out"):
        write_datastore(place, facts, columns)
    if occupant != "store":
        with pytest.raises(DatastoreError, match="no datastore"):
            replace_datastore(place, facts, columns)
    assert names_in(tmp_path) == ["store"]
    assert (occupant != "file") or place.read_text() == "mine"


def test_a_place_in_no_folder_is_a_missing_path(tmp_path):
    facts, columns = facts_of()
    for write in (write_datastore, replace_datastore):
        with pytest.raises(MissingPath, match="create it first"):
            write(tmp_path / "no" / "where", facts, columns)


WRONG_COLUMNS = [
    ("tokens", np.zeros(3, np.int64)),
    ("tokens", np.zeros(3, np.uint32)),
    ("tokens", np.zeros(3, np.float32)),
    ("tokens", np.zeros((3, 3), np.uint16)),
    ("tokens", np.zeros(33, np.uint16)),
    ("positions", np.zeros(29, np.int64)),
    ("positions", np.zeros(30, np.uint32)),
    ("documents", np.zeros(5, np.uint32)),
    ("../escape", np.zeros(5, np.uint32)),
    ("Extra", np.zeros(5, np.uint32)),
]


@pytest.mark.parametrize(("name", "values"), WRONG_COLUMNS)
def test_columns_that_could_not_be_opened_are_not_written(tmp_path, name, values):
    facts, columns = facts_of()
    with pytest.raises(InvalidRequest):
        write_datastore(tmp_path / "store", facts, {**columns, name: values})
    with pytest.raises(InvalidRequest):
        write_datastore(tmp_path / "store", facts, {k: v for k, v in columns.items() if k != "documents"})
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    "change",
    [{"name": ""}, {"name": "a\nb"}, {"kind": "graph"}, {"vocab_size": 0}, {"depth_tokens": 65}],
    ids=str,
)
def test_facts_that_could_not_be_read_are_not_written(tmp_path, change):
    facts, columns = facts_of()
    with pytest.raises(InvalidRequest):
        write_datastore(tmp_path / "store", Facts(**{**facts.__dict__, **change}), columns)
    assert names_in(tmp_path) == []


KNOWN = {
    "ids": np.arange(5, dtype=np.int64),
    "origins": np.zeros(5, np.uint32),
    "origin_names": np.frombuffer(b"a.txt", np.uint8),
}
WRONG_KNOWLEDGE = [
    ({"ids": None}, "some columns about documents are missing"),
    ({"origin_names": None}, "some columns about documents are missing"),
    ({"ids": KNOWN["ids"].astype(np.int32)}, "column 'ids' is of another type"),
    ({"origins": KNOWN["origins"][:4]}, "column 'origins' has another length; got 4; expected 5"),
]


@pytest.mark.parametrize(("change", "said"), WRONG_KNOWLEDGE, ids=range(len(WRONG_KNOWLEDGE)))
def test_half_of_what_is_known_of_documents_is_not_written(tmp_path, change, said):
    facts, columns = facts_of()
    known = {name: column for name, column in {**KNOWN, **change}.items() if column is not None}
    with pytest.raises(InvalidRequest, match=said):
        write_datastore(tmp_path / "store", facts, {**columns, **known})
    assert names_in(tmp_path) == []


def test_names_of_origins_that_are_no_text_are_found(tmp_path):
    facts, columns = facts_of()
    names = np.frombuffer(b"a\xff.txt", np.uint8)
    write_datastore(tmp_path / "store", facts, {**columns, **KNOWN, "origin_names": names})
    with pytest.raises(DatastoreCorrupt, match="column 'origin_names' is no text"):
        verify_datastore(tmp_path / "store")


def test_states_that_do_not_say_of_which_model_are_not_written(tmp_path):
    with pytest.raises(InvalidRequest, match="does not say which model its states are of"):
        write_dense(tmp_path / "store", [[1, 2, 3, 4]], 100, np.eye(3, 8), model="")
    assert names_in(tmp_path) == []


SEAMS = ("mkdir", "open", "write", "fsync", "rename")
FAILURES = (
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EIO, "Input/output error"),
    KeyboardInterrupt(),
)


WAYS = ("write", "exchange", "two renames")


@pytest.mark.row("D3")
@pytest.mark.parametrize("failure", FAILURES, ids=["ENOSPC", "EIO", "KeyboardInterrupt"])
@pytest.mark.parametrize("way", WAYS)
def test_a_failure_at_any_call_leaves_nothing_half_written(tmp_path, monkeypatch, way, failure):
    if way == "two renames":
        monkeypatch.setattr(atomic, "_swap", lambda first, second: False)
    old = "nothing" if way == "write" else "golden-empty"
    outcomes = []
    for seam in SEAMS:
        for call in range(1, 40):
            outcomes.append(outcome_of_failure(tmp_path / "store", monkeypatch, way, seam, call, failure))
            if outcomes[-1] == "never failed":
                break
    assert outcomes.count("never failed") == len(SEAMS)
    assert outcomes.count(old) >= 15  # most failures come before the new store is in place
    assert set(outcomes) <= {old, "golden-uint16", "never failed"}


def outcome_of_failure(place, monkeypatch, way, seam, call, failure) -> str:
    """Returns the name of the store that stands at the place after the call-th os.<seam> failed."""
    facts, columns = facts_of()
    if way != "write":
        shutil.copytree(GOLDEN / "empty", place)
    with monkeypatch.context() as patch:
        counted = fail_at(patch, seam, call, failure)
        said = None
        try:
            (write_datastore if way == "write" else replace_datastore)(place, facts, columns)
        except (DatastoreError, KeyboardInterrupt) as error:
            said = error
    found = verify_datastore(place).name if place.exists() else "nothing"
    if found == "golden-uint16":
        atomic.sweep(place)  # the new store is there; of the old one a hidden rest may have stayed
    assert names_in(place.parent) == (["store"] if place.exists() else [])
    shutil.rmtree(place, ignore_errors=True)
    if counted() < call:
        return "never failed"
    assert said is not None or found == "golden-uint16"
    return found


def fail_at(patch, seam, call, failure):
    """Makes the call-th os.<seam> fail; returns how often it was called."""
    count = 0
    real = getattr(os, seam)

    def fails(*arguments, **options):
        nonlocal count
        count += 1
        if count == call:
            raise type(failure)(*failure.args)  # one that is raised again keeps all that it ever passed
        return real(*arguments, **options)

    patch.setattr(os, seam, fails)
    return lambda: count


@pytest.mark.row("D3")
def test_short_writes_are_completed(tmp_path, monkeypatch):
    facts, columns = facts_of()
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[: max(1, len(data) // 2)]))
    write_datastore(tmp_path / "store", facts, columns)
    assert verify_datastore(tmp_path / "store") == open_datastore(GOLDEN / "uint16").manifest


@pytest.mark.row("F4")
def test_what_an_open_store_shows_outlives_its_replacement_and_its_removal(tmp_path):
    facts, columns = facts_of()
    shutil.copytree(GOLDEN / "int32", tmp_path / "store")
    old = open_datastore(tmp_path / "store")
    before = {name: values.copy() for name, values in old.columns.items()}
    replace_datastore(tmp_path / "store", facts, columns)
    assert open_datastore(tmp_path / "store").manifest.name == "golden-uint16"
    shutil.rmtree(tmp_path / "store")
    for name, values in before.items():
        np.testing.assert_array_equal(old.columns[name], values)


@pytest.mark.row("K3")
@pytest.mark.parametrize("can_swap", [True, False])
def test_readers_always_find_one_whole_generation(tmp_path, monkeypatch, can_swap):
    # Where two names cannot be exchanged in one step, there is none for a moment, but never a mixture.
    if not can_swap:
        monkeypatch.setattr(atomic, "_swap", lambda first, second: False)
    generations = [facts_of("uint16"), facts_of("int32")]
    write_datastore(tmp_path / "store", *generations[0])
    wrong, stop = [], threading.Event()

    def read_once():
        try:
            verify_datastore(tmp_path / "store")
        except MissingPath as error:
            wrong.extend([error] if can_swap else [])
        except DatastoreError as error:
            wrong.append(error)

    def read():
        while not stop.is_set():
            read_once()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for swap in range(1, 21):
            replace_datastore(tmp_path / "store", *generations[swap % 2])
    finally:
        stop.set()
        reader.join()
    assert wrong == []
    assert names_in(tmp_path) == ["store"]


@pytest.mark.row("K3")
def test_two_writers_of_one_place_do_not_disturb_each_other(tmp_path):
    facts, columns = facts_of()
    with atomic.draft_folder(tmp_path / "store") as first:
        write_datastore(tmp_path / "store", facts, columns)  # sweeps, and leaves the living writer alone
        assert first.path.is_dir()
        with pytest.raises(DatastoreExists):
            first.publish()
    assert verify_datastore(tmp_path / "store").num_tokens == 34


# Crashes

CRASH = """
import os, signal, sys
from pathlib import Path
from retrieval_spec.datastore import atomic, store
place, seam, call, action, swap = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5]
if swap == "rename":
    atomic._swap = lambda first, second: False
real, count = getattr(os, seam), 0
def killed(*arguments, **options):
    global count
    count += 1
    if count == call:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **options)
source = store.open_datastore(sys.argv[6])
setattr(os, seam, killed)
m = source.manifest
facts = store.Facts(name=m.name, vocab_size=m.vocab_size, depth_tokens=m.depth_tokens, tokenizer=m.tokenizer,
                    created_by=m.created_by)
getattr(store, action)(place, facts, source.columns)
"""


def crash(place: Path, seam: str, call: int, action: str, swap: str = "exchange") -> int:
    arguments = [str(place), seam, str(call), action, swap, str(GOLDEN / "uint16")]
    return subprocess.run([sys.executable, "-c", CRASH, *arguments], cwd=REPOSITORY).returncode


POINTS = [
    ("fsync", 1),
    ("fsync", 3),
    ("fsync", 5),
    ("fsync", 6),
    ("write", 2),
    ("write", 5),
    ("rename", 1),
    ("fsync", 7),
]


@pytest.mark.row("D1")
@pytest.mark.parametrize(("seam", "call"), POINTS)
def test_after_kill_9_there_is_no_store_or_a_whole_one(tmp_path, seam, call):
    place = tmp_path / "store"
    assert crash(place, seam, call, "write_datastore") == -signal.SIGKILL
    if place.exists():
        verify_datastore(place)
        shutil.rmtree(place)
    write_datastore(place, *facts_of())
    assert verify_datastore(place).num_tokens == 34
    assert names_in(tmp_path) == ["store"]


REPLACE_POINTS = [
    ("exchange", "fsync", 7),
    ("exchange", "unlink", 1),
    ("rename", "rename", 1),
    ("rename", "rename", 2),
    ("rename", "fsync", 7),
    ("rename", "unlink", 2),
]


@pytest.mark.row("D1")
@pytest.mark.parametrize(("swap", "seam", "call"), REPLACE_POINTS)
def test_after_kill_9_in_a_replacement_the_old_or_the_new_store_comes_back(tmp_path, swap, seam, call):
    place = tmp_path / "store"
    shutil.copytree(GOLDEN / "int32", place)
    assert crash(place, seam, call, "replace_datastore", swap) == -signal.SIGKILL
    atomic.sweep(place)  # what the next writer of this place does first
    assert verify_datastore(place).name in ("golden-int32", "golden-uint16")
    assert names_in(tmp_path) == ["store"]
    replace_datastore(place, *facts_of())
    assert verify_datastore(place).name == "golden-uint16"


@pytest.mark.row("D4")
def test_leftovers_of_other_names_are_not_touched(tmp_path):
    facts, columns = facts_of()
    for name in (".store2.tmp-0123456789abcdef", ".store.tmp-0123", ".store.tmp-0123456789abcdef.txt"):
        (tmp_path / name).mkdir()
    (tmp_path / ".store.tmp-0123456789abcdef").mkdir()
    (tmp_path / ".store.tmp-00000000deadbeef").write_text("a file, and so not ours")
    write_datastore(tmp_path / "store", facts, columns)
    assert names_in(tmp_path) == [
        ".store.tmp-00000000deadbeef",
        ".store.tmp-0123",
        ".store.tmp-0123456789abcdef.txt",
        ".store2.tmp-0123456789abcdef",
        "store",
    ]


def test_a_facts_default_kind_is_the_context_array():
    facts = Facts(
        name="x", vocab_size=1, depth_tokens=1, tokenizer=TokenizerFacts("sha256:" + "0" * 64), created_by="x"
    )
    assert facts.kind == "context_array"
