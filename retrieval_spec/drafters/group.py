"""Drafts from what tenants share on purpose: n-grams that several tenants of a group wrote.

Nothing of a group is shared but these n-grams, and none that fewer than `min_tenants` distinct tenants wrote.
A tenant that is forgotten no longer counts, and what too few others wrote leaves with it.
"""

from __future__ import annotations

import heapq
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import suppress

from retrieval_spec.drafters.base import Budget
from retrieval_spec.drafters.bounds import expect_range
from retrieval_spec.drafters.columns import new_columns, tree_of
from retrieval_spec.drafters.namespaces import Namespaces
from retrieval_spec.drafters.tail import Tail
from retrieval_spec.errors import InvalidRequest
from retrieval_spec.feedback import Feedback
from retrieval_spec.limits import tenant_of
from retrieval_spec.tree import DraftTree, Tokens

MAX_GROUPS = 16
MAX_NGRAMS = 1 << 17
"""That one group remembers, written often enough or not; the one written longest ago goes first."""
MAX_LEARNED_TOKENS = 4_096
"""Newest tokens of an output that are learned: the end of a session holds up others no longer."""
MAX_NGRAM_TOKENS = 16

_NGRAM_BYTES = 450
_TOKEN_BYTES = 4
_WORTH = 0.8
"""P(the next token is among those that the group knows), on recorded outputs."""


class Contribution:
    """What one namespace wrote of a group's n-grams.

    Attributes:
        tenant: whose namespace it is.
        num_ngrams: of the group's, how many it wrote.
        is_withdrawn: it was forgotten; sessions that are still open add nothing more.
    """

    __slots__ = ("__weakref__", "group", "is_withdrawn", "num_ngrams", "tenant")

    def __init__(self) -> None:
        self.group: Group | None = None
        self.tenant = ""
        self.num_ngrams = 0
        self.is_withdrawn = False

    @property
    def num_bytes(self) -> int:
        """Bytes of its n-grams, as if no other namespace had written them."""
        return self.num_ngrams * _NGRAM_BYTES


class Group:
    """The n-grams of one group, and who wrote them; safe to share between threads.

    Args:
        ngram_tokens: length of an n-gram.
        min_tenants: distinct tenants that must have written one before anybody is drafted it.
    """

    def __init__(self, ngram_tokens: int, min_tenants: int) -> None:
        self._ngram_bytes = ngram_tokens * _TOKEN_BYTES
        self._min_tenants = min_tenants
        self._lock = threading.Lock()
        self._writers: OrderedDict[bytes, set[Contribution]] = OrderedDict()
        self._shared: dict[bytes, dict[int, int]] = {}  # first tokens -> last token -> tenants

    def learn(self, contribution: Contribution, output: Tokens) -> None:
        """Counts every n-gram of an output as written by a namespace."""
        data, size = output.tobytes(), self._ngram_bytes
        with self._lock:
            if not contribution.is_withdrawn:
                for end in range(size, len(data) + 1, _TOKEN_BYTES):
                    self._add(data[end - size : end], contribution)

    def withdraw(self, contribution: Contribution) -> None:
        """Takes a namespace out of all counts, for good."""
        with self._lock:
            contribution.is_withdrawn = True
            for ngram in [one for one, writers in self._writers.items() if contribution in writers]:
                self._writers[ngram].discard(contribution)
                self._settle(ngram)
            contribution.num_ngrams = 0

    def following(self, tokens: bytes) -> list[tuple[int, int]]:
        """Returns (token, tenants) that are shared after an n-gram's first tokens, most tenants first."""
        with self._lock:
            shared = list(self._shared.get(tokens, {}).items())
        return sorted(shared, key=lambda one: (-one[1], one[0]))

    def _add(self, ngram: bytes, contribution: Contribution) -> None:
        writers = self._writers.setdefault(ngram, set())
        self._writers.move_to_end(ngram)
        if contribution not in writers:
            writers.add(contribution)
            contribution.num_ngrams += 1
            self._settle(ngram)
            if len(self._writers) > MAX_NGRAMS:
                self._drop_oldest()

    def _drop_oldest(self) -> None:
        ngram, writers = next(iter(self._writers.items()))
        for writer in writers:
            writer.num_ngrams -= 1
        writers.clear()
        self._settle(ngram)

    def _settle(self, ngram: bytes) -> None:
        """Shares an n-gram, or shares it no longer, as its writers say."""
        writers = self._writers[ngram]
        first, last = ngram[:-_TOKEN_BYTES], int.from_bytes(ngram[-_TOKEN_BYTES:], sys.byteorder)
        num_tenants = len({writer.tenant for writer in writers})
        if num_tenants >= self._min_tenants:
            self._shared.setdefault(first, {})[last] = num_tenants
        elif first in self._shared:
            self._shared[first].pop(last, None)
            if not self._shared[first]:
                del self._shared[first]
        if not writers:
            del self._writers[ngram]


class _Members(Namespaces[Contribution]):
    """Namespaces that leave their group when they are forgotten."""

    def _forget(self, namespace: str) -> None:
        contribution = self._learned[namespace]
        super()._forget(namespace)
        if contribution.group is not None:
            contribution.group.withdraw(contribution)


class GroupDrafter:
    """The groups of a server; safe to share between threads.

    Args:
        members: tenant or namespace -> its group.
        groups: name -> group.
        ngram_tokens: length of an n-gram.
    """

    def __init__(self, members: Mapping[str, str], groups: Mapping[str, Group], ngram_tokens: int) -> None:
        self._members = dict(members)
        self._groups = dict(groups)
        self._ngram_tokens = ngram_tokens
        self.namespaces = _Members(Contribution)

    @classmethod
    def open(
        cls,
        vocab_size: int,
        members: Mapping[str, str] | None = None,
        min_tenants: int = 3,
        ngram_tokens: int = 6,
    ) -> GroupDrafter:
        """Returns a drafter that knows nothing yet; any vocabulary will do, since drafts repeat outputs.

        Raises:
            InvalidRequest: a number out of range, or too many groups.
        """
        members = members or {}
        expect_range("min_tenants", min_tenants, 1, 1_000)
        expect_range("ngram_tokens", ngram_tokens, 2, MAX_NGRAM_TOKENS)
        names = sorted(set(members.values()))
        expect_range("number of groups", len(names), 0, MAX_GROUPS)
        return cls(members, {name: Group(ngram_tokens, min_tenants) for name in names}, ngram_tokens)

    def start(self, context: Tokens, namespace: str = "default") -> GroupCursor:
        """Returns a cursor after the prompt `context`, which is not learned; silent outside of all groups."""
        name = self._members.get(namespace) or self._members.get(tenant_of(namespace))
        if name is None:
            return GroupCursor(None, self._ngram_tokens, context)
        contribution = self.namespaces.of(namespace)
        contribution.group, contribution.tenant = self._groups[name], tenant_of(namespace)
        return GroupCursor(contribution, self._ngram_tokens, context)


class GroupCursor:
    """One session's last tokens and its output. Owned by that session, not thread-safe."""

    __slots__ = ("_contribution", "_output", "_tail")

    def __init__(self, contribution: Contribution | None, ngram_tokens: int, context: Tokens) -> None:
        self._contribution = contribution
        self._output = Tail(MAX_LEARNED_TOKENS if contribution is not None else 1)
        self._tail = Tail(ngram_tokens - 1)
        self._tail.append(context)

    @property
    def num_bytes(self) -> int:
        """Bytes of the output that it keeps."""
        return _TOKEN_BYTES * 4 * MAX_LEARNED_TOKENS if self._contribution is not None else 64

    def observe(self, tokens: Tokens, feedback: Feedback | None = None) -> None:
        """Keeps the output for the end of the session; `feedback` is not used."""
        self._output.append(tokens)
        self._tail.append(tokens)

    def close(self) -> None:
        """Counts what the output holds."""
        contribution, self._contribution = self._contribution, None
        if contribution is not None and contribution.group is not None:
            contribution.group.learn(contribution, self._output.tokens)

    def propose(self, budget: Budget) -> DraftTree:
        """Returns what the group shares after the last tokens, what most tenants wrote as most probable."""
        if budget.max_nodes <= 0 or self._contribution is None or self._contribution.group is None:
            return DraftTree.empty()
        columns, size = new_columns(budget.max_nodes), 0
        for node in _best_first(self._contribution.group, self._tail.tokens.tobytes(), budget):
            for column, value in zip(columns, node, strict=True):
                column[size] = value
            size += 1
        return tree_of(columns, size)


def _best_first(group: Group, tokens: bytes, budget: Budget) -> Iterator[tuple[int, int, float]]:
    """Yields token, parent and probability of at most `max_nodes` nodes, the most probable path first."""
    waiting: list[tuple[float, int, int, int, float, int, bytes]] = []
    num_seen = 0

    def expand(path_prob: float, depth: int, parent: int, before: bytes) -> None:
        nonlocal num_seen
        following = group.following(before)
        total = sum(num_tenants for _, num_tenants in following)
        for token, num_tenants in following:
            prob = _WORTH * num_tenants / total
            entry = (-path_prob * prob, num_seen, parent, token, prob, depth, before)
            heapq.heappush(waiting, entry)
            num_seen += 1

    expand(1.0, 1, -1, tokens)
    with suppress(IndexError):  # nothing is waiting any more
        for size in range(budget.max_nodes):
            negative, _, parent, token, prob, depth, before = heapq.heappop(waiting)
            yield token, parent, prob
            if depth < budget.max_depth_nodes:
                expand(-negative, depth + 1, size, (before + token.to_bytes(4, sys.byteorder))[_TOKEN_BYTES:])


def members_of(groups: tuple[str, ...]) -> dict[str, str]:
    """Returns tenant or namespace -> group, from texts such as `makers=acme,globex,initech/docs`.

    Raises:
        InvalidRequest: no such text, or somebody is in two groups.
    """
    members: dict[str, str] = {}
    for text in groups:
        name, _, listed = text.partition("=")
        names = [member.strip() for member in listed.split(",")]
        if not name.strip() or not all(names):
            raise InvalidRequest("malformed group", got=repr(text)[:80], expected="NAME=TENANT,TENANT,...")
        for member in names:
            if members.setdefault(member, name.strip()) != name.strip():
                raise InvalidRequest("in two groups", got=member, expected="at most one")
    return members
