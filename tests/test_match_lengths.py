"""Steps by match length: what is counted is what a plain search through the earlier text finds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_spec import match_lengths
from retrieval_spec.engine import Engine
from retrieval_spec.match_lengths import RANGES, MatchLengths
from retrieval_spec.replay import replay
from retrieval_spec.traces import Trace
from tests.strategies import as_int32

texts = st.lists(st.integers(0, 2), max_size=12)


def longest_repeat(context: list[int], earlier: list[list[int]]) -> int:
    """Returns the length of the longest suffix that ends earlier in the context, or in an earlier text."""
    for length in range(len(context), 0, -1):
        suffix = context[-length:]
        for text in (context[:-1], *earlier):
            if any(text[at : at + length] == suffix for at in range(len(text) - length + 1)):
                return length
    return 0


class Twin:
    """Counts the same by looking at every place."""

    def __init__(self) -> None:
        self.counts = np.zeros((3, len(RANGES)), np.int64)
        self.texts: list[list[int]] = []

    def step(self, trace, at, tree, path, latency_us) -> None:
        context = trace.prompt.tolist() + trace.output[:at].tolist()
        if at == 0:
            self.texts.append(trace.prompt.tolist() + trace.output.tolist())
        length = longest_repeat(context, self.texts[:-1])
        first_lengths = [0, 1, 2, 4, 8, 16]
        place = max(place for place, first in enumerate(first_lengths) if length >= first)
        self.counts[:, place] += (1, len(tree), len(path))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=4))
def test_steps_are_counted_by_the_longest_repeat_before_them(pairs):
    traces = [Trace("code", as_int32(prompt), as_int32(output)) for prompt, output in pairs]
    lengths, twin = MatchLengths(), Twin()
    tally = replay(Engine(10, preset="session"), traces, 4, observers=[lengths, twin])
    assert lengths.counts.tolist() == twin.counts.tolist()
    counted = (tally.steps, tally.drafted_nodes, tally.accepted_tokens)
    assert tuple(lengths.counts.sum(axis=1).tolist()) == counted


def test_long_repeats_and_their_acceptance_are_seen():
    text = np.random.default_rng(0).permutation(100).tolist()
    lengths = MatchLengths()
    replay(Engine(100), [Trace("code", as_int32(text[:5]), as_int32(text[5:]))] * 2, 8, observers=[lengths])
    steps, _, accepted = lengths.counts
    assert steps[0] == 95  # nothing repeats in the first one
    assert accepted[:2].tolist() == [0, 0]
    assert accepted[2:].sum() > 70
    assert steps[5] > 0


def test_beyond_its_bound_the_text_begins_anew(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(match_lengths, "MAX_TEXT_TOKENS", 20)
    lengths = MatchLengths()
    trace = Trace("code", as_int32(range(20)), as_int32([50, 51]))
    replay(Engine(100, preset="session"), [trace, trace], 4, observers=[lengths])
    assert lengths.counts[0].tolist() == [4, 0, 0, 0, 0, 0]
