"""A pool of phrases: what followed the last tokens, and where a target model would have gone instead.

Plain dictionaries in the order of use; knows nothing of sessions, drafts or locks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import islice

from retrieval_spec.drafters.rows import Row
from retrieval_spec.feedback import Feedback

Key = tuple[int, ...]


_KEY_BYTES = 280
_PHRASE_BYTES = 190


def phrases_bytes(num_keys: int, num_phrases: int) -> int:
    """Returns what phrases of usual sizes take as Python holds them: dictionaries, tuples and numbers."""
    return num_keys * _KEY_BYTES + num_phrases * _PHRASE_BYTES


class PhrasePool:
    """Up to `max_phrases` phrases a key, up to `max_keys` keys; those that came longest ago go first.

    The pool of Lookahead decoding (arXiv 2402.02057): a phrase that comes again counts as new. Not safe to
    share between threads: whoever shares it holds `lock`.
    """

    __slots__ = ("_by_key", "_num_phrases", "max_keys", "max_phrases")

    def __init__(self, max_keys: int, max_phrases: int) -> None:
        self.max_keys = max_keys
        self.max_phrases = max_phrases
        self._by_key: OrderedDict[Key, dict[Row, None]] = OrderedDict()
        self._num_phrases = 0

    def __len__(self) -> int:
        return len(self._by_key)

    @property
    def num_bytes(self) -> int:
        """Bytes that it holds, estimated."""
        return phrases_bytes(len(self._by_key), self._num_phrases)

    def add(self, key: Key, phrase: Row) -> None:
        """Makes `phrase` the newest one of `key`."""
        phrases = self._by_key.get(key)
        if phrases is None:
            self._by_key[key] = {phrase: None}
            self._num_phrases += 1
            if len(self._by_key) > self.max_keys:
                self._num_phrases -= len(self._by_key.popitem(last=False)[1])
            return
        self._by_key.move_to_end(key)
        num_before = len(phrases)
        phrases.pop(phrase, None)
        phrases[phrase] = None
        if len(phrases) > self.max_phrases:
            del phrases[next(iter(phrases))]
        self._num_phrases += len(phrases) - num_before

    def replace(self, key: Key, phrase: Row, better: Row) -> None:
        """Forgets `phrase` and makes `better` the newest one in its place."""
        phrases = self._by_key.get(key)
        if phrases is not None and phrase in phrases:
            del phrases[phrase]
            self._num_phrases -= 1
        self.add(key, better)

    def newest(self, key: Key, max_phrases: int) -> list[Row]:
        """Returns the phrases of a key, the newest first."""
        phrases = self._by_key.get(key)
        return [] if phrases is None else list(islice(reversed(phrases), max_phrases))


class VerifiedTree:
    """One verified step as the target saw it: its most probable token after every node.

    Attributes:
        tokens: the nodes' tokens; node 0 is the root.
        argmax: the target's most probable token after each node.
    """

    __slots__ = ("_children", "_parents", "argmax", "tokens")

    def __init__(self, feedback: Feedback) -> None:
        self.tokens: list[int] = feedback.node_token_ids.tolist()
        self._parents: list[int] = feedback.node_parents.tolist()
        self.argmax: list[int] = feedback.topk_ids[:, 0].tolist()
        edges = zip(self._parents, self.tokens, strict=True)
        self._children = {edge: node for node, edge in enumerate(edges)}

    def walk(self, path: Sequence[int]) -> list[int]:
        """Returns the root and the nodes of `path` below it, as far as they were drafted."""
        nodes = [0]
        for token in path:
            node = self._children.get((nodes[-1], token))
            if node is None:
                break
            nodes.append(node)
        return nodes

    def runs(self, max_tokens: int) -> list[Row]:
        """Returns the target's own tokens after each node, for as long as the draft agrees with them."""
        runs: list[Row] = [()] * len(self.tokens)
        for node in range(len(self.tokens) - 1, -1, -1):  # children stand behind their parents
            token = self.argmax[node]
            child = self._children.get((node, token))
            runs[node] = (token,) if child is None else (token, *runs[child][: max_tokens - 1])
        return runs

    def endings(self, context: Row, max_tokens: int) -> list[Row]:
        """Returns the last tokens down to each node, itself included, after the `context` before the root."""
        endings = [(*context, self.tokens[0])[-max_tokens:]]
        for token, parent in zip(self.tokens[1:], self._parents[1:], strict=True):
            endings.append((*endings[parent], token)[-max_tokens:])
        return endings
