"""A datastore of exactly the replayed outputs drafts as one without the output's own document would."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_spec.cli import main
from retrieval_spec.commands.replaying import Replayer
from retrieval_spec.corpus_stats import Part
from retrieval_spec.drafters.base import Budget
from retrieval_spec.drafters.corpus import CorpusDrafter
from retrieval_spec.own_documents import EDGE_TOKENS, OthersCorpus, own_documents
from retrieval_spec.structures.context_arrays import ContextArrays
from retrieval_spec.traces import Trace
from tests.stores import array_of, write_corpus
from tests.strategies import as_int32
from tests.test_leave_one_out import array_without, parts_of

VOCAB_SIZE = 300


def texts(seed: int = 0, num: int = 6) -> list[tuple[list[int], list[int]]]:
    """Prompts and outputs that share phrases, as outputs to like questions do."""
    rng = np.random.default_rng(seed)
    phrases = [rng.integers(0, VOCAB_SIZE, 9).tolist() for _ in range(12)]
    return [
        (
            [*rng.integers(0, VOCAB_SIZE, 10).tolist(), VOCAB_SIZE - 1],  # an id that all of them have
            sum((phrases[at] for at in rng.integers(0, 12, 7)), rng.integers(0, VOCAB_SIZE, 3).tolist()),
        )
        for _ in range(num)
    ]


def replayed(pairs, place, preset="default", *, leaves_own_out=True) -> dict:
    replayer = Replayer(VOCAB_SIZE, preset, (str(place),), 16, {}, leaves_own_out)
    traces = [Trace("code", as_int32(prompt), as_int32(output)) for prompt, output in pairs]
    tally = asdict(replayer(traces).tally)
    del tally["draft_us"]
    return {name: np.asarray(value).tolist() if name != "sources" else value for name, value in tally.items()}


def accepted(tally: dict) -> int:
    return tally["accepted_tokens"]


@pytest.mark.parametrize("preset", ["default", "corpus"])
def test_an_output_is_drafted_as_from_a_datastore_without_its_document(tmp_path, preset):
    pairs = texts()
    documents = [prompt + output for prompt, output in pairs]
    documents.insert(2, documents[0])  # one that came twice is left out twice
    whole = write_corpus(tmp_path / "store", documents, VOCAB_SIZE)
    for number, pair in enumerate(pairs):
        rest = [document for document in documents if document != pair[0] + pair[1]]
        (tmp_path / str(number)).mkdir()
        place = write_corpus(tmp_path / str(number) / "store", rest, VOCAB_SIZE)
        left_out = replayed([pair], whole, preset)
        assert left_out == replayed([pair], place, preset, leaves_own_out=False)
        assert 0 < accepted(left_out) < accepted(replayed([pair], whole, preset, leaves_own_out=False))


def test_several_outputs_in_a_row_leave_out_their_own_alone(tmp_path):
    pairs = texts(1)
    whole = write_corpus(tmp_path / "store", [output for _, output in pairs], VOCAB_SIZE)
    alone = [accepted(replayed([pair], whole, "corpus")) for pair in pairs]
    assert accepted(replayed(pairs, whole, "corpus")) == sum(alone)


def test_several_segments_are_left_as_if_it_was_in_none(tmp_path):
    documents = [prompt + output for prompt, output in texts(3, 8)]
    segments = [documents[:5], documents[3:]]  # two documents stand in both
    parts = parts_of(tmp_path, *segments, vocab_size=VOCAB_SIZE)
    num_nodes = 0
    for document in documents:
        others = OthersCorpus(parts, "")
        others.leave_out(as_int32(document))
        rest = [array_without(part, one, document) for part, one in zip(parts, segments, strict=True)]
        cursor = others.start(as_int32(document[:4]))
        oracle = CorpusDrafter(ContextArrays(rest)).start(as_int32(document[:4]))
        for at in range(4, len(document)):
            tree, expected = cursor.propose(Budget(16, 16)), oracle.propose(Budget(16, 16))
            for column in ("token_ids", "parents", "probs"):
                np.testing.assert_array_equal(getattr(tree, column), getattr(expected, column))
            num_nodes += len(tree)
            for one in (cursor, oracle):
                one.observe(as_int32(document[at : at + 1]))
    assert num_nodes > 1_000


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=6),
    st.lists(st.integers(0, 2), min_size=1, max_size=4),
)
def test_documents_that_hold_an_output_are_found(documents, output):
    lengths = np.array([len(document) for document in documents])
    starts = np.cumsum(np.append(0, lengths[:-1] + 1))
    part = Part(array_of(documents), starts, lengths)
    holding = [
        number
        for number, document in enumerate(documents)
        if any(document[at : at + len(output)] == output for at in range(len(document)))
    ]
    assert own_documents(part, as_int32(output)).tolist() == holding


def test_of_a_long_output_the_edges_may_differ():
    output = list(range(40))
    documents = [[9, *output[EDGE_TOKENS:-EDGE_TOKENS], 9], output[EDGE_TOKENS + 1 :], [5, *output, 5]]
    lengths = np.array([len(document) for document in documents])
    part = Part(array_of(documents), np.cumsum(np.append(0, lengths[:-1] + 1)), lengths)
    assert own_documents(part, as_int32(output)).tolist() == [0, 2]
    assert own_documents(part, as_int32([50])).tolist() == []


def test_the_command_leaves_documents_out(tmp_path, capsys):
    pairs = texts(2)
    rows = [{"prompt_ids": prompt, "output_ids": output} for prompt, output in pairs]
    (tmp_path / "code.jsonl").write_text("\n".join(map(json.dumps, rows)))
    store = write_corpus(tmp_path / "store", [prompt + output for prompt, output in pairs], VOCAB_SIZE)
    command = ["replay", str(tmp_path / "code.jsonl"), "--vocab-size", str(VOCAB_SIZE), "--json"]
    told = []
    for options in ([], ["--leave-one-out"], ["--leave-one-out", "--processes", "2"]):
        assert main([*command, "--datastore", str(store), *options]) == 0
        told.append(json.loads(capsys.readouterr().out)["all"]["mean_acceptance_length"])
    assert told[0] > told[1] == told[2] > 1.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "there is none"),
        (["--datastore", "store", "--preset", "rest"], "cannot leave documents out; got corpus:store"),
    ],
)
def test_what_cannot_leave_documents_out_is_refused(tmp_path, capsys, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    write_corpus(tmp_path / "store", [[1, 2, 3]], VOCAB_SIZE)
    (tmp_path / "code.jsonl").write_text('{"output_ids": [1, 2]}')
    arguments = ["replay", "code.jsonl", "--vocab-size", str(VOCAB_SIZE), "--leave-one-out", *options]
    assert main(arguments) == 2
    assert words in capsys.readouterr().err
