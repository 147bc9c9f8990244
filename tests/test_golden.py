from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from retrieval_spec.datastore.manifest import Facts
from retrieval_spec.datastore.store import open_datastore, verify_datastore, write_datastore
from retrieval_spec.drafters.base import Budget
from retrieval_spec.drafters.corpus import CorpusDrafter
from retrieval_spec.drafters.recycling import RecyclingDrafter
from retrieval_spec.structures.context_array import ContextArray
from tests.conftest import REPOSITORY
from tests.golden import GOLDEN

STORES = ("uint16", "int32", "empty")
ALL_STORES = (*STORES, "rows")


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ALL_STORES)
def test_golden_stores_stay_readable(name):
    assert verify_datastore(GOLDEN / name).name == f"golden-{name}"


@pytest.mark.parametrize("name", ALL_STORES)
def test_writing_a_golden_store_again_gives_every_byte(tmp_path, name):
    store = open_datastore(GOLDEN / name)
    known = {field: getattr(store.manifest, field) for field in Facts.__dataclass_fields__}
    write_datastore(tmp_path / name, Facts(**known), store.columns)
    assert bytes_of(tmp_path / name) == bytes_of(GOLDEN / name)


def test_the_specification_in_plain_python_gives_every_byte(tmp_path):
    command = [sys.executable, "tools/make_golden.py", str(tmp_path)]
    subprocess.run(command, cwd=REPOSITORY, env={"PYTHONPATH": str(REPOSITORY)}, check=True)
    for name in ALL_STORES:
        assert bytes_of(tmp_path / name) == bytes_of(GOLDEN / name)


@pytest.mark.parametrize("name", STORES)
def test_the_builder_sorts_as_the_specification_says(name):
    store = open_datastore(GOLDEN / name)
    built = ContextArray.build(store.columns["tokens"], depth_tokens=store.manifest.depth_tokens)
    for column, values in built.columns().items():
        np.testing.assert_array_equal(values, store.columns[column])
        assert values.dtype == store.columns[column].dtype


@pytest.mark.parametrize(("name", "offset"), [("uint16", 0), ("int32", 65_531)])
def test_a_golden_store_drafts_what_follows_in_it(name, offset):
    drafter = CorpusDrafter.open(200_000, GOLDEN / name)
    context = np.array([8, 4, 1, 5], np.int32) + offset
    tree = drafter.start(context).propose(Budget(max_nodes=8))
    assert (tree.token_ids - offset).tolist() == [9, 2, 6]
    assert tree.parents.tolist() == [-1, 0, 1]


def test_an_empty_store_drafts_nothing():
    drafter = CorpusDrafter.open(10, GOLDEN / "empty")
    assert len(drafter.start(np.array([1, 2], np.int32)).propose(Budget(max_nodes=8))) == 0


def test_golden_rows_draft_what_they_hold():
    drafter = RecyclingDrafter.open(50_000, path=GOLDEN / "rows")
    tree = drafter.start(np.array([4], np.int32)).propose(Budget(max_nodes=8))
    assert sorted(tree.token_ids.tolist()) == list(range(10, 18))
    tree = drafter.start(np.array([4, 1], np.int32), "another").propose(Budget(max_nodes=1))
    assert tree.token_ids.tolist() == [5]
