"""What may follow a place, as one would explain it: contexts by falling match length, of all kinds.

A kind of evidence is a class with a match `length`, `read` for what it says goes on here, and `shorter`.
"""

from __future__ import annotations

from typing import NamedTuple

from tests.reference.blend_tables import Tables, bin_of, escape_place
from tests.reference.blend_texts import Match, State, TreeNode, follow

OWN, OUTPUTS, PROMPTS, TREES = range(4)
MAX_CANDIDATES, MAX_CONTEXTS, MAX_EDGES = 48, 12, 128
COMMON_COUNT, NUM_ROWS, ROW_PAIRS = 64, 4_096, 48
RARE = 0.25
TREE_LENGTHS, TREE_MATCHES = [0.41, 0.46, 0.56, 0.74, 0.86, 0.95], [1, 2, 3, 4, 7, 12, 24]


class Place(NamedTuple):
    """Where a context, or a path drafted after it, stands in every text and in the trees."""

    matches: tuple[Match, ...]
    node: TreeNode | None

    def after(self, token: int) -> Place:
        node = self.node.child(token) if self.node else None
        return Place(tuple(follow(match, token) for match in self.matches), node)


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


Rows = dict[int, Row]


class OfText:
    """What a text says after a match; `rows` are those of a text that many sessions wrote."""

    def __init__(self, match: Match, rows: Rows | None) -> None:
        self.state, self.length = match
        self.rows = rows

    @property
    def shorter(self) -> OfText | None:
        state = self.state.shorter
        return OfText((state, state.length), self.rows) if state else None

    def read(self, known: set[int], room: int, least: float) -> Read:
        """`least`: continuations that are clearly less probable are only counted."""
        rarest = RARE * self.state.count * least
        if self.rows is None or self.state.count < COMMON_COUNT or not self.state.order:
            return _read_state(self.state, known, room, rarest)
        return _read_row(_row_of(self.rows, self.state), known, room, rarest)


class OfTree:
    """What other sources propose at a node of their trees."""

    shorter = None

    def __init__(self, node: TreeNode) -> None:
        self.children = node.children
        self.length = TREE_MATCHES[bin_of(sum(child.prob for child in node.children), TREE_LENGTHS)]

    def read(self, known: set[int], room: int, least: float) -> Read:
        kept: list[Candidate] = []
        weight, number = 0.0, 0
        for child in self.children[:MAX_CANDIDATES]:
            if child.prob > 0.0 and child.token not in known:
                _keep(kept, room, Candidate(child.token, child.prob))
                weight, number = weight + child.prob, number + 1
        return Read(kept, weight, 1, number)


def gathered(
    place: Place, rows: dict[int, Rows], tables: Tables, least: float
) -> tuple[list[Candidate], list[Context]]:
    """The longest match of any kind goes first; each shares out what those before it left over."""
    matches = enumerate(place.matches)
    left_of: dict[int, OfText | OfTree] = {k: OfText(match, rows.get(k)) for k, match in matches if match[1]}
    if place.node and place.node.children:
        left_of[TREES] = OfTree(place.node)
    candidates: list[Candidate] = []
    contexts: list[Context] = []
    left = 1.0
    for _ in range(MAX_CONTEXTS):
        if not left_of or left < least:
            break
        kind = max(left_of, key=lambda kind: (left_of[kind].length, -kind))
        step = left_of.pop(kind)
        if step.shorter:
            left_of[kind] = step.shorter
        known = {one.token for one in candidates}
        read = step.read(known, MAX_CANDIDATES - len(candidates), least / left)
        if read.kept:
            escape = escape_place(kind, bool(contexts), step.length, read.count, read.number)
            for one in read.kept:
                one.prob *= left * tables["escapes", escape] / read.weight
            left *= 1.0 - tables["escapes", escape]
            candidates += read.kept
            contexts.append(Context(escape, {one.token for one in read.kept}))
    return candidates, contexts


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


def _row_of(rows: Rows, state: State) -> Row:
    """The state's row, written anew if it became an eighth more frequent or lost its place to another."""
    at = ((state.number * 0x9E3779B97F4A7C15 & (1 << 64) - 1) >> 32) % NUM_ROWS
    row = rows.get(at)
    if row is None or row.state is not state or not row.count <= state.count < row.count + row.count // 8 + 1:
        kept: list[Candidate] = []
        for token in state.order:
            _keep(kept, ROW_PAIRS, Candidate(token, state.next[token].count))
        pairs = [(one.token, int(one.prob)) for one in kept]
        row = rows[at] = Row(state, state.count, len(state.order), pairs)
    return row


def _read_row(row: Row, known: set[int], room: int, rarest: float) -> Read:
    kept: list[Candidate] = []
    for token, count in row.pairs:
        if token not in known and count >= rarest:
            _keep(kept, room, Candidate(token, float(count)))
    seen = [count for token, count in row.pairs if token in known]
    total = max(row.count - sum(seen), 0)
    return Read(kept, float(total), total, row.num_edges - len(seen))
