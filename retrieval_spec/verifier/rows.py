"""One sequence of a batch: its tokens, how its next ones are chosen, and when it ends."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers.generation import logits_process, stopping_criteria

from retrieval_spec.errors import InvalidRequest
from retrieval_spec.verifier.mixed import MixedSampler
from retrieval_spec.verifier.sampling import greedy, highest
from retrieval_spec.verifier.stopping import StopRule

if TYPE_CHECKING:
    from retrieval_spec.model_tree import Proposals
    from retrieval_spec.verifier.drafts import GuardedSession

# What the host's own processors and criteria compute of a row is the same whether others stand beside it.
_ROW_WISE = {
    *("MinLengthLogitsProcessor", "MinNewTokensLengthLogitsProcessor", "TemperatureLogitsWarper"),
    *("TopPLogitsWarper", "TopKLogitsWarper", "TopHLogitsWarper"),
    *("MinPLogitsWarper", "TypicalLogitsWarper", "EpsilonLogitsWarper", "EtaLogitsWarper"),
    *("NoRepeatNGramLogitsProcessor", "SequenceBiasLogitsProcessor", "NoBadWordsLogitsProcessor"),
    *("ForcedBOSTokenLogitsProcessor", "ForcedEOSTokenLogitsProcessor", "InfNanRemoveLogitsProcessor"),
    *("ExponentialDecayLengthPenalty", "LogitNormalization", "SuppressTokensLogitsProcessor"),
    *("SuppressTokensAtBeginLogitsProcessor", "WatermarkLogitsProcessor"),
    *("MaxLengthCriteria", "EosTokenCriteria", "StopStringCriteria"),
}


class ContextBuffer:
    """All tokens decided so far, as the processors and criteria of the host read them.

    Args:
        prompt_ids: int64[1, n]  the prompt.
    """

    def __init__(self, prompt_ids: Any) -> None:
        self.length = int(prompt_ids.shape[1])
        self._buffer = torch.empty((1, 2 * self.length + 64), dtype=torch.long, device=prompt_ids.device)
        self._buffer[:, : self.length] = prompt_ids

    def append(self, token_id: int) -> None:
        """Adds one decided token."""
        if self.length == self._buffer.shape[1]:
            self._buffer = torch.cat([self._buffer, torch.empty_like(self._buffer)], dim=1)
        self._buffer[0, self.length] = token_id
        self.length += 1

    def ids(self) -> Any:
        """Returns int64[1, length], a view whose content never changes."""
        return self._buffer[:, : self.length]


class Chooser:
    """The target's own choice at a node: the host's processors, then greedy or the keyed draw.

    Processors see the prompt and the path's own tokens, once for each decided token and in order, as
    they do in the host's loop: also those that keep state are right.

    Attributes:
        proposals: the children that a draft model drew at random for the next step; a sampled token is
            tested against them first.
    """

    def __init__(
        self,
        context: ContextBuffer,
        processors: Any,
        pick: Callable[[Any, int], int],
        mixed: MixedSampler | None,
        *,
        keep_scores: bool,
    ) -> None:
        self._context = context
        self._processors = processors
        self._pick = pick
        self._mixed = mixed
        self._step_start = context.length
        self.proposals: Proposals = {}
        self._is_plain = pick is greedy and not processors and not keep_scores
        self.scores: tuple[Any, ...] | None = () if keep_scores else None
        self.logits: tuple[Any, ...] = ()

    def at(self, logits: Any) -> Callable[[int], int]:
        """Returns the choice by node, given logits[n, vocab_size] of all nodes."""
        if self._is_plain:
            return highest(logits.float()).__getitem__
        self._step_start = self._context.length
        return lambda node: self._choose(logits[node : node + 1])

    def _choose(self, logits: Any) -> int:
        # Processors work on float32 in the host's loop, whatever the model computes in.
        raw = logits.to(copy=True, dtype=torch.float32, device=self._context.ids().device)
        scores = self._processors(self._context.ids(), raw.clone() if self.scores is not None else raw)
        if self.scores is not None:
            self.scores += (scores,)
            self.logits += (raw,)
        if self._mixed is not None and self.proposals:
            path = tuple(self._context.ids()[0, self._step_start :].tolist())
            if path in self.proposals:
                return self._mixed(scores, self._context.length, self.proposals[path])
        return self._pick(scores, self._context.length)


class Row:
    """One sequence of a batch.

    Attributes:
        index: its place in the batch.
        context: its tokens.
        chooser: its next ones.
        session: where its drafts come from.
        is_stopped: whether it has ended.
        root: the token decided last.
    """

    def __init__(
        self, index: int, context: ContextBuffer, chooser: Chooser, session: GuardedSession, rule: StopRule
    ) -> None:
        self.index = index
        self.context = context
        self.chooser = chooser
        self.session = session
        self.is_stopped = False
        self.root = -1
        self._rule = rule

    def stops(self, token_id: int) -> bool:
        """Takes a decided token; returns whether it is the last one."""
        self.context.append(token_id)
        self.is_stopped = self._rule.stops(token_id, self.context, self.chooser.scores)
        return self.is_stopped


def check_stopping(criteria: Any, rule: StopRule, num_rows: int) -> None:
    """Refuses criteria by which rows of a batch cannot end one by one.

    Raises:
        InvalidRequest: criteria that look at several rows, or rows that would have to run on after their end.
    """
    if num_rows == 1:
        return
    _check_row_wise(criteria, stopping_criteria)
    if rule.has_others and not rule.end_ids:
        raise InvalidRequest(
            "without an end-of-sequence token the host lets rows of a batch run on after their end",
            remedy="give eos_token_id, or generate one sequence at a time",
        )


def processors_of_rows(processors: Any, num_rows: int) -> list[Any]:
    """Returns the processors of each row, which see one sequence each.

    Raises:
        InvalidRequest: several rows, and a processor that may look at more than one of them.
    """
    if num_rows == 1:
        return [processors]
    own = [processor for processor in processors if type(processor) not in _BY_ROW]
    _check_row_wise(own, logits_process)
    return [
        type(processors)([_of_row(processor, row, num_rows) for processor in processors])
        for row in range(num_rows)
    ]


def _check_row_wise(parts: Sequence[Any], module: Any) -> None:
    for part in parts:
        name = type(part).__name__
        is_host_s = name in _ROW_WISE and type(part) is getattr(module, name, None)
        if not is_host_s and not getattr(part, "is_row_wise", False):
            raise InvalidRequest(
                "rows of a batch go different ways, and this may look at several of them",
                got=name,
                expected="what sees one sequence alone",
                remedy="generate one sequence at a time, or set is_row_wise = True if it keeps no state",
            )


def _of_row(processor: Any, row: int, num_rows: int) -> Any:
    narrow = _BY_ROW.get(type(processor))
    return processor if narrow is None else narrow(copy.copy(processor), row, num_rows)


def _prefix_of_row(processor: Any, row: int, num_rows: int) -> Any:
    allowed = processor._prefix_allowed_tokens_fn
    processor._prefix_allowed_tokens_fn = lambda _, ids: allowed(row, ids)
    return processor


def _encoder_penalty_of_row(processor: Any, row: int, num_rows: int) -> Any:
    prompts = processor.encoder_input_ids
    row = row * prompts.shape[0] // num_rows  # several outputs of one prompt
    processor.encoder_input_ids = prompts[row : row + 1]
    return processor


def _encoder_ngrams_of_row(processor: Any, row: int, num_rows: int) -> Any:
    row = row * processor.batch_size // num_rows
    processor.generated_ngrams = [processor.generated_ngrams[row]]
    processor.batch_size = 1
    return processor


def _penalty_of_row(processor: Any, row: int, num_rows: int) -> Any:
    ignored = processor.prompt_ignore_length if hasattr(processor, "prompt_ignore_length") else None
    if isinstance(ignored, torch.Tensor):  # the padding of every prompt
        row = row * ignored.shape[0] // num_rows
        processor.prompt_ignore_length = ignored[row : row + 1]
    return processor


_BY_ROW: dict[type, Callable[[Any, int, int], Any]] = {
    logits_process.RepetitionPenaltyLogitsProcessor: _penalty_of_row,
    logits_process.PrefixConstrainedLogitsProcessor: _prefix_of_row,
    logits_process.EncoderRepetitionPenaltyLogitsProcessor: _encoder_penalty_of_row,
    logits_process.EncoderNoRepeatNGramLogitsProcessor: _encoder_ngrams_of_row,
}
