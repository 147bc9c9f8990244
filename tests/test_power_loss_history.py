"""Power that fails while history is kept: what was written is there, and what was forgotten is gone."""

from __future__ import annotations

import shutil

import pytest

from retrieval_spec.datastore.history_folder import HistoryFolder
from retrieval_spec.datastore.history_segment import Text
from tests.simulated_disk import crash_states, key_of, needs_proc, recording, tree_of, write_tree
from tests.strategies import as_int32

pytestmark = needs_proc

VOCAB_SIZE = 1_000
NOW_S = 1_700_000_000


def opened(place):
    return HistoryFolder.open(place, VOCAB_SIZE)


def numbers_of(history):
    return [int(one.output[0]) for one in history.read("ours")]


def append(history, number):
    history.append("ours", [Text(as_int32([7]), as_int32([number] * 40))], NOW_S)


WORKS = {
    "the first text": ([], lambda history: append(history, 0), [0]),
    "a text behind others": ([0, 1], lambda history: append(history, 2), [0, 1, 2]),
    "forgetting": ([0, 1], lambda history: history.forget("ours"), []),
}


@pytest.mark.quick
@pytest.mark.row("D2")
@pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "unordered"])
@pytest.mark.parametrize("name", WORKS)
def test_after_power_loss_history_is_as_before_or_as_it_was_said_to_be(tmp_path, name, ordered):
    begins_with, work, gives = WORKS[name]
    (tmp_path / "disk").mkdir()
    history = opened(tmp_path / "disk" / "history")
    for number in begins_with:
        append(history, number)
    before = tree_of(tmp_path / "disk")
    with recording(tmp_path / "disk") as notes:
        work(history)
    history.close()
    found, known = set(), set()
    for count, tree in crash_states(before, notes.events, ordered):
        is_done = count == len(notes.events)
        if (is_done, key_of(tree)) not in known:
            known.add((is_done, key_of(tree)))
            found.add((is_done, *after(tmp_path / "state", tree)))
    assert found == {(False, *begins_with), (False, *gives), (True, *gives)}


def after(folder, tree):
    """What the next server finds in a state of the disk, on which it can go on."""
    write_tree(folder, tree)
    (folder / "history").chmod(0o700)
    history = opened(folder / "history")
    found = numbers_of(history)
    append(history, 9)
    assert numbers_of(history) == [*found, 9]
    assert history.forget("ours")
    assert [path.name for path in (folder / "history").iterdir()] == ["history.json"]
    history.close()
    shutil.rmtree(folder)
    return found
