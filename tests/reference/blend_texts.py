"""Texts and trees that the blend reads, as objects: where a string occurs, how often, and how it goes on.

A state stands for all strings that end at the same places of the texts. Its link is the state of the
longest of their suffixes that ends at more places: the next shorter match.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from retrieval_spec.tree import DraftTree

MAX_MATCH_TOKENS = 64

Match = tuple["State", int]
"""Where a context stands in texts: the state of its longest suffix that they hold, and that one's length."""


class State:
    def __init__(self, number: int, length: int, link: State | None = None) -> None:
        self.number, self.length, self.link, self.count = number, length, link, 0
        self.next: dict[int, State] = {}
        self.order: list[int] = []  # tokens as they are read: the first one that came, then the newest ones

    def add(self, token: int, target: State) -> None:
        self.next[token] = target
        self.order.insert(1, token)

    @property
    def shorter(self) -> State | None:
        """The state of the next shorter match that is not empty."""
        return self.link if self.link is not None and self.link.length else None


class Texts:
    """Texts between which no match goes."""

    def __init__(self) -> None:
        self.root = State(0, 0)
        self.num_states = 1

    def extended(self, end: State, tokens: Iterable[int]) -> State:
        """Appends tokens to the text that ends in a state, at first `root`; returns where it ends then."""
        for token in tokens:
            end = self._appended(end, token)
            for suffix in suffixes(end):
                suffix.count += 1
        return end

    def _appended(self, end: State, token: int) -> State:
        if token in end.next:  # another text said the same from its first token on
            return self._with_suffixes(end, token)
        new = self._new(end.length + 1)
        state: State | None = end
        while state is not None and token not in state.next:
            state.add(token, new)
            state = state.link
        new.link = self.root if state is None else self._with_suffixes(state, token)
        return new

    def _with_suffixes(self, state: State, token: int) -> State:
        """The state of the longest string of `state` with the token, parted from longer ones if need be."""
        target = state.next[token]
        if target.length == state.length + 1:
            return target
        clone = self._new(state.length + 1)
        clone.link, target.link, clone.count = target.link, clone, target.count
        for known in target.order:
            clone.add(known, target.next[known])
        walk: State | None = state
        while walk is not None and walk.next.get(token) is target:
            walk.next[token] = clone
            walk = walk.link
        return clone

    def _new(self, length: int) -> State:
        self.num_states += 1
        return State(self.num_states - 1, length)

    def match(self, context: list[int]) -> Match:
        """Where a context stands that is none of the texts."""
        match: Match = (self.root, 0)
        for token in context[-MAX_MATCH_TOKENS:]:
            match = follow(match, token)
        return match


def suffixes(state: State) -> Iterator[State]:
    """A state and all shorter ones; the last one is the root: the empty string comes with every token."""
    walk: State | None = state
    while walk is not None:
        yield walk
        walk = walk.link


def root_of(state: State) -> State:
    return list(suffixes(state))[-1]


def repeated(end: State) -> Match:
    """Where a text stands in itself: its longest suffix that occurred before."""
    return (end, 0) if end.link is None else (end.link, end.link.length)


def follow(match: Match, token: int) -> Match:
    """Goes on to the longest suffix of the match that is followed by the token."""
    state, length = match
    while token not in state.next:
        if state.link is None:
            return state, 0
        state, length = state.link, state.link.length
    return _settled(state.next[token], min(length + 1, MAX_MATCH_TOKENS))


def _settled(state: State, length: int) -> Match:
    while state.link is not None and length <= state.link.length:
        state = state.link
    return state, length


class TreeNode:
    """What other sources propose after one path, the newest child first."""

    def __init__(self, token: int = -1) -> None:
        self.token, self.prob, self.sources = token, 0.0, 0
        self.children: list[TreeNode] = []

    def child(self, token: int) -> TreeNode | None:
        return next((child for child in self.children if child.token == token), None)

    def add(self, tree: DraftTree, bit: int) -> None:
        """Inserts a tree of one source by its longest known prefixes."""
        nodes: list[TreeNode] = []
        columns = tree.token_ids.tolist(), tree.parents.tolist(), tree.probs.tolist(), tree.sources.tolist()
        for token, parent, prob, sources in zip(*columns, strict=True):
            above = self if parent < 0 else nodes[parent]
            node = above.child(token)
            if node is None:
                node = TreeNode(token)
                above.children.insert(0, node)
            node.prob, node.sources = max(node.prob, prob), node.sources | sources << bit
            nodes.append(node)
