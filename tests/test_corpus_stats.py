from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_spec import corpus_stats
from retrieval_spec.cli import main
from retrieval_spec.corpus_stats import (
    frequent_ngrams,
    num_distinct_ids,
    open_parts,
    quantiles,
    repeat_lengths,
    sample,
)
from retrieval_spec.datastore.store import open_datastore
from retrieval_spec.demo_model import demo_model_dir
from retrieval_spec.errors import DatastoreCorrupt, InvalidRequest
from tests.golden import GOLDEN, change_column, copy_golden
from tests.reference import corpus_stats as reference
from tests.stores import write_corpus

corpora = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=20), max_size=5)
segments_of_corpora = st.lists(corpora, min_size=1, max_size=3)


def parts_of(tmp_path, segments, dtypes=(np.uint16,)):
    """The corpora as the segments of one, with ids of the types in turn."""
    paths = [
        write_corpus(tmp_path / f"segment{number}", documents, 200_000, dtypes[number % len(dtypes)])
        for number, documents in enumerate(segments)
    ]
    return open_parts([open_datastore(path) for path in paths])


def joined(segments):
    return [document for documents in segments for document in documents]


def ignore(amount: int) -> None:
    pass


@settings(deadline=None, max_examples=60)
@given(segments_of_corpora, st.integers(1, 7))
def test_every_repeated_ngram_is_found_with_its_exact_count(tmp_path_factory, segments, chunk):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_stats, "_CHUNK_POSITIONS", chunk)
        patch.setattr(corpus_stats, "_without_shifts", lambda ngrams, num: ngrams[:num])
        parts = parts_of(tmp_path_factory.mktemp("ngrams"), segments, (np.uint16, np.int32))
        found = frequent_ngrams(parts, (1, 2, 5), 10_000, ignore)
    for size, ngrams in found.items():
        counts = reference.ngram_counts(joined(segments), size)
        for ngram in ngrams:
            assert counts[ngram.token_ids] == ngram.count > 1
        # What occurs once in every segment, no run of equal contexts tells.
        inside = [reference.ngram_counts(documents, size) for documents in segments]
        repeated = {ngram for counts in inside for ngram, count in counts.items() if count > 1}
        assert {ngram.token_ids for ngram in ngrams} == repeated
        assert [ngram.count for ngram in ngrams] == sorted((n.count for n in ngrams), reverse=True)


def test_the_most_frequent_of_many_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_stats, "_NUM_KEPT", 3)
    documents = [[first, 50] for first in range(20) for _ in range(first + 1)]
    found = frequent_ngrams(parts_of(tmp_path, [documents]), (2,), 10, ignore)
    assert [(ngram.token_ids, ngram.count) for ngram in found[2]] == [
        ((19, 50), 20),
        ((18, 50), 19),
        ((17, 50), 18),
    ]


def test_the_shifts_of_one_repeat_are_shown_once(tmp_path):
    repeat, other = list(range(10)), [30, 31, 32, 33]
    parts = parts_of(tmp_path, [[repeat] * 5 + [other] * 3 + [[7, 7, 7, 7, 7]]])
    found = frequent_ngrams(parts, (4,), 3, ignore)[4]
    assert [(ngram.token_ids, ngram.count) for ngram in found] == [
        ((0, 1, 2, 3), 5),
        ((3, 4, 5, 6), 5),
        ((6, 7, 8, 9), 5),
    ]
    assert frequent_ngrams(parts, (4,), 4, ignore)[4][3].token_ids == (30, 31, 32, 33)


def test_sizes_beyond_the_depth_are_refused(tmp_path):
    parts = parts_of(tmp_path, [[[1, 2, 3]]])
    for size in (0, 33):
        with pytest.raises(InvalidRequest, match="1 to 32"):
            frequent_ngrams(parts, (4, size), 3, ignore)


@settings(deadline=None, max_examples=60)
@given(segments_of_corpora)
def test_longest_repeats_are_those_of_all_segments(tmp_path_factory, segments):
    parts = parts_of(tmp_path_factory.mktemp("repeats"), segments, (np.uint16, np.int32))
    expected = reference.repeat_lengths(joined(segments), 32)
    assert repeat_lengths(parts).tolist() == [expected[length] for length in range(33)]


def test_a_position_is_no_repeat_of_itself(tmp_path):
    assert repeat_lengths(parts_of(tmp_path, [[list(range(100))]])).tolist() == [100] + [0] * 32


def test_a_narrow_separator_is_no_id_of_a_wide_segment(tmp_path):
    narrow, wide = [[1, 2], [2]], [[65_535, 2], [70_000, 65_535, 2]]
    parts = parts_of(tmp_path, [narrow, wide], (np.uint16, np.int32))
    expected = reference.repeat_lengths(narrow + wide, 32)
    assert repeat_lengths(parts).tolist() == [expected[length] for length in range(33)]
    assert num_distinct_ids(parts) == 4


def test_samples_are_always_the_same_numbers_without_repeats():
    assert sample(5, 10).tolist() == [0, 1, 2, 3, 4]
    assert sample(0, 10).tolist() == []
    chosen = sample(10**9, 1000)
    np.testing.assert_array_equal(chosen, sample(10**9, 1000))
    assert len(np.unique(chosen)) == 1000
    assert (np.diff(chosen) > 0).all()
    assert 4e8 < chosen.mean() < 6e8


def test_quantiles_of_nothing_are_nothing():
    assert quantiles(np.zeros(0, np.int64)) == {}
    assert quantiles(np.array([3, 1, 2])) == {
        "min": 1,
        "p10": 1.2,
        "p50": 2,
        "p90": 2.8,
        "p99": 2.98,
        "max": 3,
    }


def test_documents_that_do_not_rise_are_refused_before_they_are_read(tmp_path):
    store = copy_golden(tmp_path)
    for values in ([0, 9, 9, 17, 25], [0, 9, 15, 17, 34], [1, 9, 15, 17, 25], [0, -9, 15, 17, 25]):
        change_column(store, "documents", np.array(values, np.int64).tobytes())
        with pytest.raises(DatastoreCorrupt, match="does not rise"):
            open_parts([open_datastore(store)])


def test_damaged_columns_give_other_figures_but_no_crash(tmp_path):
    rng = np.random.default_rng(0)
    store = copy_golden(tmp_path)
    for _ in range(20):
        positions = rng.integers(0, 2**32, 29, dtype=np.uint32)
        positions[::2] %= 36
        change_column(store, "positions", positions.tobytes())
        parts = open_parts([open_datastore(store)])
        assert sum(repeat_lengths(parts)) == 29
        frequent_ngrams(parts, (1, 3), 5, ignore)


# The command


def inspected(capsys, *arguments) -> dict:
    assert main(["inspect", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_inspect_measures_a_corpus_beside_its_manifest(capsys):
    facts = inspected(capsys, GOLDEN / "uint16")
    assert facts["num_tokens"] == 34
    assert facts["num_distinct_ids"] == 8
    assert facts["document_tokens"]["max"] == 8
    assert facts["repeated_ngrams"]["4"][0] == {"count": 4, "token_ids": [2, 2, 2, 2]}
    assert facts["longest_repeats"]["num_positions"] == 29
    assert sum(facts["longest_repeats"]["share_by_tokens"].values()) == pytest.approx(1, abs=1e-3)
    assert facts["predicted_acceptance"]["num_documents"] == 4
    assert facts == inspected(capsys, GOLDEN / "uint16")


def test_inspect_without_a_sample_or_a_corpus_is_the_manifest(capsys):
    assert "num_distinct_ids" not in inspected(capsys, GOLDEN / "uint16", "--sample", "0")
    assert "num_distinct_ids" not in inspected(capsys, GOLDEN / "rows")


def test_inspect_of_an_empty_corpus_has_nothing_to_replay(capsys):
    facts = inspected(capsys, GOLDEN / "empty")
    assert facts["predicted_acceptance"]["mean_acceptance_length"] is None
    assert facts["document_tokens"] == {}


def test_inspect_for_people_has_a_line_for_every_ngram_and_a_bar_for_lengths(capsys):
    assert main(["inspect", str(GOLDEN / "uint16"), "--ngrams", "2", "3"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["1", "6", "x", "2", "2"] in lines
    assert ["2", "3", "x", "1", "4", "1"] in lines
    bars = [line for line in lines if line[0] == "from"]
    assert [line[1] for line in bars] == ["0", "1", "2", "3", "4"]
    assert sum(float(line[2].rstrip("%")) for line in bars) == pytest.approx(100, abs=0.5)
    assert sum(len(line[3]) for line in bars if len(line) > 3) == pytest.approx(60, abs=3)


def test_ngrams_are_shown_as_the_text_of_the_tokenizer(tmp_path, capsys):
    text = "snake_case = other_case\n" * 30
    (tmp_path / "text.py").write_text(text)
    command = ["build", str(tmp_path / "text.py"), "--tokenizer", str(demo_model_dir()), "--json"]
    assert main([*command, "--out", str(tmp_path / "store")]) == 0
    capsys.readouterr()
    facts = inspected(capsys, tmp_path / "store", "--tokenizer", demo_model_dir())
    assert all(ngram["text"] in text for ngram in facts["repeated_ngrams"]["8"])
    assert main(["inspect", str(tmp_path / "store"), "--tokenizer", str(demo_model_dir())]) == 0
    assert f" x {facts['repeated_ngrams']['8'][0]['text']!r}" in capsys.readouterr().out
    assert main(["inspect", str(GOLDEN / "uint16"), "--tokenizer", str(demo_model_dir())]) == 2
    assert "another tokenizer" in capsys.readouterr().err


def test_bad_numbers_end_with_one_line_and_exit_code_2(capsys):
    for arguments in (("--sample", "-1"), ("--ngrams", "5"), ("--ngrams", "0"), ("--tokenizer", "nowhere")):
        assert main(["inspect", str(GOLDEN / "uint16"), *arguments]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert len(said.err.splitlines()) == 1
