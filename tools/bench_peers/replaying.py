"""Replays recorded outputs through one drafting system, in whatever environment that system lives.

Needs the standard library alone. Acceptance is that of greedy verification: a step accepts the longest path
of its draft that the recording follows, and one token besides. Only a system's own calls are timed: what
they return is read afterwards, and garbage is collected between generations.
"""

from __future__ import annotations

import gc
import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean, median
from time import perf_counter_ns
from typing import Any, Protocol, TypedDict

LEARNED_STEP_TOKENS = 4
"""So many tokens come with each commit where a system is only fed."""


class Trace(TypedDict):
    """A recorded generation."""

    family: str
    prompt_ids: list[int]
    output_ids: list[int]


class Side(Protocol):
    """A drafting system with one generation at a time."""

    def held(self, token_ids: list[int]) -> Any:
        """Returns a recording as the array that the system's host would hold; parts are slices."""

    def open(self, prompt: Any) -> None:
        """Begins a generation."""

    def draft(self, context: Any) -> Any:
        """Drafts after the context, in the system's own form."""

    def commit(self, tokens: Any) -> None:
        """Takes the tokens that the step decided."""

    def close(self) -> None:
        """Ends the generation."""

    def tree(self, draft: Any) -> tuple[Sequence[int], Sequence[int]]:
        """Returns the draft's token ids and parents; -1 is the context."""


class Replayed(TypedDict):
    """What the replay of some recordings came to; `accepted` has a digest of every step's acceptance."""

    steps: int
    tokens: int
    acceptance: dict[str, float]
    accepted: str
    nodes: float
    draft_p50_us: float
    draft_p99_us: float
    token_us: float


class Clock:
    """Times calls by kind."""

    def __init__(self) -> None:
        self.spent_ns: dict[str, list[int]] = {"open": [], "draft": [], "commit": [], "close": []}

    def timed(self, kind: str, call: Callable[..., Any], *arguments: Any) -> Any:
        """Makes the call and notes how long it took."""
        began = perf_counter_ns()
        result = call(*arguments)
        self.spent_ns[kind].append(perf_counter_ns() - began)
        return result

    @property
    def total_us(self) -> float:
        """All calls together."""
        return sum(map(sum, self.spent_ns.values())) / 1e3


def chain(tokens: Iterable[int]) -> tuple[list[int], list[int]]:
    """Returns a path as token ids and parents."""
    path = list(tokens)
    return path, list(range(-1, len(path) - 1))


def num_accepted(token_ids: Sequence[int], parents: Sequence[int], continuation: Sequence[int]) -> int:
    """Returns the length of the longest path that the continuation follows."""
    nodes = {edge: node for node, edge in reversed(list(enumerate(zip(parents, token_ids, strict=True))))}
    node, depth = -1, 0
    for token in continuation:
        following = nodes.get((node, token))
        if following is None:
            break
        node, depth = following, depth + 1
    return depth


def replay_one(side: Side, trace: Trace, max_nodes: int, clock: Clock) -> tuple[list[int], int]:
    """Replays one recording; returns what each step accepted, and the drafted nodes."""
    output = trace["output_ids"]
    held, start = side.held(trace["prompt_ids"] + output), len(trace["prompt_ids"])
    accepted, num_nodes, at = [], 0, 0
    clock.timed("open", side.open, held[:start])
    while at < len(output):
        context = held[: start + at]
        token_ids, parents = side.tree(clock.timed("draft", side.draft, context))
        if len(token_ids) > max_nodes:
            raise ValueError(f"a draft of {len(token_ids)} nodes, where {max_nodes} were asked for")
        accepted.append(num_accepted(token_ids, parents, output[at:]))
        num_nodes += len(token_ids)
        news = accepted[-1] + 1
        clock.timed("commit", side.commit, held[start + at : start + at + news])
        at += news
    clock.timed("close", side.close)
    return accepted, num_nodes


def replay(make: Callable[[], Side], traces: Iterable[Trace], max_nodes: int) -> Replayed:
    """Replays recordings in order, each family with a fresh system, which keeps what they taught."""
    clock, by_family, num_nodes, num_tokens = Clock(), {}, 0, 0
    side, family = None, None
    for trace in traces:
        if side is None or trace["family"] != family:
            side, family = make(), trace["family"]
        gc.collect()
        gc.disable()
        accepted, nodes = replay_one(side, trace, max_nodes, clock)
        gc.enable()
        by_family.setdefault(family, []).extend(accepted)
        num_nodes += nodes
        num_tokens += len(trace["output_ids"])
    return _replayed(clock, by_family, num_nodes, num_tokens)


def _replayed(clock: Clock, by_family: dict[str, list[int]], num_nodes: int, num_tokens: int) -> Replayed:
    draft_us = sorted(ns / 1e3 for ns in clock.spent_ns["draft"])
    return {
        "steps": len(draft_us),
        "tokens": num_tokens,
        "acceptance": {family: 1 + fmean(accepted) for family, accepted in by_family.items()},
        "accepted": hashlib.sha256(repr(by_family).encode()).hexdigest(),
        "nodes": num_nodes / len(draft_us),
        "draft_p50_us": median(draft_us),
        "draft_p99_us": draft_us[int(len(draft_us) * 0.99)],
        "token_us": clock.total_us / num_tokens,
    }


def feed(side: Side, traces: Iterable[Trace]) -> float:
    """Gives recordings to a system without asking for drafts; returns the seconds in its own calls."""
    clock = Clock()
    for trace in traces:
        held, start = side.held(trace["prompt_ids"] + trace["output_ids"]), len(trace["prompt_ids"])
        clock.timed("open", side.open, held[:start])
        for at in range(start, len(held), LEARNED_STEP_TOKENS):
            clock.timed("commit", side.commit, held[at : at + LEARNED_STEP_TOKENS])
        clock.timed("close", side.close)
    return clock.total_us / 1e6


def resident_bytes() -> int | None:
    """Returns what this process holds in memory now; None where the system does not tell."""
    try:
        with open("/proc/self/statm") as told:
            return int(told.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None
