"""A model runner as vLLM's: rows of one array that change places, partial prefills, preemption."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np

from tests.integrations.generations import Generation

NUM_TOKENS, MAX_MODEL_LEN, MAX_ROWS = 6, 400, 5


def config_of(vocab_size: int, **settings):
    """What a proposer is made with."""
    return SimpleNamespace(
        speculative_config=SimpleNamespace(
            num_speculative_tokens=NUM_TOKENS,
            suffix_decoding_max_tree_depth=24,
            suffix_decoding_max_spec_factor=1.0,
            suffix_decoding_min_token_prob=0.1,
            suffix_decoding_max_cached_requests=1_000,
        ),
        model_config=SimpleNamespace(
            max_model_len=MAX_MODEL_LEN, get_vocab_size=lambda: vocab_size, tokenizer="no-such-model"
        ),
        additional_config={"retrieval_spec": settings},
    )


class VllmEngine:
    """Runs generations; `propose(batch, sampled)` is asked once a step, as `propose_draft_token_ids` does."""

    def __init__(self, propose, seed: int = 0) -> None:
        self._propose = propose
        self._rng = random.Random(seed)
        self._rows: list[Generation] = []
        self._drafts: dict[str, list[int]] = {}
        self._prefilling: set[str] = set()
        # What stands behind a row's end is left over from rejected drafts.
        self._ids = np.full((MAX_ROWS, MAX_MODEL_LEN), -7, np.int32)
        self._lengths = np.zeros(MAX_ROWS, np.int64)
        self.num_drafted = 0

    def run(self, generations: list[Generation], on_step=lambda number: None) -> None:
        waiting, number = list(generations), 0
        while waiting or self._rows:
            while waiting and len(self._rows) < MAX_ROWS and self._rng.random() < 0.7:
                self._admit(waiting.pop(0))
            if len(self._rows) > 1 and self._rng.random() < 0.1:
                waiting.insert(self._rng.randrange(3), self._remove(self._rng.randrange(len(self._rows))))
            if len(self._rows) > 1 and self._rng.random() < 0.2:
                self._swap(*self._rng.sample(range(len(self._rows)), 2))
            on_step(number)
            self._step()
            number += 1

    def _admit(self, one: Generation) -> None:
        self._rows.append(one)
        self._fill(len(self._rows) - 1)
        if self._rng.random() < 0.4:
            self._prefilling.add(one.name)

    def _fill(self, row: int) -> None:
        tokens = self._rows[row].tokens
        self._ids[row, : len(tokens)] = tokens
        self._lengths[row] = len(tokens)

    def _remove(self, row: int) -> Generation:
        one, last = self._rows[row], self._rows.pop()
        if one is not last:
            self._rows[row] = last
            self._fill(row)
        self._drafts.pop(one.name, None)
        self._prefilling.discard(one.name)
        return one

    def _swap(self, one: int, other: int) -> None:
        self._rows[one], self._rows[other] = self._rows[other], self._rows[one]
        self._fill(one)
        self._fill(other)

    def _step(self) -> None:
        if not self._rows:
            return
        sampled = [self._decided(row) for row in range(len(self._rows))]
        drafts = self._propose(self._batch(), sampled)
        assert len(drafts) == len(self._rows)
        for one, draft in zip(self._rows, drafts, strict=True):
            assert type(draft) is list
            assert all(type(token) is int for token in draft)
            assert len(draft) <= min(NUM_TOKENS, MAX_MODEL_LEN - len(one.tokens) - 1)
            self._drafts[one.name] = draft
            self.num_drafted += len(draft)
        for row in range(len(self._rows) - 1, -1, -1):
            if self._rows[row].is_done:
                self._remove(row)

    def _decided(self, row: int) -> list[int]:
        one = self._rows[row]
        if one.name in self._prefilling:
            self._prefilling.remove(one.name)
            return []
        assert self._ids[row, : self._lengths[row]].tolist() == one.tokens
        draft = self._drafts.get(one.name, [])
        end = len(one.tokens) + len(draft)
        self._ids[row, len(one.tokens) : end] = draft
        decided = one.verify([draft])
        self._fill(row)
        return list(decided)

    def _batch(self) -> SimpleNamespace:
        names = [one.name for one in self._rows]
        return SimpleNamespace(
            req_ids=names,
            req_id_to_index={name: row for row, name in enumerate(names)},
            num_prompt_tokens=np.array([len(one.prompt) for one in self._rows]),
            num_tokens_no_spec=self._lengths,
            token_ids_cpu=self._ids,
        )


def custom_class(proposer):
    """What the runner does for `method: custom_class`."""
    return lambda batch, sampled: proposer.propose(
        sampled, batch.num_tokens_no_spec, batch.token_ids_cpu, slot_mappings=None
    )


def suffix_method(cache):
    """What the runner does for `method: suffix`: requests one at a time; those that left are stopped."""

    def propose(batch, sampled):
        drafts = []
        for row, tokens in enumerate(sampled):
            drafts.append([])
            name, length = batch.req_ids[row], int(batch.num_tokens_no_spec[row])
            if not tokens:
                continue
            if name not in cache.active_requests:
                if name in cache.cached_requests:
                    cache.evict_cached_response(name)
                cache.start_request(name, batch.token_ids_cpu[row, : batch.num_prompt_tokens[row]])
            cache.add_active_response(name, tokens)
            drafts[-1] = cache.speculate(
                name,
                batch.token_ids_cpu[row, max(0, length - 24) : length],
                max_spec_tokens=min(NUM_TOKENS, MAX_MODEL_LEN - length - 1),
                max_spec_factor=1.0,
                min_token_prob=0.1,
            ).token_ids
        for name in cache.active_requests - batch.req_id_to_index.keys():
            cache.stop_request(name)
        return drafts

    return propose
