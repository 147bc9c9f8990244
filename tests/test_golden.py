from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from retrieval_spec.datastore.documents import Documents
from retrieval_spec.datastore.generation import GENERATION_NAME, format_generation, parse_generation
from retrieval_spec.datastore.manifest import Facts
from retrieval_spec.datastore.segments import open_segments, verify_segments
from retrieval_spec.datastore.store import open_datastore, verify_datastore, write_datastore
from retrieval_spec.drafters.base import Budget
from retrieval_spec.drafters.corpus import CorpusDrafter
from retrieval_spec.drafters.recycling import RecyclingDrafter
from retrieval_spec.errors import DatastoreError
from retrieval_spec.structures.context_array import ContextArray
from retrieval_spec.structures.pruning import pruned
from tests.conftest import REPOSITORY
from tests.golden import GOLDEN
from tests.reference.datastore_format import Damaged, Store

pytestmark = pytest.mark.row("F9")

STORES = ("uint16", "int32", "empty")
ALL_STORES = (*STORES, "rows", "pruned")
GROWN = ("grown", "moved")
ANSWERS = json.loads((GOLDEN / "answers.json").read_text())


def bytes_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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
    assert bytes_of(tmp_path) == bytes_of(GOLDEN)


@pytest.mark.parametrize("name", STORES)
def test_the_builder_sorts_as_the_specification_says(name):
    store = open_datastore(GOLDEN / name)
    built = ContextArray.build(store.columns["tokens"], depth_tokens=store.manifest.depth_tokens)
    for column, values in built.columns().items():
        np.testing.assert_array_equal(values, store.columns[column])
        assert values.dtype == store.columns[column].dtype


def test_the_builder_prunes_as_the_specification_says():
    store = open_datastore(GOLDEN / "pruned")
    whole = ContextArray.build(store.columns["tokens"], depth_tokens=store.manifest.depth_tokens)
    built = pruned(whole, store.manifest.pruned_ngram_tokens)
    for column, values in built.columns().items():
        np.testing.assert_array_equal(values, store.columns[column])
    assert len(whole.positions) > len(built.positions)
    assert Store(GOLDEN / "pruned").documents() == ANSWERS["uint16"]["documents"]


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


# Stores that grew, and a reader that was written from the specification


@pytest.mark.parametrize("name", GROWN)
def test_golden_stores_that_grew_stay_readable(name):
    manifest = verify_segments(GOLDEN / name)
    assert (manifest.name, manifest.num_documents) == (f"golden-{name}", len(ANSWERS[name]["documents"]))


@pytest.mark.parametrize("name", GROWN)
def test_writing_a_generation_again_gives_every_byte(tmp_path, name):
    data = (GOLDEN / name / GENERATION_NAME).read_bytes()
    assert format_generation(parse_generation(data)) == data
    for store in open_segments(GOLDEN / name).stores:
        known = {field: getattr(store.manifest, field) for field in Facts.__dataclass_fields__}
        copy = tmp_path / store.path.name
        write_datastore(copy, Facts(**known), store.columns)
        for file, written in bytes_of(copy).items():
            assert (store.path / file).read_bytes() == written


@pytest.mark.parametrize("name", [*STORES, *GROWN])
def test_the_package_finds_what_a_golden_store_holds(name):
    told = ANSWERS[name]
    parts = [Documents.from_columns(store.columns) for store in open_segments(GOLDEN / name).stores]
    held = [(token_ids.tolist(), origin) for part in parts for token_ids, origin in part.each()]
    assert [document for document, _ in held] == told["documents"]
    assert [origin for _, origin in held] == [origin or "" for origin in told["origins"]]
    assert [number for part in parts for number in part.ids.tolist()] == told["ids"]


@pytest.mark.parametrize("name", [*STORES, *GROWN])
def test_the_package_drafts_what_follows_the_longest_matches(name):
    drafter = CorpusDrafter.open(200_000, GOLDEN / name)
    for one in ANSWERS[name]["matches"]:
        context = np.array(one["query"], np.int32)
        tree = drafter.start(context).propose(Budget(max_nodes=64, max_depth_nodes=1))
        drafted = tree.token_ids.tolist()
        followers = set(one["next"]) - {-1}
        assert followers <= set(drafted)
        if followers:
            assert drafted[0] in followers


def test_the_answers_say_something():
    found = [one for told in ANSWERS.values() for one in told["matches"]]
    assert sum(one["length"] == 4 for one in found) >= 3
    assert any(len(set(one["next"])) > 1 for one in found)
    assert any(-1 in one["next"] for one in found)


@pytest.mark.parametrize("name", [*STORES, *GROWN])
def test_a_reader_written_from_the_specification_finds_the_same(name):
    store, segments = Store(GOLDEN / name), open_segments(GOLDEN / name)
    assert store.generation == segments.generation
    for ours, theirs in zip(store.segments, segments.stores, strict=True):
        assert ours.columns.keys() == theirs.columns.keys()
        for column, values in ours.columns.items():
            np.testing.assert_array_equal(values, theirs.columns[column], strict=True)
        for key in ("kind", "num_tokens", "num_documents", "vocab_size", "depth_tokens", "separator"):
            assert ours.manifest[key] == getattr(theirs.manifest, key)
    told = ANSWERS[name]
    assert store.documents() == told["documents"]
    assert store.origins() == told["origins"]
    for one in told["matches"]:
        assert store.longest(one["query"]) == (one["length"], one["next"])


@pytest.mark.row("F1", "F9")
@pytest.mark.parametrize("name", [*STORES, "rows", *GROWN])
def test_both_readers_find_a_flipped_bit_in_any_file(tmp_path, name):
    for file, data in bytes_of(GOLDEN / name).items():
        if not data:
            continue
        copy = shutil.copytree(GOLDEN / name, tmp_path / "copy")
        altered = bytearray(data)
        altered[len(data) // 2] ^= 1
        (copy / file).write_bytes(altered)
        with pytest.raises((Damaged, ValueError, KeyError)):
            Store(copy)
        with pytest.raises(DatastoreError):
            verify_segments(copy)
        shutil.rmtree(copy)
