"""SGLang: a speculative algorithm whose n-gram worker drafts from here. See docs/sglang.md.

SGLang finds `register` by the entry point group `sglang.srt.plugins` and calls it in each of its processes;
the rest happens only where `--speculative-algorithm RETRIEVAL_SPEC` is asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.errors import InvalidRequest, MissingDependency
from retrieval_spec.tree import DraftTree

if TYPE_CHECKING:  # processes that do not draft need no grpc
    from retrieval_spec.integrations.requests import Request, RequestBook
    from retrieval_spec.integrations.source import HostDrafts

logger = logging.getLogger(__name__)

NAME = "RETRIEVAL_SPEC"
REMEDY = "use SGLang 0.5.23 or later"

UNUSED_CAPACITY = 65_536
"""Nodes of the trie that SGLang's own worker makes and nobody asks: by default it is one of a gigabyte."""

Ints = NDArray[np.int64]
_EMPTY = DraftTree.empty()


def register() -> None:
    """Makes the algorithm known. A host without the hooks goes on without, and says so."""
    try:
        algorithm_class = _algorithm_class()
        from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

        SpeculativeAlgorithm.register(
            NAME, supports_overlap=True, validate_server_args=check_arguments, spec_class=algorithm_class
        )(lambda server_args: worker_class())
    except (ImportError, AttributeError, TypeError) as error:
        logger.warning(
            "no --speculative-algorithm %s: this SGLang lacks what it needs: %s; %s", NAME, error, REMEDY
        )


def check_arguments(server_args: Any) -> None:
    """Refuses at the start what would give no drafts.

    Raises:
        InvalidRequest: nothing says where drafts come from, or a corpus is given to SGLang.
    """
    from retrieval_spec.integrations.source import read_settings

    if not read_settings().server:
        raise InvalidRequest(
            "nothing says where drafts come from",
            remedy="set RETRIEVAL_SPEC_SERVER to a server's address, or to local",
        )
    if getattr(server_args, "speculative_ngram_external_corpus_path", None):
        raise InvalidRequest(
            f"SGLang's own corpora are not drafted from under {NAME}",
            remedy="build a datastore from it, or use --speculative-algorithm NGRAM",
        )


def _algorithm_class() -> type:
    from sglang.srt.speculative.spec_info import SpeculativeAlgorithm
    from sglang.srt.speculative.spec_registry import CustomSpecAlgo

    ngram = SpeculativeAlgorithm.NGRAM

    class RetrievalAlgorithm(CustomSpecAlgo):  # type: ignore[misc]  # the host has no types here
        """What SGLang's n-gram algorithm is, but for the worker."""

        def is_ngram(self) -> bool:
            return True

        def has_draft_kv(self) -> bool:
            return False

        def handle_server_args(self, server_args: Any) -> None:
            """Sets what SGLang sets for n-grams, and less memory for the trie that is not asked."""
            told = len(getattr(server_args, "_resolved_overrides", None) or ())
            ngram.handle_server_args(server_args)
            # This is handed a stand-in, of which assigned fields count; SGLang's own code declares them.
            for _, declared in (getattr(server_args, "_resolved_overrides", None) or ())[told:]:
                for name, value in declared.items():
                    setattr(server_args, name, value)
            server_args.speculative_ngram_capacity = UNUSED_CAPACITY
            # So many tokens are shown in a step: those that were accepted since the last one among them.
            server_args.speculative_ngram_max_trie_depth = max(
                server_args.speculative_ngram_max_trie_depth, server_args.speculative_num_draft_tokens
            )

        def __getattr__(self, name: str) -> Any:
            """Answers what a registered algorithm is asked without having it: as n-grams would."""
            return getattr(ngram, name)

    return RetrievalAlgorithm


def worker_class() -> type:
    """Returns the worker: SGLang's n-gram worker, with `RetrievalCorpus` in place of its corpus.

    Raises:
        MissingDependency: a host whose worker is another one.
    """
    try:
        from sglang.srt.speculative.ngram_worker import NGRAMWorker
    except ImportError as error:
        raise MissingDependency(f"this SGLang has no n-gram worker: {error}", remedy=REMEDY) from error
    from retrieval_spec.integrations.source import HostDrafts, read_settings

    class RetrievalWorker(NGRAMWorker):  # type: ignore[misc]
        """Drafts from the sessions of the batch's requests."""

        def __init__(self, server_args: Any, gpu_id: int, nccl_port: int, target_worker: Any) -> None:
            super().__init__(server_args, gpu_id, nccl_port, target_worker)
            missing = [
                name for name in ("ngram_corpus", "draft_token_num", "topk") if not hasattr(self, name)
            ]
            if missing:
                raise MissingDependency(
                    "this SGLang's n-gram worker is another one", got=f"no {missing}", remedy=REMEDY
                )
            group = _tensor_parallel_group(server_args)
            drafts = None
            if group is None or group.rank_in_group == 0:
                tokenizer = getattr(server_args, "tokenizer_path", None) or server_args.model_path
                vocab_size = target_worker.model_runner.model_config.vocab_size
                drafts = HostDrafts(read_settings(), int(vocab_size), str(tokenizer))
            self.ngram_corpus = RetrievalCorpus(
                drafts, self.draft_token_num, is_chain=self.topk == 1, share=_share_in(group)
            )

        def forward_batch_generation(self, batch: Any, *arguments: Any, **options: Any) -> Any:
            self.ngram_corpus.see(batch.reqs)
            return super().forward_batch_generation(batch, *arguments, **options)

    return RetrievalWorker


class RetrievalCorpus:
    """Answers what SGLang's n-gram corpus is asked, from the sessions of its requests.

    Args:
        drafts: where trees come from; None where another rank asks and this one is told.
        num_nodes: of each row's answer, the last decided token included.
        is_chain: whether the host verifies one path a row.
        share: int64[2, rows, num_nodes] -> the first rank's, on all ranks; they verify the same drafts.
    """

    def __init__(
        self,
        drafts: HostDrafts | None,
        num_nodes: int,
        *,
        is_chain: bool = False,
        share: Callable[[Ints], Ints] = lambda columns: columns,
    ) -> None:
        from retrieval_spec.integrations.requests import RequestBook

        self._drafts = drafts
        self._num_nodes = num_nodes
        self._is_chain = is_chain
        self._share = share
        self._book = None if drafts is None else RequestBook(drafts)
        self._seen: dict[str, Any] = {}
        self._drafted: dict[str, Any] = {}

    def see(self, requests: Iterable[Any]) -> None:
        """Notes the requests of a batch: what the corpus is shown of them is how they end."""
        self._seen = {request.rid: request for request in requests}

    def batch_get(
        self, req_ids: Sequence[str], batch_tokens: Sequence[Sequence[int]], total_lens: Sequence[int]
    ) -> tuple[Ints, Ints]:
        """Returns int64[rows * num_nodes] tokens and int64[rows * num_nodes * num_nodes] ancestors.

        Node 0 of a row is its last token; a node's row of ancestors holds the node itself. What is left over
        hangs off node 0 with token 0.

        Args:
            req_ids: names of the rows.
            batch_tokens: how they end.
            total_lens: how long they are.
        """
        columns = np.zeros((2, len(req_ids), self._num_nodes), np.int64)
        for row, tokens in enumerate(batch_tokens):
            columns[0, row, 0] = tokens[-1] if len(tokens) else 0
        if self._book is not None and self._drafts is not None:
            try:
                for row, tree in enumerate(self._trees(self._book, req_ids, batch_tokens, total_lens)):
                    _fill(columns[:, row], self._path(tree) if self._is_chain else tree)
            except Exception as error:  # whatever it is, the host generates
                columns[:, :, 1:] = 0
                self._drafts.warn(error)
        tokens, parents = self._share(columns)
        return tokens.reshape(-1), ancestors(parents).reshape(-1)

    def _trees(
        self,
        book: RequestBook,
        req_ids: Sequence[str],
        batch_tokens: Sequence[Sequence[int]],
        total_lens: Sequence[int],
    ) -> list[DraftTree]:
        self._drafted.update({name: self._seen[name] for name in req_ids})
        rows = [
            _row(self._drafted[name], tokens, length)
            for name, tokens, length in zip(req_ids, batch_tokens, total_lens, strict=True)
        ]
        drafted = iter(book.draft([row for row in rows if row is not None], self._num_nodes - 1))
        return [_EMPTY if row is None else next(drafted) for row in rows]

    def _path(self, tree: DraftTree) -> DraftTree:
        return DraftTree.chain(tree.token_ids[tree.best_path()].tolist())

    def batch_put(self, batch_tokens: Sequence[Sequence[int]]) -> None:
        """Does nothing: what was decided travels with the next question."""

    def synchronize(self) -> None:
        """Does nothing, for the same reason."""

    def erase_match_state(self, req_ids: Iterable[str]) -> None:
        """Ends requests that left the batch, which teaches: what was accepted last is in them by now."""
        if self._book is not None:
            left = [self._drafted.pop(name) for name in req_ids if name in self._drafted]
            self._book.leave([one.rid for one in left], [_row(one, (), _length(one)) for one in left])

    def reset(self) -> None:
        """Ends all of them; what they taught stays."""
        if self._book is not None:
            self._book.close()
            self._drafted.clear()

    def load_external_corpus_named(self, corpus_id: str, chunks: Any) -> int:
        """Refuses SGLang's own corpora.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{NAME} drafts from datastores: build one, and serve it")

    def commit_external_corpus_load(self, corpus_id: str, loaded_token_count: int) -> None:
        """Does nothing: none is loaded."""

    def remove_external_corpus(self, corpus_id: str) -> None:
        """Does nothing: there is none."""

    def list_external_corpora(self) -> dict[str, int]:
        """Returns none."""
        return {}


def ancestors(parents: Ints) -> Ints:
    """Returns int64[rows, n, n] of int64[rows, n] parents: 1 for a node itself and all above it."""
    num_rows, num_nodes = parents.shape
    masks = np.zeros((num_rows, num_nodes, num_nodes), np.int64)
    rows = np.arange(num_rows)
    for node in range(num_nodes):
        if node:
            masks[:, node] = masks[rows, parents[:, node]]
        masks[:, node, node] = 1
    return masks


def _fill(columns: Ints, tree: DraftTree) -> None:
    """Writes a tree's tokens and parents behind node 0."""
    kept = tree.prefix(columns.shape[1] - 1)
    columns[0, 1 : len(kept) + 1] = kept.token_ids
    columns[1, 1 : len(kept) + 1] = kept.parents + 1


def _row(request: Any, end: Sequence[int], length: int) -> Request | None:
    """A request as the book asks for it; None if not all of its newest tokens are shown.

    With overlapping steps a request does not hold what was accepted last; the row's end does.
    """
    from retrieval_spec.integrations.requests import Request

    prompt, output, num_known = request.origin_input_ids_unpadded, request.output_ids, _length(request)
    news = list(end[len(end) - (length - num_known) :]) if length > num_known else []
    if len(news) != max(0, length - num_known):
        return None

    def tokens_from(begin: int) -> list[int]:
        rest = [*prompt[begin:], *output[max(0, begin - len(prompt)) :], *news[max(0, begin - num_known) :]]
        return rest[: length - begin]

    return Request(request.rid, length, tokens_from)


def _length(request: Any) -> int:
    return len(request.origin_input_ids_unpadded) + len(request.output_ids)


def _tensor_parallel_group(server_args: Any) -> Any:
    """The ranks that verify together; None if there is one."""
    if server_args.tp_size == 1:
        return None
    from sglang.srt.distributed import get_tp_group

    return get_tp_group()


def _share_in(group: Any) -> Callable[[Ints], Ints]:
    """What gives all ranks the first one's drafts: two that verify different ones would stop for good."""
    if group is None:
        return lambda columns: columns
    import torch

    def share(columns: Ints) -> Ints:
        torch.distributed.broadcast(torch.from_numpy(columns), src=group.ranks[0], group=group.cpu_group)
        return columns

    return share
