"""llama-cpp-python: `Llama(draft_model=RetrievalDraftModel(...))` verifies the best path of every draft tree.

The host hands over the whole context and says neither whose it is nor what it accepted: both are seen from
the tokens. Knows the `DraftSource` contract; the host is imported only where it is asked something.
"""

from __future__ import annotations

import contextlib
import logging
import time
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.budget import CostCurve, num_paying
from retrieval_spec.errors import InvalidRequest, MissingDependency, RetrievalSpecError
from retrieval_spec.step_costs import StepCostMeter, planner_of
from retrieval_spec.tree import TOKEN, DraftTree, Tokens
from retrieval_spec.verifier.drafts import check_source

if TYPE_CHECKING:
    from retrieval_spec.client import DraftSession, DraftSource

logger = logging.getLogger(__name__)

_NO_TOKENS: Tokens = np.zeros(0, TOKEN)


class RetrievalDraftModel:
    """A `LlamaDraftModel` that drafts from text that exists already; belongs to one `Llama`.

        source = DraftClient("unix:/run/retrieval-spec.sock")
        drafts = RetrievalDraftModel(source, vocab_size_of("model.gguf"))
        llama = Llama("model.gguf", draft_model=drafts)

    What the host accepts of a draft is what its next context holds. A context that has grown by more than a
    draft and a token, or has not grown out of the last one, begins another generation: the one before is then
    closed, so that it is learned from. The host never goes back within a generation, so nothing is cut. A
    source that fails costs the drafts of a generation, and one warning.

    Args:
        source: where trees come from: `LocalClient` or `DraftClient`.
        vocab_size: the target model's: `vocab_size_of(path)`, or `n_vocab()` of a `Llama`.
        max_tokens: drafted tokens in one step at most.
        max_nodes: of the tree whose best path is drafted.
        step_costs: what a step costs by its drafted tokens, or a `StepCostMeter` to learn it with: then a
            step drafts only tokens that pay.
        namespace: whose history is read and joined.

    Raises:
        InvalidRequest: the source has a larger vocabulary than the model, or a number is out of range.
    """

    def __init__(
        self,
        source: DraftSource,
        vocab_size: int,
        *,
        max_tokens: int = 16,
        max_nodes: int = 32,
        step_costs: CostCurve | StepCostMeter | None = None,
        namespace: str = "default",
    ) -> None:
        for name, value in (("max_tokens", max_tokens), ("max_nodes", max_nodes)):
            if value < 1:
                raise InvalidRequest(f"{name} is too small", got=value, expected=">= 1")
        check_source(source, vocab_size)
        self._source = source
        self._vocab_size = vocab_size
        self._max_tokens = max_tokens
        self._max_nodes = max_nodes
        self._planner = planner_of(step_costs)
        self._namespace = namespace
        self._session: DraftSession | None = None
        self._context = self._draft = _NO_TOKENS
        self._returned_s = 0.0
        self._warned = False
        _join_host_classes()

    def __call__(self, input_ids: NDArray[np.intc], /, **kwargs: Any) -> NDArray[np.intc]:
        """Returns int32[k], the tokens that the host verifies next; none is a legal answer.

        Args:
            input_ids: int32[n]  all tokens decided so far, in a buffer that the host writes to again.
            **kwargs: what later hosts may tell beside; not used.
        """
        context = np.array(input_ids, TOKEN)
        try:
            self._follow(context)
            draft = self._best_path()
        except RetrievalSpecError as error:
            self._warn(error)
            self._session = None  # the same tokens would fail in every step; the next generation tries again
            draft = _NO_TOKENS
        self._context, self._draft = context, draft
        self._returned_s = time.perf_counter()
        return draft.astype(np.intc)

    def close(self) -> None:
        """Ends the generation under way, so that it is learned from; the source stays open."""
        session, self._session = self._session, None
        self._context = self._draft = _NO_TOKENS
        if session is None:
            return
        try:
            session.close()
        except RetrievalSpecError as error:
            self._warn(error)

    def _follow(self, context: Tokens) -> None:
        """Tells the session what was decided, or opens one where a generation begins."""
        known = self._context.shape[0]
        if self._goes_on(context):
            self._planner.observe(self._draft.shape[0], time.perf_counter() - self._returned_s)
            if self._session is not None:
                self._session.commit(context[known:])
            return
        self.close()
        self._session = self._source.open_session(context[:-1], self._namespace)
        self._session.commit(context[-1:])  # the first token of the output, which is to be learned from

    def _goes_on(self, context: Tokens) -> bool:
        known = self._context.shape[0]
        num_news = context.shape[0] - known
        is_one_step = known > 0 and 0 < num_news <= self._draft.shape[0] + 1
        return is_one_step and np.array_equal(context[:known], self._context)

    def _best_path(self) -> Tokens:
        plan = self._planner.plan(self._max_tokens)
        if self._session is None or plan.max_nodes <= 0:
            return _NO_TOKENS
        tree = self._session.draft(self._max_nodes).check(self._vocab_size)
        path = tree.best_path()[: plan.max_nodes]
        if plan.cost_curve is not None:
            path = path[: _num_paying(tree, path, plan.cost_curve)]
        draft: Tokens = tree.token_ids[path]
        return draft

    def _warn(self, error: RetrievalSpecError) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("going on without drafts where they fail: %s", error)


def vocab_size_of(model_path: str | PathLike[str]) -> int:
    """Returns how many token ids the model of a GGUF file has; reads its vocabulary alone.

    Raises:
        MissingDependency: llama-cpp-python is not installed.
    """
    try:
        from llama_cpp import Llama
    except ImportError as error:
        raise MissingDependency(f"{error.name} is missing", remedy="pip install llama-cpp-python") from error
    with contextlib.closing(Llama(fspath(model_path), vocab_only=True, verbose=False)) as llama:
        return int(llama.n_vocab())


def _num_paying(tree: DraftTree, path: list[int], cost_curve: CostCurve) -> int:
    return num_paying(tree.path_probs()[path], cost_curve)


def _join_host_classes() -> None:
    """Makes `isinstance(..., LlamaDraftModel)` true; the host itself only calls what it was given."""
    with contextlib.suppress(ImportError):
        from llama_cpp.llama_speculative import LlamaDraftModel

        LlamaDraftModel.register(RetrievalDraftModel)
