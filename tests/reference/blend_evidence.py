"""What may follow a place, as one would explain it: contexts by falling match length, of all kinds.

A kind of evidence is a class with a match `length`, `contexts` for what it says goes on here, and `shorter`.
"""

from __future__ import annotations

from typing import NamedTuple

from tests.reference.blend_anchor import Anchor, anchor_after
from tests.reference.blend_tables import Tables, bin_of, escape_place, stage_of_match
from tests.reference.blend_texts import Match, State, TreeNode, follow, root_of

OWN, OUTPUTS, PROMPTS, TREES, ANCHORED = range(5)
MAX_CANDIDATES, MAX_CONTEXTS, MAX_EDGES = 48, 12, 128
COMMON_COUNT, NUM_ROWS, ROW_PAIRS = 64, 2_047, 48
RARE = 0.5
TREE_LENGTHS, TREE_MATCHES = [0.41, 0.46, 0.56, 0.74, 0.86, 0.95], [1, 2, 3, 4, 7, 12, 24]


class Place(NamedTuple):
    """Where a context, or a path drafted after it, stands in texts, in trees and in a copy that it left."""

    matches: tuple[Match, ...]
    node: TreeNode | None
    anchor: Anchor | None

    def after(self, token: int) -> Place:
        node = self.node.child(token) if self.node else None
        anchor = anchor_after(self.anchor, self.matches[OWN], token)
        return Place(tuple(follow(match, token) for match in self.matches), node, anchor)


class Candidate:
    def __init__(self, token: int, prob: float) -> None:
        self.token, self.prob, self.sources = token, prob, 0


class Context(NamedTuple):
    """A context that gave candidates: the place of its escape in the tables, and which ones."""

    escape: tuple[int, ...]
    tokens: set[int]


class Read(NamedTuple):
    """New continuations of a context: some with their weights; the weight, count and number of all."""

    kept: list[Candidate]
    weight: float
    count: int
    number: int


class Row(NamedTuple):
    """The commonest continuations of a state, as they were when it was written."""

    state: State
    count: int
    num_edges: int
    pairs: list[tuple[int, int]]


class Rows:
    """Rows of one text: for its root alone, or for all common states."""

    def __init__(self, is_for_all: bool) -> None:
        self.is_for_all = is_for_all
        self.by_place: dict[int, Row] = {}

    def of(self, state: State) -> Row | None:
        """The state's row, written anew if it became an eighth more frequent or lost its place to another."""
        is_common = self.is_for_all and state.count >= COMMON_COUNT
        if state.link is not None and not is_common:
            return None
        mixed = (state.number * 0x9E3779B97F4A7C15 & (1 << 64) - 1) >> 32
        at = 0 if state.link is None else 1 + mixed % NUM_ROWS
        row = self.by_place.get(at)
        if row and row.state is state and row.count <= state.count < row.count + row.count // 8 + 1:
            return row
        in_order = sorted(state.order, key=lambda token: -state.next[token].count)
        pairs = [(token, state.next[token].count) for token in in_order[:ROW_PAIRS]]
        self.by_place[at] = Row(state, state.count, len(state.order), pairs)
        return self.by_place[at]


class OfState:
    """What a text says after a string: a context that may know the next token."""

    def __init__(self, stage: int, state: State, rows: Rows) -> None:
        self.stage, self.state, self.rows = stage, state, rows

    def read(self, known: set[int], room: int, least: float) -> Read:
        """`least`: continuations that are clearly less probable are only counted."""
        if not self.state.order:
            return Read([], 0.0, 0, 0)
        rarest = RARE * self.state.count * least
        row = self.rows.of(self.state)
        return _read_row(row, known, room, rarest) if row else _read_state(self.state, known, room, rarest)


class OfText:
    """What a text says after a match."""

    def __init__(self, match: Match, rows: Rows) -> None:
        self.state, self.length = match
        self.rows = rows

    @property
    def shorter(self) -> OfText | None:
        state = self.state.shorter
        return OfText((state, state.length), self.rows) if state else None

    @property
    def contexts(self) -> list[OfState]:
        return [OfState(stage_of_match(self.length), self.state, self.rows)]


class OfTree:
    """What other sources propose at a node of their trees: all of it is one context."""

    shorter = None

    def __init__(self, node: TreeNode) -> None:
        self.children = node.children
        self.length = TREE_MATCHES[bin_of(sum(child.prob for child in node.children), TREE_LENGTHS)]
        self.stage = stage_of_match(self.length)

    @property
    def contexts(self) -> list[OfTree]:
        return [self]

    def read(self, known: set[int], room: int, least: float) -> Read:
        kept: list[Candidate] = []
        weight, number = 0.0, 0
        for child in self.children[:MAX_CANDIDATES]:
            if child.prob > 0.0 and child.token not in known:
                _keep(kept, room, Candidate(child.token, child.prob))
                weight, number = weight + child.prob, number + 1
        return Read(kept, weight, 1, number)


class OfAnchor:
    """What followed where a copy stood that the text left."""

    shorter = None

    def __init__(self, anchor: Anchor, rows: Rows) -> None:
        self.length = anchor.length
        self.contexts = [OfState(stage, state, rows) for stage, state in anchor.ways]


class Gathered:
    """Candidates of one place: every context shares out what those before it left over."""

    def __init__(self, tables: Tables, least: float) -> None:
        self.tables, self.least = tables, least
        self.candidates: list[Candidate] = []
        self.contexts: list[Context] = []
        self.left = 1.0

    @property
    def is_done(self) -> bool:
        return self.left < self.least

    def add(self, kind: int, context: OfState | OfTree) -> None:
        if self.is_done:
            return
        known = {one.token for one in self.candidates}
        read = context.read(known, MAX_CANDIDATES - len(known), self.least / self.left)
        if not read.kept:
            return
        escape = escape_place(kind, bool(self.contexts), context.stage, read.count, read.number)
        for one in read.kept:
            one.prob *= self.left * self.tables["escapes", escape] / read.weight
        self.left *= 1.0 - self.tables["escapes", escape]
        self.candidates += read.kept
        self.contexts.append(Context(escape, {one.token for one in read.kept}))


def gathered(place: Place, rows: dict[int, Rows], tables: Tables, least: float) -> Gathered:
    """The longest match of any kind goes first; at last each text has but its commonest tokens to offer."""
    matches = enumerate(place.matches)
    left_of: dict[int, OfText | OfTree | OfAnchor] = {k: OfText(m, rows[k]) for k, m in matches if m[1]}
    if place.node and place.node.children:
        left_of[TREES] = OfTree(place.node)
    if place.anchor:
        left_of[ANCHORED] = OfAnchor(place.anchor, rows[OWN])
    found = Gathered(tables, least)
    for _ in range(MAX_CONTEXTS):
        if not left_of or found.is_done:
            break
        kind = max(left_of, key=lambda kind: (left_of[kind].length, -kind))
        step = left_of.pop(kind)
        if step.shorter:
            left_of[kind] = step.shorter
        for context in step.contexts:
            found.add(kind, context)
    for kind in (OUTPUTS, OWN, PROMPTS):
        found.add(kind, OfState(0, root_of(place.matches[kind][0]), rows[kind]))
    return found


def _keep(kept: list[Candidate], room: int, new: Candidate) -> None:
    """Adds a continuation, in place of the rarest one of this context if there are enough."""
    if len(kept) < room:
        kept.append(new)
    elif kept:
        rarest = min(range(len(kept)), key=lambda at: kept[at].prob)
        if new.prob > kept[rarest].prob:
            kept[rarest] = new


def _read_state(state: State, known: set[int], room: int, rarest: float) -> Read:
    kept: list[Candidate] = []
    total, known_total, number = 0, 0, 0
    for token in state.order[:MAX_EDGES]:
        count = state.next[token].count
        if token in known:
            known_total += count
        elif count:
            total, number = total + count, number + 1
            if count >= rarest:
                _keep(kept, room, Candidate(token, float(count)))
    if len(state.order) > MAX_EDGES:
        total = max(total, state.count - known_total)
    return Read(kept, float(total), total, number)


def _read_row(row: Row, known: set[int], room: int, rarest: float) -> Read:
    """Reads as far as it can matter; what lies beyond counts as new."""
    kept: list[Candidate] = []
    total, number = row.count, row.num_edges
    for token, count in row.pairs:
        if count < rarest or len(kept) == room:
            break
        if token in known:
            total, number = total - count, number - 1
        else:
            kept.append(Candidate(token, float(count)))
    total = max(total, 0)
    return Read(kept, float(total), total, number)
