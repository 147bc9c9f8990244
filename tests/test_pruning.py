"""A pruned datastore holds each n-gram once, finds what follows as before, and stays so when it changes."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_spec.build import build_datastore, build_recipe
from retrieval_spec.cli import main
from retrieval_spec.datastore.corpus import Corpus
from retrieval_spec.datastore.segments import open_segments, verify_segments
from retrieval_spec.drafters.base import Budget
from retrieval_spec.drafters.corpus import CorpusDrafter
from retrieval_spec.drafters.corpus_rest import Rest
from retrieval_spec.errors import DatastoreCorrupt, InvalidRequest
from retrieval_spec.grow import append_documents, compact, remove_documents
from retrieval_spec.structures.context_array import ContextArray
from retrieval_spec.structures.context_order import check_order, whole_order
from retrieval_spec.structures.pruning import check_pruned, pruned
from retrieval_spec.translate import translate_datastore
from tests.golden import GOLDEN, change_column, change_manifest, copy_golden
from tests.reference import pruning as reference
from tests.stores import array_of
from tests.strategies import token_streams
from tests.word_tokenizers import write_tokenizer

CORPORA = st.lists(token_streams(max_size=60).filter(bool), min_size=1, max_size=6)
SIZES = st.integers(2, 7)


@settings(deadline=None)
@given(documents=CORPORA, ngram_tokens=SIZES, depth=st.integers(6, 10))
def test_the_array_holds_what_the_plain_way_keeps(documents, ngram_tokens, depth):
    whole = array_of(documents, depth_tokens=depth)
    ours = pruned(whole, ngram_tokens)
    separator = np.iinfo(np.int32).max
    kept = reference.pruned(whole.tokens.tolist(), whole.positions.tolist(), separator, ngram_tokens)
    assert ours.positions.tolist() == kept
    before = ours.tokens[ours.positions.astype(np.int64) - 1]
    assert ours.buckets.tolist() == np.searchsorted(before, np.arange(whole.num_ids + 1)).tolist()
    pieces = whole_order(len(kept))
    check_order(ours, pieces, lambda _: None)
    check_pruned(ours, ngram_tokens, pieces, lambda _: None)
    ContextArray.from_columns(ours.columns(), depth_tokens=depth)


@settings(deadline=None)
@given(documents=CORPORA, ngram_tokens=SIZES)
def test_what_follows_a_context_is_found_as_before(documents, ngram_tokens):
    whole = array_of(documents)
    ours = pruned(whole, ngram_tokens)
    for document in documents:
        for stop in range(ngram_tokens - 1, len(document) + 1):
            for size in range(1, ngram_tokens):
                context = np.array(document[stop - size : stop], np.int32)
                expected, counts = whole.continuation_counts(context)
                found, fewer = ours.continuation_counts(context)
                assert found.tolist() == expected.tolist()
                assert (fewer <= counts).all()
                if size == ngram_tokens - 1:
                    num_short = sum(other[:size] == context.tolist() for other in documents)
                    assert (fewer <= 1 + num_short).all()


def test_repeats_make_a_corpus_smaller_and_their_lack_does_not():
    rng = np.random.default_rng(0)
    document = rng.integers(0, 1000, 300).tolist()
    assert len(pruned(array_of([document] * 10), 5).positions) == 300 + 9 * 3
    assert len(pruned(array_of([rng.permutation(300).tolist()]), 5).positions) == 300


@settings(deadline=None)
@given(documents=CORPORA, ngram_tokens=st.integers(2, 4), pick=st.integers(0, 10**6))
def test_an_n_gram_that_stands_there_twice_is_found_wherever_pieces_begin(documents, ngram_tokens, pick):
    whole = array_of(documents)
    ours = set(pruned(whole, ngram_tokens).positions.tolist())
    left_out = [place for place in whole.positions.tolist() if place not in ours]
    if not left_out:
        return
    extra = left_out[pick % len(left_out)]
    positions = [place for place in whole.positions.tolist() if place in ours or place == extra]
    before = whole.tokens[np.array(positions) - 1]
    buckets = np.searchsorted(before, np.arange(whole.num_ids + 1)).astype(np.uint32)
    wrong = ContextArray(whole.tokens, np.array(positions, np.uint32), buckets, whole.depth_tokens)
    edge = pick % (len(positions) + 1)
    pieces = [(start, stop) for start, stop in ((0, edge), (edge, len(positions))) if start < stop]
    check_order(wrong, pieces, lambda _: None)
    with pytest.raises(DatastoreCorrupt, match="is not pruned at index"):
        check_pruned(wrong, ngram_tokens, pieces, lambda _: None)


@pytest.mark.row("F3")
@given(positions=st.lists(st.integers(0, 2**32 - 1), max_size=30), tokens=st.lists(st.integers(-5, 9)))
def test_damaged_columns_are_no_danger(positions, tokens):
    columns = np.array(tokens, np.int32), np.array(positions, np.uint32)
    array = ContextArray(*columns, np.array([0, 3, 2**31, 5, len(positions)], np.uint32), 8)
    found = pruned(array, 3)
    assert set(found.positions.tolist()) <= set(positions)
    assert found.buckets[-1] == len(found.positions) <= len(positions)
    with contextlib.suppress(DatastoreCorrupt):
        check_pruned(array, 3, whole_order(len(positions)), lambda _: None)


# Datastores

WORDS = {f"w{n}": n for n in range(40)}
RNG = np.random.default_rng(3)
PHRASES = [" ".join(f"w{word}" for word in RNG.integers(0, 40, 12)) for _ in range(6)]


def texts(seed: int, count: int = 8) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(PHRASES[at] for at in rng.integers(0, 6, 4)) for _ in range(count)]


def write_texts(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return path


@pytest.fixture
def tokenizer(tmp_path) -> Path:
    return write_tokenizer(tmp_path / "model", WORDS)


@pytest.fixture
def lines(tmp_path) -> Path:
    return write_texts(tmp_path / "one.jsonl", texts(1))


@pytest.fixture
def store(tmp_path, lines, tokenizer) -> Path:
    return build_datastore(Corpus([lines]), tokenizer=tokenizer, out=tmp_path / "store", prune_ngram_tokens=3)


def positions_of(path: Path) -> list[list[int]]:
    return [segment.columns["positions"].tolist() for segment in open_segments(path).stores]


def expected_of(path: Path) -> list[list[int]]:
    """What the segments should hold, made from their tokens."""
    found = []
    for segment in open_segments(path).stores:
        whole = ContextArray.build(segment.columns["tokens"])
        tokens, separator = whole.tokens.tolist(), segment.manifest.separator
        found.append(reference.pruned(tokens, whole.positions.tolist(), separator, 3))
    return found


def test_a_pruned_datastore_is_built_verified_and_drafted_from(tmp_path, store, lines, tokenizer, capsys):
    whole = build_datastore(Corpus([lines]), tokenizer=tokenizer, out=tmp_path / "whole")
    assert verify_segments(store).pruned_ngram_tokens == 3
    assert positions_of(store) == expected_of(store)
    assert len(positions_of(store)[0]) < len(positions_of(whole)[0]) / 2
    context = np.array([WORDS[word] for word in PHRASES[0].split()[:6]], np.int32)
    trees = [
        CorpusDrafter.open(40, path).start(context).propose(Budget(max_nodes=4)) for path in (store, whole)
    ]
    assert trees[0].token_ids.tolist() == trees[1].token_ids.tolist()
    assert main(["verify", str(store), "--order", "whole", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_positions_checked"] == len(positions_of(store)[0])


def test_append_remove_and_compact_keep_a_datastore_pruned(tmp_path, store, lines, tokenizer):
    more = write_texts(tmp_path / "more.jsonl", texts(2))
    append_documents(store, Corpus([more]), tokenizer=tokenizer)
    assert len(positions_of(store)) == 2
    assert positions_of(store) == expected_of(store)
    compact(store)
    once = build_datastore(
        Corpus([lines, more]), tokenizer=tokenizer, out=tmp_path / "once", prune_ngram_tokens=3
    )
    assert positions_of(store) == positions_of(once)
    remove_documents(store, origins=["*more.jsonl"])
    assert positions_of(store) == expected_of(store)
    assert verify_segments(store).pruned_ngram_tokens == 3


def test_a_translation_is_pruned_as_its_original(tmp_path, store, tokenizer):
    other = write_tokenizer(tmp_path / "other", {word: id_ + 1 for word, id_ in WORDS.items()})
    place = translate_datastore(
        store, from_tokenizer=tokenizer, to_tokenizer=other, out=tmp_path / "translated"
    )
    assert verify_segments(place).pruned_ngram_tokens == 3
    assert positions_of(place) == expected_of(place)


def test_command_line_and_recipe_prune(tmp_path, lines, tokenizer, capsys):
    common = ["build", str(lines), "--tokenizer", str(tokenizer), "--json"]
    assert main([*common, "--out", str(tmp_path / "five"), "--prune"]) == 0
    assert json.loads(capsys.readouterr().out)["pruned_ngram_tokens"] == 5
    assert main([*common, "--out", str(tmp_path / "three"), "--prune", "3"]) == 0
    assert positions_of(tmp_path / "three") == expected_of(tmp_path / "three")
    recipe = tmp_path / "words.toml"
    recipe.write_text('inputs = ["one.jsonl"]\ntokenizer = "model"\nout = "r"\nprune_ngram_tokens = 3\n')
    assert positions_of(build_recipe(recipe)) == positions_of(tmp_path / "three")


@pytest.mark.parametrize("size", [1, -2, 34])
def test_a_size_out_of_range_is_refused_at_once(tmp_path, lines, size):
    with pytest.raises(InvalidRequest, match="kept once are out of range"):
        build_datastore(Corpus([lines]), tokenizer="no", out=tmp_path / "x", prune_ngram_tokens=size)


def test_what_counts_places_refuses_a_pruned_datastore(tmp_path, store, capsys):
    with pytest.raises(InvalidRequest, match="is pruned"):
        CorpusDrafter.open(40, store, Rest())
    command = ["export", str(store), "--format", "llamacpp-lookup", "--out", str(tmp_path / "x")]
    assert main(command) == 2
    assert "holds each 3-gram once" in capsys.readouterr().err
    assert main(["inspect", str(store), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["pruned_ngram_tokens"] == 3
    assert said["num_distinct_ids"] == len({word for phrase in PHRASES for word in phrase.split()})
    assert not {"repeated_ngrams", "longest_repeats", "predicted_acceptance"} & set(said)


def test_a_reader_that_does_not_know_the_key_refuses_the_store(tmp_path):
    place = copy_golden(tmp_path, "pruned")
    change_manifest(place, lambda manifest: manifest.pop("pruned_ngram_tokens"))
    with pytest.raises(DatastoreCorrupt, match="'positions' has another length"):
        open_segments(place)


@pytest.mark.parametrize("value", [0, 1, 6, "3", None, 3.0, True])
def test_a_manifest_with_a_size_out_of_range_is_refused(tmp_path, value):
    place = copy_golden(tmp_path, "pruned")  # of depth 4
    change_manifest(place, lambda manifest: manifest.update(pruned_ngram_tokens=value))
    with pytest.raises(DatastoreCorrupt, match="pruned_ngram_tokens"):
        open_segments(place)


def test_verify_finds_an_n_gram_that_was_not_pruned(tmp_path, capsys):
    place = copy_golden(tmp_path, "pruned")
    for column in ("positions", "buckets"):
        change_column(place, column, (GOLDEN / "uint16" / f"{column}.bin").read_bytes())
    assert main(["verify", str(place)]) == 2
    assert "is not pruned at index" in capsys.readouterr().err
