"""A generation loop without a model: a step sleeps, and the output is known beforehand.

What a real loop does around its target is all there: a draft is asked for, matched against what the target
decides, and committed. Knows no server.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np

from retrieval_spec.tree import CONTEXT, DraftTree
from retrieval_spec.verifier.drafts import GuardedSession


class Run(NamedTuple):
    """One generation.

    Attributes:
        output: its tokens.
        seconds: what it took.
        accepted_tokens: those that had been drafted.
        longest_added_s: the longest that asking held a step up.
    """

    output: list[int]
    seconds: float
    accepted_tokens: int
    longest_added_s: float


def some_text(num_tokens: int, share_counting: float, vocab_size: int = 60_000, seed: int = 0) -> list[int]:
    """Returns tokens of which this share follows its predecessor by one; no other does."""
    generator = np.random.default_rng(seed)
    fresh = generator.integers(0, vocab_size // 2, num_tokens) * 2
    counts = generator.random(num_tokens) < share_counting
    text = [0]
    for is_next, token in zip(counts.tolist(), fresh.tolist(), strict=True):
        even = token if token != text[-1] + 1 else token + 2
        text.append(text[-1] + 1 if is_next else even)
    return [token % vocab_size for token in text[1:]]


def generate(
    source: Any,
    text: list[int],
    step_s: float,
    *,
    prompt_tokens: int = 8,
    vocab_size: int = 70_000,
    max_nodes: int = 16,
    after_opening: Any = lambda: None,
) -> Run:
    """Returns the generation of a text from its first tokens on."""
    output = list(text[:prompt_tokens])
    session = GuardedSession(source, list(output), "standin", vocab_size)
    after_opening()
    accepted, longest_s = 0, 0.0
    began_s = time.perf_counter()
    while len(output) < len(text):
        asked_s = time.perf_counter()
        tree = session.draft(max_nodes)
        longest_s = max(longest_s, time.perf_counter() - asked_s)
        time.sleep(step_s)
        decided = verified(tree, text[len(output) :])
        accepted += len(decided) - 1
        output += decided
        session.commit(decided)
    seconds = time.perf_counter() - began_s
    session.finish()
    return Run(output, seconds, accepted, longest_s)


def verified(tree: DraftTree, truth: list[int]) -> list[int]:
    """Returns the drafted tokens that the target confirms, and its own after them."""
    children, node, decided = tree.children(), CONTEXT, []
    for token in truth:
        decided.append(token)
        if token not in children.get(node, {}):
            break
        node = children[node][token]
    return decided
