from __future__ import annotations

import argparse
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_spec import export
from retrieval_spec.cli import main
from retrieval_spec.commands.export import export_command
from retrieval_spec.datastore.store import open_datastore
from retrieval_spec.errors import DatastoreCorrupt, DatastoreError, InvalidRequest
from retrieval_spec.export import Bounds, export_lookup
from tests.conftest import REPOSITORY
from tests.golden import GOLDEN, change_column, copy_golden
from tests.reference.llamacpp_lookup import bounded, counted, read_lookup, write_lookup
from tests.stores import write_corpus

corpora = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=15), max_size=6)
limits = st.tuples(st.integers(1, 3), st.one_of(st.none(), st.integers(1, 3)))


def exported(tmp_path, corpora_of_segments, dtype=np.uint16, bounds=None, first_id=0) -> bytes:
    """The file over stores that are the segments of one."""
    stores = []
    for number, documents in enumerate(corpora_of_segments):
        shifted = [[id_ + first_id for id_ in document] for document in documents]
        path = write_corpus(tmp_path / f"segment{number}", shifted, first_id + 100, dtype)
        stores.append(open_datastore(path))
    found = export_lookup(stores, tmp_path / "lookup", bounds=bounds)
    data = (tmp_path / "lookup").read_bytes()
    assert found.num_bytes == len(data)
    assert found.num_keys == len(read_lookup(data))
    assert found.num_continuations == sum(map(len, read_lookup(data).values()))
    return data


@settings(deadline=None, max_examples=60)
@given(st.lists(corpora, min_size=1, max_size=3), limits, st.integers(1, 40))
def test_a_reader_finds_the_counts_of_a_dictionary_over_the_documents(
    tmp_path_factory, segments, limits, chunk
):
    tmp_path = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "_CHUNK_POSITIONS", chunk)
        data = exported(tmp_path, segments, bounds=Bounds(*limits))
    documents = [document for segment in segments for document in segment]
    assert read_lookup(data) == bounded(counted(documents), *limits)


def test_wide_ids_and_segments_of_both_widths_are_counted_together(tmp_path):
    rng = np.random.default_rng(0)
    documents = [(rng.integers(0, 6, 40)).tolist() for _ in range(10)]
    narrow = write_corpus(tmp_path / "narrow", documents[:5], 200_000, np.uint16)
    wide = [[id_ + (130_000 if id_ == 3 else 0) for id_ in document] for document in documents[5:]]
    stores = [open_datastore(narrow), open_datastore(write_corpus(tmp_path / "wide", wide, 200_000))]
    export_lookup(stores, tmp_path / "lookup")
    found = read_lookup((tmp_path / "lookup").read_bytes())
    assert found == bounded(counted(documents[:5] + wide), 1, None)
    assert any(max(key) == 130_003 for key in found)


GOLDEN_DOCUMENTS = [[3, 1, 4, 1, 5, 9, 2, 6], [1, 4, 1, 5, 9], [7], [2] * 7, [3, 1, 4, 1, 5, 9, 2, 6]]


@pytest.mark.parametrize(("name", "first_id"), [("uint16", 0), ("int32", 65_531)])
def test_every_byte_of_a_golden_file_is_written_again_by_the_export_and_by_its_description(
    tmp_path, name, first_id
):
    golden = (REPOSITORY / "datastores" / "golden" / "llamacpp-lookup" / f"{name}.bin").read_bytes()
    export_lookup([open_datastore(GOLDEN / name)], tmp_path / "lookup")
    assert (tmp_path / "lookup").read_bytes() == golden
    documents = [[id_ + first_id for id_ in document] for document in GOLDEN_DOCUMENTS]
    assert write_lookup(bounded(counted(documents), 1, None)) == golden


def test_a_store_without_three_tokens_in_a_row_gives_an_empty_file(tmp_path):
    assert exported(tmp_path, [[[1, 2], [3]]]) == b""
    export_lookup([open_datastore(GOLDEN / "empty")], tmp_path / "empty")
    assert (tmp_path / "empty").read_bytes() == b""


def test_counts_that_llamacpp_could_not_multiply_are_made_smaller_in_proportion(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_MAX_PERCENT_COUNT", 10)
    documents = [[1, 2, 3]] * 30 + [[1, 2, 4]] * 10 + [[1, 2, 5]] + [[5, 5, 5]] * 10
    assert read_lookup(exported(tmp_path, [documents])) == {
        (1, 2): [(3, 6), (4, 2), (5, 1)],
        (5, 5): [(5, 10)],
    }


def test_a_store_that_holds_no_corpus_is_refused(tmp_path):
    with pytest.raises(InvalidRequest, match="of kind adjacency_rows; expected context_array"):
        export_lookup([open_datastore(GOLDEN / "rows")], tmp_path / "lookup")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_store_is_refused(tmp_path):
    store = copy_golden(tmp_path)
    positions = open_datastore(store).columns["positions"].copy()
    positions[3] = 2**32 - 1
    change_column(store, "positions", positions.tobytes())
    with pytest.raises(DatastoreCorrupt, match="leaves the corpus"):
        export_lookup([open_datastore(store)], tmp_path / "lookup")


@pytest.mark.parametrize("bounds", [Bounds(0), Bounds(1, 0)])
def test_bounds_that_leave_nothing_are_refused(tmp_path, bounds):
    with pytest.raises(InvalidRequest, match="out of range; got 0"):
        export_lookup([open_datastore(GOLDEN / "uint16")], tmp_path / "lookup", bounds=bounds)


def test_a_failure_leaves_the_file_that_was_there_and_nothing_else(tmp_path, monkeypatch):
    out = tmp_path / "lookup"
    out.write_bytes(b"mine")

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(DatastoreError, match="No space left"):
        export_lookup([open_datastore(GOLDEN / "uint16")], out, replace=True)
    assert [path.name for path in tmp_path.iterdir()] == ["lookup"]
    assert out.read_bytes() == b"mine"


def arguments(tmp_path, **changes) -> argparse.Namespace:
    given_ = {
        "datastore": str(GOLDEN / "uint16"),
        "out": str(tmp_path / "lookup"),
        "format": "llamacpp-lookup",
        "min_count": 2,
        "max_continuations": None,
        "replace": False,
    }
    return argparse.Namespace(**{**given_, **changes})


def test_the_command_says_what_the_file_holds_and_keeps_what_is_there(tmp_path):
    found = export_command(arguments(tmp_path))
    data = (tmp_path / "lookup").read_bytes()
    assert json.loads(json.dumps(found))["num_bytes"] == len(data)
    with pytest.raises(DatastoreError, match="--replace"):
        export_command(arguments(tmp_path))
    export_command(arguments(tmp_path, replace=True, max_continuations=1))
    assert len((tmp_path / "lookup").read_bytes()) <= len(data)


def test_bad_input_ends_with_one_line_and_exit_code_2(tmp_path, capsys):
    out = ("--format", "llamacpp-lookup", "--out", str(tmp_path / "lookup"))
    assert main(["export", str(GOLDEN / "rows"), *out]) == 2
    assert main(["export", str(GOLDEN / "uint16"), *out, "--min-count", "0"]) == 2
    assert main(["export", str(GOLDEN / "uint16"), *out[:3], str(tmp_path / "no" / "where")]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 3
    assert main(["export", str(GOLDEN / "uint16"), *out]) == 0
    assert "num keys" in capsys.readouterr().out
