"""A scheduler as SGLang's around its n-gram worker, and a stand-in of that worker: what concerns drafts."""

from __future__ import annotations

import random
from array import array
from types import SimpleNamespace

import numpy as np

from tests.integrations.generations import Generation

NUM_NODES, TAIL_TOKENS, MAX_REQUESTS = 8, 18, 5


class StandInWorker:
    """SGLang's n-gram worker without a model: what its corpus is asked, in which order and with what.

    Written from the signatures of 0.5.23: `batch_get` before a decode step, `batch_put` after it, and
    `erase_match_state` for requests of the decode step before that are not in this one.
    """

    def __init__(self, server_args, gpu_id, nccl_port, target_worker) -> None:
        self.server_args = server_args
        self._target_worker = target_worker
        self.draft_token_num = server_args.speculative_num_draft_tokens
        self.topk = server_args.speculative_eagle_topk
        self.enable_overlap = not server_args.disable_overlap_schedule
        self.ngram_corpus = None
        self._names = set()

    def forward_batch_generation(self, batch, on_publish=None, pp_proxy_tensors=None):
        if not batch.forward_mode.is_decode():
            return None
        tails, lengths = [], []
        for request, accepted in zip(batch.reqs, batch.accepted, strict=True):
            context = [*request.origin_input_ids_unpadded, *request.output_ids]
            context += accepted if self.enable_overlap else []
            tails.append(context[-TAIL_TOKENS:])
            lengths.append(len(context))
        names = [request.rid for request in batch.reqs]
        self.ngram_corpus.synchronize()
        tokens, mask = self.ngram_corpus.batch_get(names, tails, lengths)
        decided = self._target_worker.verify(batch, tokens, mask)
        self.ngram_corpus.batch_put(tails)
        if left := self._names - set(names):
            self.ngram_corpus.erase_match_state(list(left))
        self._names = set(names)
        return decided

    def clear_cache_pool(self):
        self.ngram_corpus.reset()
        self._names = set()


def arguments_of(**fields):
    """What a worker is made with."""
    known = {
        "speculative_num_draft_tokens": NUM_NODES,
        "speculative_eagle_topk": 10,
        "disable_overlap_schedule": True,
        "tokenizer_path": "no-such-model",
        "model_path": "no-such-model",
        "tp_size": 1,
    }
    return SimpleNamespace(**{**known, **fields})


class Target:
    """The target's worker: verifies trees against what was recorded."""

    def __init__(self, vocab_size: int) -> None:
        self.model_runner = SimpleNamespace(model_config=SimpleNamespace(vocab_size=vocab_size))
        self.num_drafted = 0

    def verify(self, batch, tokens, mask) -> list[list[int]]:
        num_rows = len(batch.reqs)
        assert tokens.dtype == mask.dtype == np.int64
        assert tokens.shape == (num_rows * NUM_NODES,)
        assert mask.shape == (num_rows * NUM_NODES**2,)
        trees = zip(
            batch.reqs,
            tokens.reshape(num_rows, NUM_NODES).tolist(),
            mask.reshape(num_rows, NUM_NODES, NUM_NODES).tolist(),
            strict=True,
        )
        return [self._verify_one(request.generation, *tree) for request, *tree in trees]

    def _verify_one(self, one: Generation, tokens: list[int], mask: list[list[int]]) -> list[int]:
        assert tokens[0] == one.tokens[-1]
        paths = []
        for node in range(1, NUM_NODES):
            assert mask[node][0] == mask[node][node] == 1
            assert not any(mask[node][node + 1 :])
            parent = max(other for other in range(node) if mask[node][other])
            assert mask[node][:node] == [*mask[parent][: parent + 1], *[0] * (node - parent - 1)]
            paths.append([tokens[other] for other in range(1, node + 1) if mask[node][other]])
            self.num_drafted += (tokens[node], parent) != (0, 0)
        return one.verify(paths)


class SglangEngine:
    """Runs generations: requests come, go, are reordered, retracted and admitted again."""

    def __init__(self, worker, overlaps: bool, seed: int = 0) -> None:
        self._worker = worker
        self._overlaps = overlaps
        self._rng = random.Random(seed)
        self._running: list[SimpleNamespace] = []
        self._accepted: dict[str, list[int]] = {}

    def run(self, generations: list[Generation], on_step=lambda number: None) -> None:
        waiting, number = list(generations), 0
        while waiting or self._running:
            while waiting and len(self._running) < MAX_REQUESTS and self._rng.random() < 0.7:
                self._prefill(waiting.pop(0))
            if len(self._running) > 1 and self._rng.random() < 0.1:
                waiting.insert(self._rng.randrange(3), self._retract())
            self._rng.shuffle(self._running)
            on_step(number)
            if self._running:
                self._decode()
            number += 1

    def _prefill(self, one: Generation) -> None:
        """The target decides the first token without a draft."""
        output = one.tokens[len(one.prompt) :]
        request = SimpleNamespace(
            rid=one.name,
            generation=one,
            origin_input_ids_unpadded=array("q", one.prompt),
            output_ids=array("q", output),
        )
        self._worker.forward_batch_generation(self._batch([request], is_decode=False))
        self._deliver(request, one.verify([]))
        if not one.is_done:
            self._running.append(request)

    def _retract(self) -> Generation:
        request = self._running.pop(self._rng.randrange(len(self._running)))
        del self._accepted[request.rid]
        return request.generation

    def _decode(self) -> None:
        batch = self._batch(self._running, is_decode=True)
        for request, decided in zip(batch.reqs, self._worker.forward_batch_generation(batch), strict=True):
            self._deliver(request, decided)
        self._running = [request for request in self._running if not request.generation.is_done]

    def _deliver(self, request, decided: list[int]) -> None:
        """With overlapping steps a request is told what was decided one step later."""
        request.output_ids.extend(self._accepted.pop(request.rid, []) if self._overlaps else decided)
        self._accepted[request.rid] = decided
        if request.generation.is_done and self._overlaps:
            request.output_ids.extend(self._accepted.pop(request.rid))

    def _batch(self, requests, is_decode: bool):
        return SimpleNamespace(
            reqs=list(requests),
            accepted=[self._accepted.get(request.rid, []) for request in requests],
            forward_mode=SimpleNamespace(is_decode=lambda: is_decode),
            grammar_needs_sync=lambda: False,
            has_grammar=False,
        )
