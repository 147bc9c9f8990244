"""Drafts from a draft model with another vocabulary than the target's: both read and write the same text.

The context's text goes to the draft model, and its most probable continuation comes back as one chain of
the target's tokens. The chain is decided before anything random: its probabilities rank it among other
drafts and are never tested against the target's.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from retrieval_spec.drafters.base import Budget, own_source
from retrieval_spec.errors import InvalidRequest, TokenizerMismatch
from retrieval_spec.feedback import Feedback
from retrieval_spec.model_tree import DraftModel, Growth, Path, RewindablePredictions, check_probs
from retrieval_spec.tree import TOKEN, DraftTree, Tokens

_PIECE = re.compile(r"\s{1,64}\S{0,64}|\S{1,64}")
"""A bounded run of white space and a word. Only the last piece of a text changes when text is appended."""

_WINDOW_TOKENS = 8
"""What is decoded before a token, so that it is spelled as in the middle of a text."""

_MAX_PENDING_TOKENS = 4  # a character has no more bytes
_PARTIAL = "\N{REPLACEMENT CHARACTER}"


class TextTokenizer(Protocol):
    """What is asked of a tokenizer; `datastore.tokenizer.load_tokenizer` opens one."""

    @property
    def vocab_size(self) -> int:
        """The largest id plus one."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[Tokens]:
        """Returns int32[n] ids for each text, without special tokens around it."""
        ...

    def plain_text(self, ids: Sequence[int]) -> str:
        """Returns the text of ids, special tokens left out, a part of a character as U+FFFD."""
        ...

    def prefix_ids(self) -> Tokens:
        """Returns int32[n], the special tokens before a text."""
        ...


@dataclass(frozen=True, slots=True)
class _Parts:
    model: DraftModel
    draft_tokenizer: TextTokenizer
    target_tokenizer: TextTokenizer
    eos_ids: frozenset[int]
    growth: Growth


class TextModelDrafter:
    """A draft model of any vocabulary as a source of drafts; shares the model."""

    def __init__(self, parts: _Parts) -> None:
        self._parts = parts

    @classmethod
    def open(
        cls,
        vocab_size: int,
        model: DraftModel | None = None,
        draft_tokenizer: TextTokenizer | None = None,
        target_tokenizer: TextTokenizer | None = None,
        eos_ids: Collection[int] = (),
        growth: Growth | None = None,
    ) -> TextModelDrafter:
        """Returns the drafter.

        Args:
            vocab_size: the target model's.
            model: the draft model; its ids mean the draft tokenizer's tokens, its predictions can go back.
            draft_tokenizer: the draft model's.
            target_tokenizer: the target model's.
            eos_ids: tokens of the draft model that end its text.
            growth: a draft token that is reached with this probability or less is the last one.

        Raises:
            InvalidRequest: a part is missing, or the model's predictions cannot go back.
            TokenizerMismatch: a tokenizer has more ids than its model.
        """
        if model is None or draft_tokenizer is None or target_tokenizer is None:
            raise InvalidRequest(
                "drafts through text need a draft model and both tokenizers",
                remedy="pass model, draft_tokenizer and target_tokenizer",
            )
        if not isinstance(model.start(), RewindablePredictions):
            raise InvalidRequest("the draft model's predictions cannot go back", remedy="give them truncate")
        for whose, tokenizer, size in (
            ("draft", draft_tokenizer, model.vocab_size),
            ("target", target_tokenizer, vocab_size),
        ):
            if tokenizer.vocab_size > size:
                raise TokenizerMismatch(
                    f"the tokenizer of the {whose} model has ids that the model does not have",
                    got=tokenizer.vocab_size,
                    expected=f"<= {size}",
                )
        parts = _Parts(model, draft_tokenizer, target_tokenizer, frozenset(eos_ids), growth or Growth())
        return cls(parts)

    def start(self, context: Tokens, namespace: str = "default") -> TextModelCursor:
        """Returns a cursor that has observed `context`."""
        return TextModelCursor(self._parts, context)


class TextModelCursor:
    """One session's text and predictions; owned by that session, not thread-safe."""

    __slots__ = ("_context", "_feed", "_parts", "_reader")

    def __init__(self, parts: _Parts, context: Tokens) -> None:
        self._parts = parts
        self._reader = _Reader(parts.target_tokenizer)
        self._feed = _Feed(parts)
        self._context: list[int] = []  # its newest tokens
        self.observe(context)

    def observe(self, tokens: Tokens, feedback: Feedback | None = None) -> None:
        """Reads the text of committed tokens; the model reads it when it is asked."""
        ids = tokens.tolist()
        self._feed.append("".join([self._reader.read(token) for token in ids]))
        kept_tokens = _WINDOW_TOKENS + _MAX_PENDING_TOKENS
        self._context = (self._context + ids[-kept_tokens:])[-kept_tokens:]

    def close(self) -> None:
        """Does nothing: the predictions end with the cursor."""

    def propose(self, budget: Budget) -> DraftTree:
        """Returns one chain: the target's tokens for the draft model's most probable text.

        Raises:
            InvalidDistribution: the model's numbers are no probabilities.
        """
        depth_nodes = min(budget.max_nodes, budget.max_depth_nodes, self._parts.growth.max_depth_nodes)
        if depth_nodes <= 0 or not self._context:
            return DraftTree.empty()
        # One more than is wanted: what the last one spells may still change.
        text = self._feed.continuation(depth_nodes + 1)
        token_ids, ends = self._as_target_tokens(text)
        return _chain(token_ids[:depth_nodes], text.log_probs_at(ends[:depth_nodes]))

    def _as_target_tokens(self, text: _Continuation) -> tuple[list[int], list[int]]:
        """Returns the tokens that spell the settled beginning of a text, and where in it each one ends."""
        pending = self._reader.pending
        ids = _settled_ids(self._parts.target_tokenizer, text)
        if ids[: len(pending)] != pending:  # the text goes on with another character than the context
            return [], []
        ids = ids[len(pending) :]
        window = self._context[: len(self._context) - len(pending)][-_WINDOW_TOKENS:]
        ends = _ends_in(self._parts.target_tokenizer, window, pending, ids, text.text)
        return ids[: len(ends)], ends


class _Reader:
    """The text of a growing sequence of tokens, one token after the other, so that chunks do not matter.

    Attributes:
        pending: the newest tokens, where they are the beginning of a character.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._before: list[int] = []
        self._text_before = ""
        self.pending: list[int] = []

    def read(self, token: int) -> str:
        """Returns what the token adds to the text; nothing for a part of a character."""
        self.pending.append(token)
        text = self._tokenizer.plain_text(self._before + self.pending)
        if text.endswith(_PARTIAL) and len(self.pending) < _MAX_PENDING_TOKENS:
            return ""
        added = text[len(self._text_before) :]
        if added:
            self._before = self.pending
            self._text_before = self._tokenizer.plain_text(self._before)
        self.pending = []
        return added


class _Feed:
    """What the draft model has read of a growing text; its last, unfinished piece is encoded anew."""

    def __init__(self, parts: _Parts) -> None:
        self._parts = parts
        self._predictions = parts.model.start()
        self._finished: list[int] = parts.draft_tokenizer.prefix_ids().tolist()  # not yet observed
        self._has_text = False
        self._open_piece = ""
        self._length_tokens = 0
        self._tail: list[int] = []  # observed, of the unfinished piece
        self._newest: list[int] = []

    def append(self, text: str) -> None:
        """Adds text; a piece that is finished stays as it is encoded now."""
        *finished, self._open_piece = _PIECE.findall(self._open_piece + text) or [""]
        for piece in finished:
            self._finished += self._encoded(piece)
            self._has_text = True

    def continuation(self, max_tokens: int) -> _Continuation:
        """Returns the draft model's most probable text, token by token."""
        self._catch_up()
        if self._length_tokens == 0:
            return _Continuation("", False, [0], [0.0])
        path, log_probs, is_whole = self._most_probable(max_tokens)
        before = self._parts.draft_tokenizer.plain_text(self._newest)
        ends, text = [0], before
        for length in range(1, len(path) + 1):
            text = self._parts.draft_tokenizer.plain_text([*self._newest, *path[:length]])
            ends.append(max(len(text.rstrip(_PARTIAL)) - len(before), ends[-1]))
        if not text.startswith(before):
            return _Continuation("", False, [0], [0.0])
        readable, broken, _ = text[len(before) :].partition(_PARTIAL)
        return _Continuation(readable, is_whole and not broken, ends, log_probs)

    def _most_probable(self, max_tokens: int) -> tuple[Path, list[float], bool]:
        """Returns tokens, the log-probability of the path to each of them from 0 on, and if they are all."""
        path: Path = ()
        log_probs = [0.0]
        vocab_size = self._parts.model.vocab_size
        for _ in range(max_tokens):
            probs = check_probs(self._predictions.next_probs([path]), 1, vocab_size)[0]
            token = int(np.argmax(probs))
            if token in self._parts.eos_ids:
                return path, log_probs, True
            path = (*path, token)
            log_probs.append(log_probs[-1] + float(np.log(probs[token])))
            if np.exp(log_probs[-1]) <= self._parts.growth.min_gain_tokens:
                break
        return path, log_probs, False

    def _catch_up(self) -> None:
        """Shows the model the context; what it read of a piece that came out otherwise, it forgets."""
        tail = self._encoded(self._open_piece) if self._open_piece else []
        unread = self._finished + tail
        same = 0
        while same < min(len(self._tail), len(unread)) and self._tail[same] == unread[same]:
            same += 1
        forgotten = len(self._tail) - same
        if forgotten:
            assert isinstance(self._predictions, RewindablePredictions)
            self._length_tokens -= forgotten
            self._predictions.truncate(self._length_tokens)
        self._newest = [*self._newest[: len(self._newest) - forgotten], *unread[same:]]
        if unread[same:]:
            self._predictions.observe(np.array(unread[same:], TOKEN))
        self._length_tokens += len(unread) - same
        # The tail may be forgotten later; what is before it is the context of what is decoded.
        self._newest = self._newest[-(_WINDOW_TOKENS + len(tail)) :]
        self._tail, self._finished = tail, []

    def _encoded(self, piece: str) -> list[int]:
        tokenizer = self._parts.draft_tokenizer
        return _inside(tokenizer, piece) if self._has_text else tokenizer.encode_batch([piece])[0].tolist()


@dataclass(frozen=True, slots=True)
class _Continuation:
    """What a draft model would write.

    Attributes:
        text: up to the first character that is none.
        is_whole: whether the model ends its text here.
        ends: where in the text the beginning and each draft token end.
        log_probs: log-probability of the draft tokens up to there.
    """

    text: str
    is_whole: bool
    ends: list[int]
    log_probs: list[float]

    def log_probs_at(self, ends: Sequence[int]) -> list[float]:
        """Returns log-probabilities of the text up to some places; within a draft token, in proportion."""
        last = {end: log_prob for end, log_prob in zip(self.ends, self.log_probs, strict=True)}
        if not ends:
            return []
        found: list[float] = np.interp(ends, list(last), list(last.values())).tolist()
        return found


def _settled_ids(tokenizer: TextTokenizer, text: _Continuation) -> list[int]:
    """Returns tokens for a continuation, without those that more text could still change.

    That is the unfinished piece at the end; of a text that is one piece, its last token.
    """
    pieces = _PIECE.findall(text.text)
    finished = pieces if text.is_whole else pieces[:-1]
    if pieces and not finished:
        return _inside(tokenizer, pieces[0])[:-1]
    return [token for piece in finished for token in _inside(tokenizer, piece)]


def _inside(tokenizer: TextTokenizer, piece: str) -> list[int]:
    """Returns the tokens of a piece that is not the beginning of a text.

    Some tokenizers treat the beginning as a word's; behind another character it is none.
    """
    anchor = "a" if piece[0].isspace() else "\n"
    encoded = tokenizer.encode_batch([anchor, anchor + piece, piece])
    before, both, alone = encoded[0].tolist(), encoded[1].tolist(), encoded[2].tolist()
    inside: list[int] = both[len(before) :] if both[: len(before)] == before else alone
    return inside


def _ends_in(
    tokenizer: TextTokenizer, window: list[int], pending: list[int], ids: list[int], text: str
) -> list[int]:
    """Returns where in a text each token ends, up to the first one that spells something else."""
    before = tokenizer.plain_text(window)
    spelled = tokenizer.plain_text(window + pending)
    ends: list[int] = []
    for length in range(1, len(ids) + 1):
        previous, spelled = spelled, tokenizer.plain_text(window + pending + ids[:length])
        settled = spelled.rstrip(_PARTIAL)
        is_silent = spelled == previous and not spelled.endswith(
            _PARTIAL
        )  # a special token that is spelled out
        if is_silent or len(settled) < len(before) or not (before + text).startswith(settled):
            break
        ends.append(len(settled) - len(before))
    return ends


def _chain(token_ids: list[int], log_probs: list[float]) -> DraftTree:
    if not token_ids:
        return DraftTree.empty()
    probs = np.exp(np.diff(log_probs, prepend=0.0)).clip(0, 1).tolist()
    chain = DraftTree.chain(token_ids, probs)
    return DraftTree(chain.token_ids, chain.parents, chain.probs, own_source(len(chain)))
