"""The preset `sglang-ngram` drafts what its twin does, in every state of the trie."""

from __future__ import annotations

import random

import pytest

from retrieval_spec.drafters.ngram_trie import MIN_TRIE_NODES, NGramTrieDrafter, SuffixTrie
from retrieval_spec.drafters.preset import Preset, Source
from retrieval_spec.drafters.presets import preset
from retrieval_spec.engine import Engine
from retrieval_spec.errors import InvalidRequest
from tests.reference.acceptance import drafted_paths
from tests.reference.sglang_ngram import Trie
from tests.replay import recorded

VOCAB_SIZE = 151_936
FREQUENT = SuffixTrie(order="frequency")
SHORT = SuffixTrie(max_length_tokens=5, max_breadth=3)


class Both:
    """An engine and the twin, fed alike."""

    def __init__(self, rule, chosen=None, capacity=10_000_000):
        source = Source("ngram_trie", {"rule": rule, "max_trie_nodes": capacity})
        self.rule, self.engine = rule, Engine(VOCAB_SIZE, preset=chosen or Preset((source,)))
        self.twin = Trie(rule.max_length_tokens, capacity)
        self.contexts, self.sessions, self.num_nodes = {}, {}, 0

    def start(self, request, prompt):
        self.contexts[request] = list(prompt)
        self.sessions[request] = self.engine.open_session(prompt)

    def commit(self, request, tokens):
        self.sessions[request].commit(tokens)
        for token in tokens:
            self.contexts[request].append(token)
            self.twin.insert(self.contexts[request][-self.rule.max_length_tokens :])

    def check(self, request, max_nodes):
        tree = self.sessions[request].draft(max_nodes)
        rule, context = self.rule, self.contexts[request]
        if rule.order == "recency":
            expected = self.twin.newest(context, max_nodes, rule.min_breadth, rule.max_breadth)
        else:
            expected = self.twin.frequent(context, max_nodes, rule.max_breadth)
        assert drafted_paths(tree) == set(expected)
        self.num_nodes += len(tree)
        return tree


def replay_random(both, seed, max_nodes=40, num_requests=10):
    rng = random.Random(seed)
    alphabet = rng.choice([2, 4, 9])
    text = [rng.randrange(alphabet) for _ in range(40)]  # what requests have in common
    for request in range(num_requests):
        both.start(request, rng.choices(range(alphabet), k=rng.randrange(12)))
        for _ in range(6):
            open_ones = range(max(0, request - 2), request + 1)
            begin = rng.randrange(len(text))
            both.commit(
                rng.choice(open_ones), rng.choice([text[begin : begin + 5], [rng.randrange(alphabet)]])
            )
            both.check(rng.choice(open_ones), rng.choice([1, 4, max_nodes]))
    assert both.num_nodes > 100


@pytest.mark.parametrize("seed", range(52))
def test_random_requests_are_drafted_as_by_the_twin(seed):
    replay_random(Both(SuffixTrie(), preset("sglang-ngram")), seed, max_nodes=12)


@pytest.mark.parametrize("rule", [FREQUENT, SHORT], ids=["frequency", "short"])
@pytest.mark.parametrize("seed", range(6))
def test_other_rules_are_those_of_the_twin(rule, seed):
    replay_random(Both(rule, capacity=20_000), seed)


@pytest.mark.parametrize("rule", [SuffixTrie(), FREQUENT], ids=["recency", "frequency"])
def test_a_full_trie_forgets_what_the_twin_forgets(rule):
    both = Both(rule, capacity=MIN_TRIE_NODES)
    replay_random(both, seed=5, num_requests=25)
    assert len(both.twin.nodes) == MIN_TRIE_NODES
    assert both.engine.drafters["ngram_trie"].namespaces.of("default").trie.num_nodes == MIN_TRIE_NODES


def test_real_outputs_are_drafted_as_by_the_twin(data_dir):
    both = Both(SuffixTrie(), preset("sglang-ngram"))
    for request, (prompt, output) in enumerate(recorded(data_dir, "maths_rollouts", 20)):
        both.start(request, prompt[-100:])
        output, at = list(output[:60]), 0
        while at < len(output):
            paths = drafted_paths(both.check(request, 12))
            accepted = (
                size for size in range(len(output) - at, 0, -1) if tuple(output[at : at + size]) in paths
            )
            taken = next(accepted, 0) + 1
            both.commit(request, output[at : at + taken])
            at += taken
    assert both.num_nodes > 1_000


def test_outputs_of_another_namespace_are_not_drafted():
    engine = Engine(VOCAB_SIZE, preset="sglang-ngram")
    engine.open_session([], "theirs").commit([5, 6, 7, 8])
    assert len(engine.open_session([5, 6], "ours").draft(4)) == 0
    assert len(engine.open_session([5, 6], "theirs").draft(4)) == 2


def test_too_small_a_trie_is_refused():
    with pytest.raises(InvalidRequest):
        NGramTrieDrafter.open(VOCAB_SIZE, max_trie_nodes=18)
