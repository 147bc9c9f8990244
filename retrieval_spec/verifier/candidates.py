"""Retrieved drafts as candidates of the host's own assisted decoding: one path of each tree, one sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers.generation import CandidateGenerator

from retrieval_spec.verifier.drafts import GuardedSession, check_source
from retrieval_spec.verifier.support import check_state

if TYPE_CHECKING:
    from retrieval_spec.client import DraftSource


class RetrievalCandidateGenerator(CandidateGenerator):  # type: ignore[misc]  # the host is not typed
    """Candidates for one generation; `close` it so that the source learns the output.

    Args:
        draft_source: where trees come from.
        vocab_size: the target model's.
        max_length_tokens: of prompt and output together, as in the generation's config.
        max_nodes: nodes of a tree, of which one path is a candidate.
        namespace: whose history the session reads and joins.
    """

    requires_model_outputs = False

    def __init__(
        self,
        draft_source: DraftSource,
        vocab_size: int,
        max_length_tokens: int,
        *,
        max_nodes: int = 16,
        namespace: str = "default",
    ) -> None:
        self._source = draft_source
        self._vocab_size = vocab_size
        self._max_length_tokens = max_length_tokens
        self._max_nodes = max_nodes
        self._namespace = namespace
        self._session: GuardedSession | None = None
        self._known_tokens = 0

    def get_candidates(self, input_ids: Any) -> tuple[Any, None]:
        """Returns the ids with a draft behind them, int64[1, n + k], and no logits: drafts are no samples."""
        session = self._told(input_ids)
        # The token behind the last candidate must still be wanted.
        room = self._max_length_tokens - input_ids.shape[1] - 1
        tree = session.draft(self._max_nodes if room > 0 else 0)
        drafted = tree.token_ids[tree.best_path()[:room]].tolist() if len(tree) else []
        candidates = torch.tensor([drafted], dtype=input_ids.dtype, device=input_ids.device)
        return torch.cat([input_ids, candidates], dim=-1), None

    def update_candidate_strategy(self, input_ids: Any, scores: Any, num_matches: int) -> None:
        """Notes what was decided; the host calls it after every step, the last one included."""
        self._told(input_ids)

    def close(self) -> None:
        """Ends the session; the source has learned the output."""
        if self._session is not None:
            self._session.finish()

    def _told(self, input_ids: Any) -> GuardedSession:
        """Returns the session, told of all tokens up to here."""
        if self._session is None:
            prompt = input_ids[0].tolist()
            self._session = GuardedSession(self._source, prompt, self._namespace, self._vocab_size)
        elif input_ids.shape[1] > self._known_tokens:
            self._session.commit(input_ids[0, self._known_tokens :].tolist())
        self._known_tokens = int(input_ids.shape[1])
        return self._session


def check_assisted(model: Any, source: DraftSource) -> None:
    """Refuses what the host's assisted decoding cannot draft for.

    Raises:
        UnsupportedModel: recurrent state, or an encoder.
        InvalidRequest: a source with a larger vocabulary than the model's.
    """
    check_state(model)
    check_source(source, model.config.get_text_config(decoder=True).vocab_size)
