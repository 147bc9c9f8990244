"""vLLM: a proposer for `method: custom_class`, and a cache for `method: suffix`. See docs/vllm.md.

Reads vLLM's configuration objects and batches; imports vLLM itself only to ask for the rank.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, KeysView, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.client.interface import TokenIds
from retrieval_spec.errors import MissingDependency
from retrieval_spec.integrations.requests import Request, RequestBook
from retrieval_spec.integrations.source import HostDrafts, read_settings
from retrieval_spec.tree import CONTEXT, DraftTree

OPTION = "retrieval_spec"
"""The key of the settings in vLLM's `--additional-config`."""

SHIM = Path(__file__).parent / "vllm_suffix"
"""A folder for PYTHONPATH: what `method: suffix` imports is ours then."""


class RetrievalProposer:
    """One path a row, the best of its draft tree, for `speculative_config={"method": "custom_class", ...}`.

    vLLM says what stands in a row and not whose it is, so rows are found by their tokens, in one question
    a step.

    Args:
        vllm_config: vLLM's own; settings may stand in its `additional_config["retrieval_spec"]`.

    Raises:
        MissingDependency: a vLLM whose configuration is another one.
        RetrievalSpecError: what `HostDrafts` refuses at the start.
    """

    def __init__(self, vllm_config: Any) -> None:
        with _known_configuration():
            self._max_tokens = int(vllm_config.speculative_config.num_speculative_tokens)
            self._max_model_len = int(vllm_config.model_config.max_model_len)
        # All ranks of a tensor parallel group propose, and only the first one's proposals are read.
        self._drafts = _open_drafts(vllm_config) if _rank() == 0 else None

    def propose(
        self,
        sampled_token_ids: Sequence[Sequence[int]],
        num_tokens_no_spec: NDArray[Any],
        token_ids_cpu: NDArray[Any],
        slot_mappings: Any = None,
        **_later: Any,
    ) -> list[list[int]]:
        """Returns the drafted tokens of each row; none for rows that are being prefilled.

        Args:
            sampled_token_ids: of the last step; none where a row was only prefilled in part.
            num_tokens_no_spec: int[rows]  tokens that stand in each row, the sampled ones included.
            token_ids_cpu: int32[rows, max_model_len]  the rows.
            slot_mappings: not used.
        """
        proposed: list[list[int]] = [[] for _ in sampled_token_ids]
        lengths = num_tokens_no_spec[: len(proposed)].tolist()
        # The target's own token follows those drafted, so there must be room for one more.
        rooms = [min(self._max_tokens, self._max_model_len - length - 1) for length in lengths]
        asked = [row for row, sampled in enumerate(sampled_token_ids) if len(sampled) and rooms[row] > 0]
        if self._drafts is None or not asked:
            return proposed
        contexts = [token_ids_cpu[row, : lengths[row]] for row in asked]
        for row, tree in zip(asked, self._drafts.draft_rows(contexts, self._max_tokens), strict=True):
            proposed[row] = _best_tokens(tree, rooms[row])
        return proposed

    def load_model(self, *_: Any, **__: Any) -> None:
        """Does nothing: there is no draft model."""

    def dummy_run(self, *_: Any, **__: Any) -> None:
        """Does nothing, for the same reason."""


@contextmanager
def _known_configuration() -> Iterator[None]:
    try:
        yield
    except (AttributeError, TypeError) as error:
        raise MissingDependency(
            f"this vLLM has another configuration: {error}", remedy="use vLLM 0.22.1 or later"
        ) from error


def _open_drafts(vllm_config: Any) -> HostDrafts:
    with _known_configuration():
        options = vllm_config.additional_config
        model = vllm_config.model_config
        vocab_size, tokenizer = int(model.get_vocab_size()), str(model.tokenizer or "")
    settings = read_settings(options.get(OPTION) if isinstance(options, dict) else None)
    return HostDrafts(settings, vocab_size, tokenizer)


def _best_tokens(tree: DraftTree, max_tokens: int) -> list[int]:
    tokens: list[int] = tree.token_ids[tree.best_path()[:max_tokens]].tolist()
    return tokens


def _rank() -> int:
    """This process's place among those that hold parts of the same layers."""
    try:
        from vllm.distributed import get_tensor_model_parallel_rank

        return int(get_tensor_model_parallel_rank())
    except (ImportError, AssertionError):  # not there, or not set up: there is one process then
        return 0


@dataclass
class SuffixDecodingDraft:
    """What `speculate` returns: a draft in columns, parents as in a `DraftTree`."""

    token_ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    probs: list[float] = field(default_factory=list)
    score: float = 0.0
    match_len: int = 0


class SuffixDecodingCache:
    """The interface of `arctic_inference.suffix_decoding.SuffixDecodingCache`, for `method: suffix`.

    Requests have names here, so each has a session; but vLLM asks for one request at a time, hence as many
    questions a step as there are rows. What ended requests teach is kept where drafts are made.

    Args:
        max_tree_depth: longest draft of a question that names no length.
        max_cached_requests: names of requests that are remembered; negative for no bound.
        drafts: where drafts come from; None reads settings and vocabulary from vLLM's current configuration.

    Raises:
        MissingDependency: a vLLM that does not say how it is configured.
        RetrievalSpecError: what `HostDrafts` refuses at the start.
    """

    def __init__(
        self, max_tree_depth: int = 64, max_cached_requests: int = -1, *, drafts: HostDrafts | None = None
    ) -> None:
        self.max_tree_depth = max_tree_depth
        self.max_cached_requests = max_cached_requests
        is_read = drafts is not None or _rank() == 0  # as in `RetrievalProposer`
        self._book = RequestBook(drafts or _open_drafts(_current_config())) if is_read else None
        self._active: dict[Hashable, _Active] = {}
        self._cached: dict[Hashable, None] = {}

    @property
    def active_requests(self) -> KeysView[Hashable]:
        """Requests that were started and not stopped."""
        return self._active.keys()

    @property
    def cached_requests(self) -> KeysView[Hashable]:
        """Requests whose names are remembered, as their outputs may be drafted from."""
        return self._cached.keys()

    def start_request(self, req_id: Hashable, prompt_token_ids: TokenIds) -> None:
        """Begins a request.

        Raises:
            ValueError: there is one of this name.
        """
        if req_id in self._active:
            raise ValueError(f"Request '{req_id}' is already active")
        prompt = np.asarray(prompt_token_ids).tolist()
        self._active[req_id] = _Active(len(prompt), prompt)
        self._cached.pop(req_id, None)
        if self.max_cached_requests != 0:
            self._cached[req_id] = None
            while 0 < self.max_cached_requests < len(self._cached):
                del self._cached[next(iter(self._cached))]

    def stop_request(self, req_id: Hashable) -> None:
        """Ends a request, which teaches.

        Raises:
            ValueError: there is none of this name.
        """
        self._named(req_id)
        del self._active[req_id]
        if self._book is not None:
            self._book.leave([req_id])

    def add_active_response(self, req_id: Hashable, token_ids: TokenIds) -> None:
        """Appends tokens to a request's output.

        Raises:
            ValueError: there is none of this name.
        """
        self._named(req_id).tokens += np.asarray(token_ids).tolist()

    def evict_cached_response(self, req_id: Hashable) -> None:
        """Forgets a name; what its output taught stays.

        Raises:
            ValueError: it is not remembered.
        """
        if req_id not in self._cached:
            raise ValueError(f"Request '{req_id}' is not cached")
        del self._cached[req_id]

    def speculate(
        self,
        req_id: Hashable,
        context: TokenIds,
        max_spec_tokens: int | None = None,
        max_spec_factor: float = 1.0,
        max_spec_offset: float = 0.0,
        min_token_prob: float = 0.1,
        use_tree_spec: bool = False,
    ) -> SuffixDecodingDraft:
        """Returns a draft that continues a request; `context` is how its tokens end.

        Drafts end where a node is less probable than `min_token_prob`. Matches of many
        lengths have part in one draft, so `max_spec_factor` and `max_spec_offset` are not used.

        Raises:
            ValueError: there is no request of this name.
        """
        request = self._named(req_id)
        request.end_with(np.asarray(context).tolist())
        max_nodes = self.max_tree_depth if max_spec_tokens is None else max_spec_tokens
        if max_nodes <= 0 or self._book is None:
            return SuffixDecodingDraft()
        tokens = request.tokens
        (tree,) = self._book.draft([Request(req_id, len(tokens), lambda begin: tokens[begin:])], max_nodes)
        return _columns(tree, max_nodes, min_token_prob, use_tree_spec)

    def _named(self, req_id: Hashable) -> _Active:
        if req_id not in self._active:
            raise ValueError(f"Request '{req_id}' is not active")
        return self._active[req_id]


@dataclass(slots=True)
class _Active:
    """A request that was started: its context, as far as it was told."""

    num_prompt_tokens: int
    tokens: list[int]

    def end_with(self, end: list[int]) -> None:
        """Takes the context's true end over: after preemption only the newest tokens were told."""
        if end and self.tokens[-len(end) :] != end:
            self.tokens = self.tokens[: self.num_prompt_tokens] + end


def _columns(tree: DraftTree, max_nodes: int, least_prob: float, is_tree: bool) -> SuffixDecodingDraft:
    nodes = list(range(len(tree))) if is_tree else tree.best_path()[:max_nodes]
    kept: dict[int, int] = {CONTEXT: CONTEXT}
    draft = SuffixDecodingDraft()
    for node in nodes:
        parent, prob = int(tree.parents[node]), float(tree.probs[node])
        if parent in kept and prob >= least_prob:
            kept[node] = len(draft.token_ids)
            draft.token_ids.append(int(tree.token_ids[node]))
            draft.parents.append(kept[parent])
            draft.probs.append(prob)
    draft.score = sum(draft.probs)
    return draft


def _current_config() -> Any:
    try:
        from vllm.config import get_current_vllm_config
    except ImportError as error:
        raise MissingDependency(
            f"this vLLM does not tell its configuration: {error}", remedy="use vLLM 0.22.1 or later"
        ) from error
    return get_current_vllm_config()
