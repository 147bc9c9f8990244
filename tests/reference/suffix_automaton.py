"""The suffix automaton as a textbook has it: one object a state, one dictionary of edges each.

Also the baseline that the benchmark compares with, so it is written to be fast in its way.
"""

from __future__ import annotations

from collections.abc import Iterable


class State:
    __slots__ = ("count", "first_end", "last_end", "length", "link", "next")

    def __init__(self, length: int, end: int) -> None:
        self.length = length
        self.first_end = self.last_end = end
        self.count = 1
        self.link: State | None = None
        self.next: dict[int, State] = {}


class DictAutomaton:
    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self.root = self.last = State(0, -1)
        self.num_states = 1
        self.extend(tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        for token in tokens:
            self.append(token)

    def append(self, token: int) -> None:
        end = self.last.length
        new = State(end + 1, end)
        self.num_states += 1
        state: State | None = self.last
        while state is not None and token not in state.next:
            state.next[token] = new
            state = state.link
        new.link = self.root if state is None else self._target(state, token)
        self.last = new
        suffix = new.link
        while suffix is not None:
            suffix.count += 1
            suffix.last_end = end
            suffix = suffix.link

    def _target(self, state: State, token: int) -> State:
        target = state.next[token]
        if target.length == state.length + 1:
            return target
        clone = State(state.length + 1, target.first_end)
        self.num_states += 1
        clone.next = target.next.copy()
        clone.link, clone.count, clone.last_end = target.link, target.count, target.last_end
        target.link = clone
        walk: State | None = state
        while walk is not None and walk.next.get(token) is target:
            walk.next[token] = clone
            walk = walk.link
        return clone

    def state_of(self, tokens: Iterable[int]) -> State | None:
        state: State | None = self.root
        for token in tokens:
            state = state.next.get(token) if state else None
        return state

    @property
    def match_length(self) -> int:
        return self.last.link.length if self.last.link else 0
