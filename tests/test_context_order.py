from __future__ import annotations

import argparse

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_spec.commands.verify import verify_command
from retrieval_spec.datastore.store import open_datastore, verify_datastore
from retrieval_spec.errors import DatastoreCorrupt
from retrieval_spec.structures import context_order
from retrieval_spec.structures.context_array import ContextArray
from retrieval_spec.structures.context_order import check_order, sampled_order, whole_order
from tests.golden import GOLDEN, change_column, copy_golden
from tests.stores import array_of, write_corpus

pytestmark = pytest.mark.row("F3")

documents = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=6)


def verify(path, order: str):
    return verify_command(argparse.Namespace(datastore=path, order=order))


def is_accepted(array: ContextArray) -> bool:
    try:
        check_order(array, whole_order(len(array.positions)), lambda amount: None)
    except DatastoreCorrupt:
        return False
    return True


@settings(deadline=None)
@given(documents, st.integers(1, 6), st.data())
def test_the_whole_order_accepts_what_the_builder_sorted_and_nothing_else(corpus, depth, data):
    array = array_of(corpus, np.uint16, depth)
    assert is_accepted(array)
    others = list(data.draw(st.permutations(array.positions.tolist())))
    changed = ContextArray(array.tokens, np.array(others, np.uint32), array.buckets, depth)
    assert is_accepted(changed) == (others == array.positions.tolist())


@settings(deadline=None)
@given(documents, st.data())
def test_any_other_positions_are_refused_without_a_crash(corpus, data):
    array = array_of(corpus, np.int32, 4)
    values = st.one_of(st.integers(0, len(array.tokens) + 1), st.integers(0, 2**32 - 1))
    size = len(array.positions)
    others = data.draw(st.lists(values, min_size=size, max_size=size))
    changed = ContextArray(array.tokens, np.array(others, np.uint32), array.buckets, 4)
    assert is_accepted(changed) == (others == array.positions.tolist())


@pytest.mark.row("F9")
@pytest.mark.parametrize("name", ["uint16", "int32", "empty"])
@pytest.mark.parametrize("order", ["sampled", "whole"])
def test_golden_stores_are_in_order(name, order):
    num_positions = len(open_datastore(GOLDEN / name).columns["positions"])
    assert verify(GOLDEN / name, order)["num_positions_checked"] == num_positions


def test_a_store_that_sorts_nothing_has_no_order_to_verify():
    assert "order" not in verify(GOLDEN / "rows", "whole")


def test_every_swap_of_two_positions_under_valid_checksums_is_found(tmp_path):
    store = copy_golden(tmp_path)
    positions = open_datastore(store).columns["positions"].copy()
    for first in range(len(positions)):
        for second in range(first):
            swapped = positions.copy()
            swapped[[first, second]] = positions[[second, first]]
            change_column(store, "positions", swapped.tobytes())
            if second in (0, first - 1):
                verify_datastore(store)  # neither checksums nor bounds tell
            with pytest.raises(DatastoreCorrupt, match="out of order at index"):
                verify(store, "whole")


def test_samples_find_a_shuffled_store_and_the_whole_order_a_single_swap(tmp_path, monkeypatch):
    monkeypatch.setattr(context_order, "_SAMPLED_PIECES", 4)
    monkeypatch.setattr(context_order, "_PIECE_POSITIONS", 8)
    monkeypatch.setattr(context_order, "_CHUNK_POSITIONS", 100)
    rng = np.random.default_rng(0)
    path = write_corpus(tmp_path / "store", [rng.integers(0, 50, 400).tolist() for _ in range(5)], 50)
    assert verify(path, "sampled")["num_positions_checked"] == 32
    assert verify(path, "whole")["num_positions_checked"] == 2000
    positions = open_datastore(path).columns["positions"].copy()
    between = sampled_order(2000)[1][1] + 50
    swapped = positions.copy()
    swapped[[between, between + 1]] = positions[[between + 1, between]]
    change_column(path, "positions", swapped.tobytes())
    assert verify(path, "sampled")["intact"]
    with pytest.raises(DatastoreCorrupt, match=f"index {between + 1}"):
        verify(path, "whole")
    change_column(path, "positions", rng.permutation(positions).tobytes())
    with pytest.raises(DatastoreCorrupt, match="out of order"):
        verify(path, "sampled")
