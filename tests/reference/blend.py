"""The blend as one would explain it: evidence, a correction of it, the best paths first, and learning.

Probabilities are computed in double precision; those that a draft tells and ranks by are float32.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from retrieval_spec.tree import DraftTree
from tests.reference.blend_anchor import Anchor, anchor_support
from tests.reference.blend_evidence import (
    OUTPUTS,
    OWN,
    PROMPTS,
    Candidate,
    Context,
    Gathered,
    Place,
    Rows,
    gathered,
)
from tests.reference.blend_tables import (
    DEPTH_STEPS,
    LENGTH_STEPS,
    PROB_STEPS,
    SHARE_STEPS,
    TOKEN_SHARE_STEPS,
    Cell,
    Tables,
    bin_of,
)
from tests.reference.blend_texts import Match, State, Texts, TreeNode, repeated, root_of

MAX_HOPS = 12
LEFT_FOR_SHORTER = 3.0
SEARCHED_SHARE = 0.5
GUESS_SCATTER = 6.4
NUM_PARTS = 2
"""Of a large batch: they take turns."""
LOWEST_MIXED_PROB = 0.001
MAX_LEARNED_TOKENS, MAX_LEARNED_PROMPT = 64, 16_384
MIN_PATH_PROB = float(np.float32(5e-4))
NUM_FEATURES, USUAL_RECORD_WORDS, MAX_RECORD_WORDS = 9, 48, 581


class Node(NamedTuple):
    token: int
    parent: int
    prob: float
    sources: int
    path_prob: float


class Record(NamedTuple):
    """What a draft knew of a place: features, probability by contexts, and token of what it described."""

    described: list[tuple[list[Cell], float, int]]
    contexts: list[Context]

    def num_words(self, num_candidates: int) -> int:
        """Of the arena in which it is kept."""
        return 2 + 2 * num_candidates + NUM_FEATURES * len(self.described) + 3 * len(self.contexts)


class Outcome(NamedTuple):
    """What became of a draft: of its nodes so many went to the target, and these tokens followed."""

    drafted: list[Node]
    records: dict[int, Record]
    num_kept: int
    tokens: list[int]


class Namespace:
    """What the sessions of one namespace wrote, were asked and learned."""

    def __init__(self, prior: np.ndarray) -> None:
        self.tables = Tables(prior)
        self.contexts: Counter[tuple[int, int]] = Counter()  # kinds and stages of those that gave candidates
        self.texts = {OUTPUTS: Texts(), PROMPTS: Texts()}
        self.rows = [
            {OUTPUTS: Rows(is_for_all=True), PROMPTS: Rows(is_for_all=True)} for _ in range(NUM_PARTS)
        ]


class Session:
    """One session; `bits` are the source bits of the own text, of outputs and of prompts."""

    def __init__(
        self, namespace: Namespace, prompt: list[int], bits: tuple[int, int, int] = (0, 1, 2)
    ) -> None:
        self.namespace, self.tables, self.bits = namespace, namespace.tables, bits
        self.context, self.prompt, self.output = list(prompt), prompt[-MAX_LEARNED_PROMPT:], list[int]()
        self.own = Texts()
        self.end = self.own.extended(self.own.root, prompt)
        self.own_rows = Rows(is_for_all=False)
        self.anchor: Anchor | None = None
        self.drafted: list[Node] | None = None
        self.records: dict[int, Record] = {}
        self.unlearned: Outcome | None = None
        self.num_kept = self.last_kept = self.num_full = self.num_free_words = 0
        self.floor = self.last_floor = 0.0
        self.trees = TreeNode()

    def draft(
        self,
        max_nodes: int,
        max_depth: int = 64,
        trees: tuple[tuple[int, DraftTree], ...] = (),
        lowest: float = -1.0,
        part: int = 0,
    ) -> list[Node]:
        """The most probable paths, best first, but none that is worse than `lowest`.

        `trees` are what other sources propose, by source bit. Path probabilities are those told.
        """
        self.rows = {OWN: self.own_rows, **self.namespace.rows[part]}
        self.trees = TreeNode()
        for bit, tree in trees:
            self.trees.add(tree, bit)
        self.floor = -1.0
        self.drafted = self._expanded(max_nodes, max_depth, lowest)
        self.num_kept = len(self.drafted)
        return self._corrected(self.drafted)

    def keep(self, num_nodes: int) -> None:
        """Only so many nodes go to the target."""
        self.num_kept = num_nodes

    def observe(self, tokens: list[int]) -> None:
        """Goes on, and if it was drafted for, notes what followed; only then an anchor moves along."""
        anchor = None if tokens else self.anchor
        if tokens:
            self.learn()
        if self.drafted is not None and tokens:
            place = self._place()
            for token in tokens[:MAX_LEARNED_TOKENS]:
                place = place.after(token)
            self.unlearned = Outcome(self.drafted, self.records, self.num_kept, tokens)
            self.drafted, self.trees = None, TreeNode()
            self.last_kept, self.last_floor = self.num_kept, self.floor
            anchor = place.anchor if len(tokens) <= MAX_LEARNED_TOKENS else None
        self.anchor = anchor
        self.end = self.own.extended(self.end, tokens)
        self.context += tokens
        self.output += tokens

    def learn(self) -> None:
        """Learns what became of the last tree that was followed: before the next one is, or at the end."""
        if self.unlearned is not None:
            outcome, self.unlearned = self.unlearned, None
            self._learn_path(outcome)
            drafted = [(node.token, node.parent, node.path_prob) for node in outcome.drafted]
            self.tables.judge(drafted, outcome.num_kept, outcome.tokens)

    def close(self) -> None:
        for kind, tokens in ((OUTPUTS, self.output), (PROMPTS, self.prompt)):
            texts = self.namespace.texts[kind]
            texts.extended(texts.root, tokens)

    def _place(self) -> Place:
        matches = (self.namespace.texts[kind].match(self.context) for kind in (OUTPUTS, PROMPTS))
        return Place((repeated(self.end), *matches), self.trees, self.anchor)

    def _expanded(self, max_nodes: int, max_depth: int, lowest: float) -> list[Node]:
        # Path probability (negative), depth, token and age rank those that wait; then what becomes a node.
        waiting: list[tuple[float, int, int, int, tuple[Node, Place]]] = []
        nodes: list[Node] = []
        place, depth, path_prob, told, age = self._place(), 0, 1.0, 1.0, 0
        self.records = {}
        self.num_free_words = (max_nodes + 1) * USUAL_RECORD_WORDS + MAX_RECORD_WORDS
        while len(nodes) < max_nodes:
            room = max_nodes - len(nodes)
            useful = MIN_PATH_PROB if len(waiting) < room else -waiting[-1][0]
            floor = max(useful, SEARCHED_SHARE * lowest)
            at = len(nodes) - 1
            least = floor / path_prob
            left = max(LEFT_FOR_SHORTER * useful, min(path_prob, LEFT_FOR_SHORTER * floor)) / path_prob
            for one in self._children(place, at, depth, least, left) if depth < max_depth else ():
                prob = float(np.float32(one.prob))
                child = float(np.float32(path_prob * prob))
                if child >= floor and one.sources:
                    age += 1
                    node = Node(one.token, len(nodes) - 1, prob, one.sources, child)
                    insort(waiting, (-child, depth + 1, one.token, age, (node, place)))
                    del waiting[room:]
            if not waiting:
                break
            _, depth, token, _, (node, before) = waiting.pop(0)
            place, path_prob = before.after(token), node.path_prob
            told = min(told, path_prob * self.tables.correction(path_prob))
            if float(np.float32(told)) < lowest:
                break
            nodes.append(node)
        return nodes

    def _children(self, place: Place, node: int, depth: int, least: float, left: float) -> list[Candidate]:
        """What may follow, with corrected probabilities; what is not worth correcting has no sources."""
        found = self._gathered(place, left)
        candidates, record = found.candidates, Record([], found.contexts)
        for one in candidates:
            if one.prob >= max(LOWEST_MIXED_PROB, 0.5 * least):
                features, one.sources = self._described(place, depth, one)
                record.described.append((features, float(np.float32(one.prob)), one.token))
                one.prob = self.tables.mixed(features, one.prob)
        self.num_full += self.num_free_words <= 0
        if self.num_free_words > 0:
            self.records[node] = record
            self.num_free_words -= record.num_words(len(candidates))
        total = 0.0
        for one in candidates:
            total += one.prob
        if total > 1.0:
            for one in candidates:
                one.prob /= total
        return candidates

    def _learn_path(self, outcome: Outcome) -> None:
        """Learns where the tokens passed, as long as they stay in the tree."""
        children = {(one.parent, one.token): at for at, one in enumerate(outcome.drafted)}
        node: int | None = -1
        for token in outcome.tokens[:MAX_LEARNED_TOKENS]:
            if node is None:
                break
            if node in outcome.records:
                self._learn(outcome.records[node], token)
            node = children.get((node, token))

    def _learn(self, record: Record, token: int) -> None:
        for features, prob, described in record.described:
            self.tables.learn_candidate(features, prob, described == token)
        for context in record.contexts:
            self.tables.learn_escape(context.escape, token in context.tokens)
            if token in context.tokens:
                break

    def _gathered(self, place: Place, least: float) -> Gathered:
        found = gathered(place, self.rows, self.tables, least)
        self.namespace.contexts.update((kind, stage) for (kind, _, stage, _, _), _ in found.contexts)
        return found

    def _described(self, place: Place, depth: int, one: Candidate) -> tuple[list[Cell], int]:
        """The cells of what is known of a candidate beside its contexts, and the sources that know it.

        If none knows it here, these are the texts that hold it at all.
        """
        sources, holders = 0, 0
        supports = [_support(match, one.token) for match in place.matches]
        for bit, (longest, share) in zip(self.bits, supports, strict=True):
            sources |= (longest > 0) << bit
            holders |= (share > 0) << bit
        support = 0
        if place.node and place.node.children:
            child = place.node.child(one.token)
            support = 2 + bin_of(child.prob, PROB_STEPS) if child else 1
            sources |= child.sources if child else 0
        matches = tuple(bin_of(length, LENGTH_STEPS) for _, length in place.matches)
        cells: list[Cell] = [("supports", (kind, *both)) for kind, both in enumerate(supports)]
        cells.append(("tree_support", (support,)))
        cells.append(("supporting", tuple(longest for longest, _ in supports)))
        cells.append(("matches", matches))
        cells.append(("shares", tuple(share if longest else 1 for longest, share in supports)))
        cells.append(("depths", (bin_of(depth, DEPTH_STEPS), bin_of(one.prob, PROB_STEPS))))
        cells.append(("anchors", (anchor_support(place.anchor, one.token), matches[OWN])))
        return cells, sources or holders

    def _corrected(self, nodes: list[Node]) -> list[Node]:
        """The nodes with probabilities as outcomes say; path probabilities never rise again."""
        told: list[Node] = []
        paths: list[float] = []
        for node in nodes:
            path = min([node.path_prob * self.tables.correction(node.path_prob), *paths[-1:], 1.0])
            before = 1.0 if node.parent < 0 else paths[node.parent]
            paths.append(path)
            prob = path / before if before > 0.0 else 0.0
            told.append(node._replace(prob=prob, path_prob=float(np.float32(path))))
        return told


Asked = list[tuple[Session, tuple[tuple[int, DraftTree], ...]]]
"""Sessions, and what other sources propose for each."""


def drafted_together(asked: Asked, max_nodes: int, total_nodes: int, in_parts: bool) -> list[list[Node]]:
    """The trees of a batch: of all paths the most probable ones, of equals those of earlier sessions.

    Those of whose nodes most were kept last time draft first. In parts, each knows only what its own sessions
    found.
    """
    turns = sorted(range(len(asked)), key=lambda at: -asked[at][0].last_kept)
    is_choice = 0 < total_nodes < max_nodes * len(asked)
    guessed_share = max(0.0, 1.0 - GUESS_SCATTER / total_nodes**0.5) if is_choice else 0.0
    trees: list[list[Node]] = [[] for _ in asked]
    num_parts = NUM_PARTS if in_parts else 1
    for part in range(num_parts):
        room, best = -(-total_nodes // num_parts), list[float]()
        for at in turns[part::num_parts]:
            session, others = asked[at]
            known = best[0] if len(best) == room else -1.0
            lowest = max(known, guessed_share * session.last_floor) if is_choice else -1.0
            trees[at] = session.draft(max_nodes, trees=others, lowest=lowest, part=part)
            best = sorted([*best, *(node.path_prob for node in trees[at])])[-room:] if is_choice else []
    return _best_of(asked, trees, total_nodes) if is_choice else trees


def _best_of(asked: Asked, trees: list[list[Node]], total_nodes: int) -> list[list[Node]]:
    """The most probable nodes of all trees."""
    best = sorted(node.path_prob for tree in trees for node in tree)[-total_nodes:]
    num_equal = best.count(best[0]) if best else 0
    for at, ((session, _), tree) in enumerate(zip(asked, trees, strict=True)):
        better = [node for node in tree if node.path_prob > best[0]]
        equal = [node for node in tree if node.path_prob == best[0]][:num_equal]
        num_equal -= len(equal)
        trees[at] = [*better, *equal] if len(best) == total_nodes else tree
        session.floor = best[0] if best and len(best) == total_nodes else -1.0
        session.keep(len(trees[at]))
    return trees


def _shorter_matches(match: Match) -> Iterator[Match]:
    state: State | None = match[0]
    length = match[1]
    for _ in range(MAX_HOPS):
        if state is None or not length:
            return
        yield state, length
        state = state.link
        length = state.length if state else 0


def _support(match: Match, token: int) -> tuple[int, int]:
    """Bins of the longest match that the token followed, and of its share after the next shorter one.

    Without such a match, of its share of the whole text.
    """
    for state, length in _shorter_matches(match):
        if token in state.next:
            shorter = state.shorter
            share = shorter.next[token].count / max(shorter.count, 1) if shorter else -1.0
            return bin_of(length, LENGTH_STEPS), bin_of(share, SHARE_STEPS)
    root = root_of(match[0])
    if token not in root.next:
        return 0, 0
    return 0, 1 + bin_of(root.next[token].count / root.count, TOKEN_SHARE_STEPS)
