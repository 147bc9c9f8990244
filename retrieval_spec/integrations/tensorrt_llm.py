"""TensorRT-LLM: a drafter for `UserProvidedDecodingConfig`. See docs/tensorrt_llm.md.

    RetrievalDrafter(max_draft_len=8, vocab_size=152_064, server="unix:/run/retrieval-spec/drafts.sock")

The class is made when it is first asked for, since it is one of TensorRT-LLM's own drafters.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

from retrieval_spec.errors import InvalidRequest, MissingDependency
from retrieval_spec.integrations.requests import Request, RequestBook
from retrieval_spec.integrations.source import HostDrafts, read_settings

if TYPE_CHECKING:
    RetrievalDrafter: type

REMEDY = "use TensorRT-LLM 1.0 or later, with its PyTorch backend"

KEPT_STEPS = 256
"""A request that has not come for so many steps has ended: nobody says so."""


def __getattr__(name: str) -> Any:
    if name == "RetrievalDrafter":
        return _drafter_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def _drafter_class() -> type:
    base = _host_drafter()

    class RetrievalDrafter(base):  # type: ignore[misc, valid-type]
        """One path a request, the best of its draft tree. Travels to the processes that generate.

        Args:
            max_draft_len: as in `UserProvidedDecodingConfig`.
            vocab_size: of the target model, padding included.
            tokenizer: its folder, or its name on the hub: datastores of another one are refused.
            max_concurrency: with more requests than this the host does not speculate.
            **settings: `HostSettings`; what is not given comes from the environment.

        Raises:
            RetrievalSpecError: what `HostDrafts` refuses at the start.
        """

        def __init__(
            self,
            max_draft_len: int,
            vocab_size: int,
            tokenizer: str = "",
            max_concurrency: int | None = None,
            **settings: Any,
        ) -> None:
            if max_draft_len < 1:
                raise InvalidRequest("no room for drafts", got=max_draft_len, expected="max_draft_len >= 1")
            told = {
                "max_draft_len": max_draft_len,
                "max_total_draft_tokens": max_draft_len,
                "max_concurrency": max_concurrency,
            }
            known = inspect.signature(base).parameters
            super().__init__(**{name: value for name, value in told.items() if name in known})
            self.max_draft_len = max_draft_len
            self._open = functools.partial(HostDrafts, read_settings(settings), vocab_size, tokenizer)
            self._book: RequestBook | None = None
            self._open().close()  # what is wrong is said here, not in the processes that generate

        def __getstate__(self) -> dict[str, Any]:
            return {**self.__dict__, "_book": None}

        def prepare_draft_tokens(self, scheduled_requests: Any, resource_manager: Any = None) -> None:
            """Sets `py_draft_tokens` of all requests that generate."""
            if self._book is None:
                self._book = RequestBook(self._open(), KEPT_STEPS)
                self._is_alone = _world_size() == 1
                if not self._is_alone:
                    self._book.warn(MissingDependency("several ranks would have to verify the same drafts"))
            _prepare(self._book if self._is_alone else None, scheduled_requests, self.max_draft_len)

    RetrievalDrafter.__module__, RetrievalDrafter.__qualname__ = __name__, "RetrievalDrafter"
    return RetrievalDrafter


def _prepare(book: RequestBook | None, scheduled_requests: Any, max_tokens: int) -> None:
    generating = list(scheduled_requests.generation_requests)
    for request in generating:
        request.py_draft_tokens = []
    if book is None:
        return
    try:
        asked = [request for request in generating if _wants_drafts(request)]
        trees = book.draft([_row(request) for request in asked], max_tokens)
        for request, tree in zip(asked, trees, strict=True):
            path = tree.best_path()[: min(max_tokens, _room(request))]
            request.py_draft_tokens = tree.token_ids[path].tolist()
    except Exception as error:  # whatever it is, the host generates
        book.warn(error)


def _wants_drafts(request: Any) -> bool:
    left_out = ("is_dummy", "is_attention_dp_dummy", "py_disable_speculative_decoding")
    return not any(getattr(request, name, False) for name in left_out) and _room(request) > 0


def _room(request: Any) -> int:
    """Tokens that may be drafted: the target's own token comes after them."""
    length = int(request.py_orig_prompt_len + request.py_max_new_tokens)
    return length - 1 - int(request.get_num_tokens(0))


def _row(request: Any) -> Request:
    tokens = list(request.get_tokens(0))
    return Request(request.request_id, len(tokens), lambda begin: tokens[begin:])


def _host_drafter() -> type:
    try:
        from tensorrt_llm._torch.speculative.drafter import Drafter
    except ImportError as error:
        raise MissingDependency(f"no TensorRT-LLM with drafters: {error}", remedy=REMEDY) from error
    known = list(inspect.signature(Drafter.prepare_draft_tokens).parameters)
    if known[:3] != ["self", "scheduled_requests", "resource_manager"]:
        raise MissingDependency(
            "this TensorRT-LLM asks its drafters for something else", got=known, remedy=REMEDY
        )
    return Drafter  # type: ignore[no-any-return]  # the host has no types here


def _world_size() -> int:
    """How many processes generate together."""
    try:
        from tensorrt_llm._utils import mpi_world_size
    except ImportError:
        return 1
    return int(mpi_world_size())
