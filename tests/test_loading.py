from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from retrieval_spec.datastore.loading import LOADS, chosen_load
from retrieval_spec.datastore.segments import open_segments
from retrieval_spec.engine import Engine
from retrieval_spec.errors import DatastoreCorrupt, InvalidRequest
from tests.conftest import REPOSITORY
from tests.stores import write_corpus

DOCUMENTS = [[n % 50 for n in range(start, start + 3_000)] for start in range(40)]


@pytest.fixture
def store(tmp_path):
    return write_corpus(tmp_path / "store", DOCUMENTS, 60, np.uint16)


@pytest.mark.row("F4")
@pytest.mark.parametrize("load", LOADS)
def test_however_it_is_loaded_a_store_is_the_same(store, load):
    columns = open_segments(store, load).only.columns
    for name, column in open_segments(store).only.columns.items():
        assert columns[name].tolist() == column.tolist()
        assert not columns[name].flags.writeable


@pytest.mark.row("F4")
def test_a_folder_that_others_may_change_is_read_and_not_mapped(store):
    for mode, expected in ((0o755, "mmap"), (0o775, "mmap"), (0o757, "memory")):
        store.chmod(mode)
        fd = os.open(store, os.O_RDONLY)
        try:
            assert chosen_load("auto", fd) == expected
        finally:
            os.close(fd)


def test_an_unknown_way_is_refused(store):
    with pytest.raises(InvalidRequest, match="auto or mmap or memory"):
        open_segments(store, "disk")


@pytest.mark.row("F4")
def test_a_file_that_is_cut_while_it_is_read_is_refused(store, monkeypatch):
    real = os.preadv

    def cut(fd, buffers, offset):
        return real(fd, [buffers[0][:100]], offset) if offset == 0 else 0

    monkeypatch.setattr(os, "preadv", cut)
    with pytest.raises(DatastoreCorrupt, match="another size"):
        open_segments(store, "memory")


@pytest.mark.parametrize(
    ("load", "call"), [("mmap", (mmap, "mmap")), ("memory", (os, "preadv"))], ids=["mmap", "memory"]
)
def test_a_file_that_the_system_does_not_give_is_named(store, monkeypatch, load, call):
    def fail(*_, **__):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(*call, fail)
    with pytest.raises(DatastoreCorrupt, match=r"cannot (map|read) \w+\.bin; got .*Input/output error"):
        open_segments(store, load)


DRAFT_AFTER_A_CUT = """
import os, sys
from retrieval_spec.datastore.segments import open_segments
from retrieval_spec.engine import Engine
store = open_segments(sys.argv[1], sys.argv[2])
engine = Engine(60, preset="corpus", datastores=[store])
for name in os.listdir(sys.argv[1]):
    os.truncate(os.path.join(sys.argv[1], name), 0)
print(len(engine.open_session([5, 6, 7]).draft(16)))
"""


@pytest.mark.row("F4")
@pytest.mark.parametrize("load", ["memory", "mmap"])
def test_cutting_the_files_of_an_open_store_ends_only_who_mapped_them(store, load):
    done = subprocess.run(
        [sys.executable, "-c", DRAFT_AFTER_A_CUT, str(store), load],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    if load == "memory":
        assert (done.returncode, done.stdout.strip()) == (0, "16")
    else:
        assert done.returncode == -signal.SIGBUS


def test_an_engine_takes_what_is_open_already(store):
    opened = open_segments(store)
    drafts = [Engine(60, datastores=[place]).open_session([5, 6, 7]).draft(16) for place in (store, opened)]
    assert len(drafts[0]) > 0
    assert drafts[0] == drafts[1]
