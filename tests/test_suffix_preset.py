"""The preset `suffix` drafts what SuffixDecoding does, request by request."""

from __future__ import annotations

import random

import numpy as np
import pytest

from retrieval_spec.drafters.combination import best_score
from retrieval_spec.drafters.preset import Preset, Source
from retrieval_spec.drafters.presets import preset
from retrieval_spec.drafters.suffix import OutputsSuffixDrafter, Suffix
from retrieval_spec.engine import Engine
from retrieval_spec.errors import InvalidRequest
from tests.reference.suffix_decoding import SuffixDecoding
from tests.replay import drafted_paths, num_accepted, recorded

VOCAB_SIZE = 151_936


def preset_of(rule, max_outputs):
    """The preset's sources with other parameters, so that short texts meet every limit."""
    outputs = Source("suffix_outputs", {"rule": rule, "max_outputs": max_outputs})
    return Preset((Source("suffix_context", {"rule": rule}), outputs), combine=best_score)


def twin_of(rule, max_outputs):
    path = rule.shape == "path"
    return SuffixDecoding(rule.max_length_tokens, max_outputs, rule.factor, rule.offset, rule.min_prob, path)


class Both:
    """An engine and the twin, fed alike."""

    def __init__(self, rule, max_outputs, chosen):
        self.engine, self.twin = Engine(VOCAB_SIZE, preset=chosen), twin_of(rule, max_outputs)
        self.sessions, self.num_nodes = {}, 0

    def start(self, request, prompt):
        self.sessions[request] = self.engine.open_session(prompt)
        self.twin.start(request, prompt)

    def commit(self, request, tokens):
        self.sessions[request].commit(tokens)
        self.twin.commit(request, tokens)

    def check(self, request, max_nodes):
        tree = self.sessions[request].draft(max_nodes)
        assert drafted_paths(tree) == self.twin.draft(request, max_nodes)
        self.num_nodes += len(tree)
        return tree


RULES = {
    "suffix": (Suffix(), 100_000, preset("suffix")),
    "suffix-vllm": (Suffix(max_length_tokens=24, shape="path"), 10_000, preset("suffix-vllm")),
    "short, few outputs": (Suffix(max_length_tokens=6), 3, None),
    "generous path": (
        Suffix(max_length_tokens=5, factor=2.0, offset=1.0, min_prob=0.02, shape="path"),
        2,
        None,
    ),
    "generous tree": (Suffix(12, factor=4.0, offset=-2.5, min_prob=0.02), 4, None),
}


@pytest.mark.parametrize("name", RULES)
def test_random_requests_are_drafted_as_by_the_twin(name):
    rule, max_outputs, chosen = RULES[name]
    for seed in range(56 if chosen else 20):
        rng = random.Random(seed)
        both = Both(rule, max_outputs, chosen or preset_of(rule, max_outputs))
        alphabet = rng.choice([2, 3, 6])
        text = [rng.randrange(alphabet) for _ in range(30)]  # what requests have in common
        for request in range(9):
            both.start(request, rng.choices(range(alphabet), k=rng.randrange(12)))
            for _ in range(12):
                open_ones = range(max(0, request - 2), request + 1)
                at = rng.choice(open_ones)
                begin = rng.randrange(len(text))
                both.commit(at, rng.choice([text[begin : begin + 5], [rng.randrange(alphabet)]]))
                both.check(rng.choice(open_ones), rng.choice([1, 4, 16]))
        assert both.num_nodes > 100


@pytest.mark.parametrize("name", ["suffix", "suffix-vllm"])
def test_real_outputs_are_drafted_as_by_the_twin(name, data_dir):
    both = Both(*RULES[name])
    for request, (prompt, whole) in enumerate(recorded(data_dir, "maths_rollouts", 20)):
        both.start(request, prompt[-200:])
        output, at = whole[:80], 0
        while at < len(output):
            tree = both.check(request, 16)
            taken = num_accepted(drafted_paths(tree), output[at:]) + 1
            both.commit(request, output[at : at + taken])
            at += taken
    assert both.num_nodes > 1_000


def test_the_own_end_is_an_occurrence_and_others_have_none():
    session = Engine(VOCAB_SIZE, preset="suffix").open_session([5, 6, 7, 8, 5, 6])
    assert session.draft(2).probs.tolist() == [0.5, 1.0]
    engine = Engine(VOCAB_SIZE, preset="suffix")
    engine.open_session([]).commit([5, 6, 7, 8])
    assert engine.open_session([9, 5, 6]).draft(2).probs.tolist() == [1.0, 1.0]


def test_outputs_of_another_namespace_are_not_drafted():
    engine = Engine(VOCAB_SIZE, preset="suffix")
    engine.open_session([], "theirs").commit([5, 6, 7, 8])
    assert len(engine.open_session([9, 5, 6], "ours").draft(4)) == 0
    assert len(engine.open_session([9, 5, 6], "theirs").draft(4)) == 2


def test_outputs_stay_in_bounded_memory():
    outputs = Source("suffix_outputs", {"max_bytes": 2 << 20})
    engine = Engine(VOCAB_SIZE, preset=Preset((outputs,)))
    rng = np.random.default_rng(2)
    for _ in range(100):
        session = engine.open_session([])
        tokens = rng.integers(0, VOCAB_SIZE, 1_000)
        session.commit(tokens)
        session.close()
        found = engine.open_session(tokens[500:520]).draft(4)
        assert found.token_ids.tolist() == tokens[520:524].tolist()
    kept = engine.drafters["suffix_outputs"].namespaces.of("default")
    assert kept.texts.allocated_bytes <= 3 << 19
    assert sum(output.num_tokens for output in kept._kept) * 4 <= 1 << 19


@pytest.mark.parametrize(
    "parameters",
    [
        {"max_length_tokens": 0},
        {"max_length_tokens": 1 << 40},
        {"factor": float("nan")},
        {"offset": float("-inf")},
        {"min_prob": 1.5},
        {"shape": "bush"},
    ],
    ids=str,
)
def test_rules_that_make_no_sense_are_refused(parameters):
    with pytest.raises(InvalidRequest, match=r"out of range|unknown shape"):
        Suffix(**parameters)


@pytest.mark.parametrize("parameters", [{"max_outputs": 0}, {"max_bytes": -5}], ids=str)
def test_room_for_no_output_is_refused(parameters):
    with pytest.raises(InvalidRequest, match="out of range"):
        OutputsSuffixDrafter.open(VOCAB_SIZE, **parameters)
