"""Inspect, verify and export read all segments of a datastore that grew, and only those."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest

from retrieval_spec.cli import main
from retrieval_spec.commands.verify import verify_command
from retrieval_spec.datastore.manifest import Facts
from retrieval_spec.datastore.segments import changing, open_segments
from retrieval_spec.datastore.store import Datastore, open_datastore
from retrieval_spec.errors import DatastoreCorrupt
from tests.golden import change_column
from tests.reference.llamacpp_lookup import bounded, counted, read_lookup
from tests.stores import write_corpus

RNG = np.random.default_rng(0)
DOCUMENTS = [RNG.integers(0, 6, 60).tolist() for _ in range(12)]


def facts_of(store: Datastore) -> Facts:
    return Facts(**{field: getattr(store.manifest, field) for field in Facts.__dataclass_fields__})


@pytest.fixture
def grown(tmp_path):
    """Three segments, the own folder is the first of them."""
    path = write_corpus(tmp_path / "grown", DOCUMENTS[:4], 100)
    for start in (4, 8):
        other = open_datastore(write_corpus(tmp_path / f"part{start}", DOCUMENTS[start : start + 4], 100))
        with changing(path) as change:
            change.publish([*change.entries, change.write(facts_of(other), other.columns)])
    return path


def said(capsys, *arguments) -> dict:
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_inspect_measures_all_segments_as_one_corpus(tmp_path, grown, capsys):
    whole = said(capsys, "inspect", write_corpus(tmp_path / "whole", DOCUMENTS, 100))
    facts = said(capsys, "inspect", grown)
    assert len(facts["segments"]) == 3
    for key in ("num_tokens", "num_documents", "num_distinct_ids", "document_tokens", "longest_repeats"):
        assert facts[key] == whole[key]
    assert facts["repeated_ngrams"]["4"][0]["count"] == whole["repeated_ngrams"]["4"][0]["count"]
    predicted, expected = (one["predicted_acceptance"] for one in (facts, whole))
    assert predicted["num_documents"] == expected["num_documents"] == 12
    assert predicted["mean_acceptance_length"] == pytest.approx(expected["mean_acceptance_length"], rel=0.1)
    assert main(["inspect", str(grown)]) == 0
    assert "segments/" in capsys.readouterr().out


def test_verify_compares_the_order_of_every_segment(grown, capsys):
    found = said(capsys, "verify", grown, "--order", "whole")
    assert found["num_segments"] == 3
    assert found["num_positions_checked"] == sum(map(len, DOCUMENTS))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_permuted_segment_is_named(grown, number, monkeypatch):
    store = open_segments(grown).stores[number]
    permuted = np.random.default_rng(0).permutation(store.columns["positions"])
    listed = {entry.place: entry for entry in _entries(grown)}
    change_column(store.path, "positions", permuted.tobytes())
    # A generation seals the manifests that it lists: this is a writer that lists what it permuted.
    monkeypatch.setattr("retrieval_spec.datastore.segments.entry_of", lambda store, place: listed[place])
    with pytest.raises(DatastoreCorrupt, match=rf"{store.path.name} is damaged.*out of order"):
        verify_command(argparse.Namespace(datastore=grown, order="whole"))


def _entries(path):
    with changing(path) as change:
        return change.entries


def test_export_counts_all_segments_together_and_no_other_ones(tmp_path, grown, capsys):
    out = tmp_path / "lookup"
    said(capsys, "export", grown, "--format", "llamacpp-lookup", "--out", out)
    assert read_lookup(out.read_bytes()) == bounded(counted(DOCUMENTS), 1, None)
    with changing(grown) as change:
        change.publish(change.entries[1:])
    said(capsys, "export", grown, "--format", "llamacpp-lookup", "--out", out, "--replace")
    assert read_lookup(out.read_bytes()) == bounded(counted(DOCUMENTS[4:]), 1, None)
    assert said(capsys, "inspect", grown)["num_documents"] == 8
