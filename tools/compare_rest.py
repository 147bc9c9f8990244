#!/usr/bin/env python
"""Replays what Vicuna answered to MT-bench through the preset `rest` and prints it beside REST's own record.

    tools/compare_rest.py --traces mtbench.jsonl --record rest_steps.jsonl --tokenizer llama2 \
        --corpus chat.jsonl --more-corpora english.jsonl python.jsonl

TRACES holds `{"session": ".../QUESTION", "turn", "prompt", "output"}`; RECORD, one line an answer, REST's
`{"question_id", "turn", "category", "new_tokens", "steps", "accept_lengths", "same_text_as_baseline"}`. Both
count alike: all tokens of an answer, the one from the prompt's forward pass and the end of text included,
by the steps that came after that pass.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.build import build_datastore
from retrieval_spec.commands.progress_bar import progress_bar
from retrieval_spec.datastore.corpus import Corpus
from retrieval_spec.datastore.store import open_datastore
from retrieval_spec.datastore.tokenizer import load_tokenizer
from retrieval_spec.drafters.base import Budget
from retrieval_spec.drafters.corpus_rest import Rest, RestCursor
from retrieval_spec.drafters.preset import Source
from retrieval_spec.drafters.presets import preset
from retrieval_spec.engine import Engine
from retrieval_spec.replay import accepted_path
from retrieval_spec.structures.context_array import ContextArray
from retrieval_spec.tree import DraftTree, Tokens

END_OF_TEXT = 2  # Llama's
SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
MAX_NODES = 64
REST_STORE_BYTES = 465_000_000
Ids = NDArray[np.int32]


@dataclass(frozen=True)
class Answer:
    """A recorded answer as token ids, and REST's record of it."""

    prompt: Ids
    output: Ids
    record: dict[str, object]

    @property
    def category(self) -> str:
        """What the question asks for."""
        return str(self.record["category"])


@dataclass
class Tally:
    """Tokens and steps; their quotient is what both sides call the mean."""

    num_tokens: int = 0
    num_steps: int = 0

    def add(self, num_tokens: int, num_steps: int) -> None:
        """Counts one answer."""
        self.num_tokens += num_tokens
        self.num_steps += num_steps

    @property
    def mean(self) -> float:
        """Tokens a step."""
        return self.num_tokens / max(self.num_steps, 1)


@dataclass(frozen=True)
class FirstRest(Rest):
    """REST as published: of too many occurrences it reads the first ones in the order of what follows."""

    def start(self, array: ContextArray, context: Tokens) -> RestCursor:
        """Returns a cursor that has observed `context`."""
        return FirstRestCursor(self, array, context)


class FirstRestCursor(RestCursor):
    """Hands the drafter an array of just these occurrences, where there are too many."""

    def propose(self, budget: Budget) -> DraftTree:
        """Returns the most frequent continuations."""
        array, rule, context = self._array, self._rule, self._tail.tokens
        _, (first, last) = found_span(array, rule, context)
        if last - first <= rule.max_occurrences:
            return super().propose(budget)
        at = array.positions[first:last]
        reads = np.minimum(
            at[:, None].astype(np.int64) + np.arange(rule.continuation_tokens), len(array.tokens) - 1
        )
        in_order = np.lexsort(array.tokens[reads].T[::-1])[: rule.max_occurrences]
        buckets = np.zeros_like(array.buckets)
        buckets[context[-1] + 1 :] = rule.max_occurrences
        chosen = ContextArray(array.tokens, at[np.sort(in_order)], buckets, array.depth_tokens)
        return RestCursor(rule, chosen, context).propose(budget)


def found_span(array: ContextArray, rule: Rest, context: Tokens) -> tuple[int, tuple[int, int]]:
    """Returns the longest span of the context that occurs, and the range of its occurrences."""
    for span in range(min(rule.longest_span_tokens, context.size), rule.shortest_span_tokens - 1, -1):
        first, last = array.count_range(context[-span:])
        if last > first:
            return span, (first, last)
    return 0, (0, 0)


def answers(traces: Path, record: Path, tokenizer: Path) -> list[Answer]:
    """Joins the traces with REST's record of the same questions."""
    encode = load_tokenizer(tokenizer).encode_batch
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    by_question = {(line["question_id"], line["turn"]): line for line in lines}
    found = []
    for line in traces.read_text().splitlines():
        trace = json.loads(line)
        prompt, output = encode([trace["prompt"], trace["output"]])
        key = (int(trace["session"].rpartition("/")[2]), trace["turn"])
        found.append(Answer(prompt, np.append(output, END_OF_TEXT).astype(np.int32), by_question[key]))
    return found


def replay(engine: Engine, replayed: list[Answer]) -> dict[str, Tally]:
    """Returns the tally of each category and, under "", of all."""
    tallies: dict[str, Tally] = defaultdict(Tally)
    for answer in replayed:
        session = engine.open_session([*answer.prompt, answer.output[0]])
        at, num_steps = 1, 0
        while at < answer.output.size:
            accepted = len(accepted_path(session.draft(MAX_NODES), answer.output[at:]))
            session.commit(answer.output[at : at + accepted + 1])
            at += accepted + 1
            num_steps += 1
        session.close()
        for name in ("", answer.category):
            tallies[name].add(answer.output.size, num_steps)
    return tallies


def recorded(replayed: list[Answer]) -> dict[str, Tally]:
    """Returns REST's own tallies."""
    tallies: dict[str, Tally] = defaultdict(Tally)
    for answer in replayed:
        for name in ("", answer.category):
            tallies[name].add(int(str(answer.record["new_tokens"])), int(str(answer.record["steps"])))
    return tallies


@contextmanager
def store(corpora: list[Path], tokenizer: Path, share: float = 1.0) -> Iterator[tuple[Path, int]]:
    """Yields a datastore over that share of the documents, evenly taken, and their bytes."""
    with tempfile.TemporaryDirectory() as folder, progress_bar() as progress:
        lines = [line for corpus in corpora for line in corpus.read_text().splitlines()]
        kept = lines[:: round(1 / share)]
        (Path(folder) / "corpus.jsonl").write_text("\n".join(kept))
        out = Path(folder) / "store"
        corpus = Corpus([Path(folder) / "corpus.jsonl"])
        build_datastore(corpus, tokenizer=tokenizer, out=out, progress=progress)
        yield out, sum(len(line.encode()) for line in kept)


def opened(path: Path, rule: Rest | None = None) -> Engine:
    """Returns an engine with the preset `rest`, or with another rule in its place."""
    chosen = preset("rest")
    if rule is not None:
        chosen = replace(chosen, sources=(Source("corpus", {"rule": rule}),))
    return Engine(open_datastore(path).manifest.vocab_size, preset=chosen, datastores=[path])


def print_categories(columns: dict[str, dict[str, Tally]]) -> None:
    """Prints one row a category, and all together."""
    print(f"\n| category | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    names = sorted(next(iter(columns.values())), key=lambda name: (name == "", name))
    for name in names:
        means = " | ".join(f"{tallies[name].mean:.3f}" for tallies in columns.values())
        print(f"| {name or '**all**'} | {means} |")


def print_definitions(replayed: list[Answer]) -> None:
    """Prints what the record gives under other definitions of the mean."""
    per_answer = [int(str(a.record["new_tokens"])) / int(str(a.record["steps"])) for a in replayed]
    same = [answer for answer in replayed if answer.record["same_text_as_baseline"]]
    print(f"\nREST, mean over answers instead of steps: {np.mean(per_answer):.3f}")
    print(f"REST, the {len(same)} answers whose text equals plain decoding's: {recorded(same)[''].mean:.3f}")


def print_spans(path: Path, replayed: list[Answer]) -> None:
    """Prints how long the spans are that the store holds, over all positions of the outputs."""
    datastore = open_datastore(path)
    array = ContextArray.from_columns(datastore.columns, depth_tokens=datastore.manifest.depth_tokens)
    rule, lengths, num_large = Rest(), Counter(), 0
    for answer in replayed:
        text = np.concatenate([answer.prompt, answer.output])
        for end in range(answer.prompt.size + 1, text.size):
            span, (first, last) = found_span(array, rule, text[max(0, end - 16) : end])
            lengths[span] += 1
            num_large += last - first > rule.max_occurrences
    shares = [
        f"{low} to {high} tokens {sum(lengths[span] for span in range(low, high + 1)) / lengths.total():.1%}"
        for low, high in ((0, 1), (2, 2), (3, 3), (4, 5), (6, 9), (10, 16))
    ]
    print(f"\nlongest span found in the store: {', '.join(shares)}")
    print(f"more than {rule.max_occurrences} occurrences: {num_large / lengths.total():.2%} of the positions")


def parsed() -> argparse.Namespace:
    """Returns the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--traces", type=Path, required=True)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True, help="the target model's")
    parser.add_argument("--corpus", type=Path, required=True, help="JSONL; the store that is compared")
    parser.add_argument("--more-corpora", type=Path, nargs="*", default=[], help="added for a larger store")
    return parser.parse_args()


def print_sizes(sizes: list[tuple[int, float]]) -> None:
    """Prints the mean by size of the store, and where a straight line over its logarithm leads."""
    print("\n| store, MB | tokens a step |\n|---|---|")
    for num_bytes, mean in sizes:
        print(f"| {num_bytes / 1e6:.1f} | {mean:.3f} |")
    doublings = [float(np.log2(num_bytes)) for num_bytes, _ in sizes]
    slope, base = np.polyfit(doublings, [mean for _, mean in sizes], 1)
    reached = base + slope * np.log2(REST_STORE_BYTES)
    print(
        f"{slope:.3f} a doubling; a straight line leads to {reached:.3f} at {REST_STORE_BYTES / 1e6:.0f} MB"
    )


def main() -> int:
    """Prints the comparison, and what may explain the difference."""
    arguments = parsed()
    replayed = answers(arguments.traces, arguments.record, arguments.tokenizer)
    columns = {"REST, recorded": recorded(replayed)}
    sizes = []
    for share in SHARES:
        with store([arguments.corpus], arguments.tokenizer, share) as (path, num_bytes):
            sizes.append((num_bytes, replay(opened(path), replayed)[""].mean))
    with store([arguments.corpus], arguments.tokenizer) as (path, num_bytes):
        tallies = columns[f"`rest`, {num_bytes / 1e6:.1f} MB"] = replay(opened(path), replayed)
        sizes.append((num_bytes, tallies[""].mean))
        first = replay(opened(path, FirstRest()), replayed)[""]
        print_spans(path, replayed)
    print(f"reading the first {Rest().max_occurrences} occurrences, as published: {first.mean:.3f}")
    print_sizes(sizes)
    if arguments.more_corpora:
        with store([arguments.corpus, *arguments.more_corpora], arguments.tokenizer) as (path, num_bytes):
            columns[f"`rest`, {num_bytes / 1e6:.1f} MB"] = replay(opened(path), replayed)
    print_definitions(replayed)
    print_categories(columns)
    return 0


if __name__ == "__main__":
    sys.exit(main())
