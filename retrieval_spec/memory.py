"""What sessions and learned state take of the memory, and which of it is forgotten first.

Knows cursors and namespaces by what they say of themselves; no drafter by name.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence

from retrieval_spec.drafters.base import Cursor, Drafter
from retrieval_spec.drafters.namespaces import AnyNamespaces, Learner
from retrieval_spec.limits import tenant_of
from retrieval_spec.tree import Tokens

MEASURED_TOKENS = 256
"""A session is measured when it has grown by an eighth, and by so many tokens."""

_UNTOLD_BYTES_PER_TOKEN = 8
"""Of a cursor that does not say what it holds: a copy of the context with room to grow."""

_MEASURED_SHARE = 16
_BYTES_PER_TOKEN = 128
_LEAST_TOKENS = 1_024


def cursor_bytes(cursors: Sequence[Cursor], num_tokens: int) -> int:
    """Returns what the cursors of a session of so many tokens hold."""
    untold = _UNTOLD_BYTES_PER_TOKEN * num_tokens
    return sum(getattr(cursor, "num_bytes", untold) for cursor in cursors)


class LearnedMemory:
    """Keeps what all sources learned within one budget; safe to share between threads.

    Of the tenant that holds most, the namespace unused longest is forgotten: so nobody's flood takes
    another's history. Looks whenever sessions taught what may be a sixteenth of the budget.

    Attributes:
        on_taught: told the namespace, the prompt and the output of each session that ends, at once.

    Args:
        drafters: those that keep no namespaces are passed over.
        others: whatever else may learn, but not from a text alone.
        max_bytes: of all of them together.
    """

    def __init__(self, drafters: Collection[Drafter], others: Sequence[object], max_bytes: int) -> None:
        learners = [source for source in (*drafters, *others) if isinstance(source, Learner)]
        self._all: list[AnyNamespaces] = [learner.namespaces for learner in learners]
        self._learning = [drafter for drafter in drafters if isinstance(drafter, Learner)]
        self.on_taught: Callable[[str, Tokens, Tokens], None] | None = None
        self._max_bytes = max_bytes
        self._patience_tokens = max(max_bytes // _MEASURED_SHARE // _BYTES_PER_TOKEN, _LEAST_TOKENS)
        self._unseen_tokens = 0
        self._lock = threading.Lock()
        self.num_forgotten = 0

    @property
    def num_bytes(self) -> int:
        """Bytes of all namespaces, those included that only open sessions still hold."""
        return sum(namespaces.num_bytes for namespaces in self._all)

    def __contains__(self, namespace: str) -> bool:
        return any(namespace in namespaces for namespaces in self._all)

    def taught(self, namespace: str, prompt: Tokens, output: Tokens) -> None:
        """Notes that a session ended, after its cursors were closed."""
        if self.on_taught is not None:
            self.on_taught(namespace, prompt, output)
        self.learned(prompt.shape[0] + output.shape[0])

    def teach(self, namespace: str, texts: Iterable[tuple[Tokens, Tokens]]) -> None:
        """Lets sources learn prompts and outputs of earlier sessions as if those had ended now."""
        num_tokens = 0
        for prompt, output in texts:
            for drafter in self._learning:
                cursor = drafter.start(prompt, namespace)
                cursor.observe(output)
                cursor.close()
            num_tokens += prompt.shape[0] + output.shape[0]
        self.learned(num_tokens)

    def forget(self, namespace: str) -> None:
        """Lets later sessions of a namespace start anew; open ones keep what they hold until they end."""
        for namespaces in self._all:
            namespaces.forget(namespace)

    def learned(self, num_tokens: int) -> None:
        """Notes that a session ended which taught so many tokens; forgets what has no room."""
        with self._lock:
            self._unseen_tokens += num_tokens + _LEAST_TOKENS // 16
            if self._unseen_tokens < self._patience_tokens:
                return
            self._unseen_tokens = 0
            while self.num_bytes > self._max_bytes and self._forget_one():
                self.num_forgotten += 1

    def _forget_one(self) -> bool:
        by_namespace: Counter[str] = Counter()
        for namespaces in self._all:
            by_namespace.update(namespaces.sizes())
        by_tenant: Counter[str] = Counter()
        for namespace, size in by_namespace.items():
            by_tenant[tenant_of(namespace)] += size
        if not any(by_tenant.values()):
            return False
        largest = max(by_tenant, key=lambda tenant: (by_tenant[tenant], tenant))
        # The sources count a namespace as used at the same moment, so the order of any of them will do.
        oldest = next(name for name in by_namespace if tenant_of(name) == largest and by_namespace[name])
        self.forget(oldest)
        return True
