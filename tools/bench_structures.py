"""Measures the structures and the service against their bars; ratios are taken within one run.

    OMP_WAIT_POLICY=PASSIVE python tools/bench_structures.py [--tokens 20000000] [--tokenizer PATH] [--json]

The baseline of the automaton is the textbook one with dictionaries in `tests/reference`.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench_rows import (  # noqa: E402
    Row,
    call_us,
    contexts_of,
    draft_times_us,
    percentiles,
    print_rows,
    seconds_of,
    start_server,
    write_json,
    write_store,
)
from bench_text import corpus, joined  # noqa: E402

from retrieval_spec.client import DraftClient  # noqa: E402
from retrieval_spec.datastore.manifest import TokenizerFacts  # noqa: E402
from retrieval_spec.datastore.store import open_datastore  # noqa: E402
from retrieval_spec.datastore.tokenizer import load_tokenizer  # noqa: E402
from retrieval_spec.drafters.base import Budget  # noqa: E402
from retrieval_spec.drafters.phrases import PhrasesDrafter  # noqa: E402
from retrieval_spec.drafters.preset import Preset, Source  # noqa: E402
from retrieval_spec.drafters.session import SessionDrafter  # noqa: E402
from retrieval_spec.engine import Engine  # noqa: E402
from retrieval_spec.feedback import Feedback  # noqa: E402
from retrieval_spec.structures.context_array import ContextArray  # noqa: E402
from retrieval_spec.structures.suffix_automaton import SuffixAutomaton  # noqa: E402
from tests.reference.suffix_automaton import DictAutomaton  # noqa: E402

VOCAB_SIZE = 151_936


def bench_automaton(documents: list[Any], repeats: int) -> tuple[list[Row], float]:
    """Measures the suffix automaton; also returns the dictionary automaton's tokens a second at 1M."""
    text = np.concatenate(documents)[:1_000_000]
    SuffixAutomaton.from_tokens(text[:1_000])
    rows = []
    dict_rate = 0.0
    for size, bar, rounds in ((30_000, 25.0, 4 * repeats), (text.size, 12.0, repeats)):
        ours, theirs = alternating(text[:size], rounds)
        dict_rate = size / theirs
        rows.append(
            Row(f"automaton build / dictionary automaton, {size:,} tokens", theirs / ours, "x", bar, True)
        )
        rows.append(Row(f"automaton build, {size:,} tokens", size / ours / 1e6, "Mtok/s"))
    built = SuffixAutomaton.from_tokens(text)
    rows.append(
        Row("automaton memory at 1M tokens, allocated", built.allocated_bytes / text.size, "B/token", 80)
    )
    rows.append(Row("automaton memory at 1M tokens, used", built.used_bytes / text.size, "B/token"))
    for size in (8_000, 100_000):
        p50, p99 = percentiles(extend_times_us(text, size))
        rows.append(Row(f"automaton extend by 4 tokens at {size:,}, p50", p50, "us"))
        rows.append(Row(f"automaton extend by 4 tokens at {size:,}, p99", p99, "us", 5))
    return rows, dict_rate


def alternating(tokens: Any, rounds: int) -> tuple[float, float]:
    """Returns the best times of both automata; ours gets more tries, in less time, between theirs."""
    as_list = tokens.tolist()
    ours, theirs = [], []
    for _ in range(rounds):
        gc.collect()  # before each try it would empty the caches of what runs a millisecond, not fifty
        theirs.append(seconds_of(lambda: DictAutomaton(as_list)))
        ours += [seconds_of(lambda: SuffixAutomaton.from_tokens(tokens)) for _ in range(4)]
    return min(ours), min(theirs)


def extend_times_us(text: Any, size: int) -> list[float]:
    """Times 4-token extensions of a session of `size` tokens; repeats sessions until there are enough."""
    samples = []
    for start in range(5):
        automaton = SuffixAutomaton.from_tokens(text[start * 2_000 : start * 2_000 + size])
        chunks = text[500_000 + start * 8_000 :][:8_000].reshape(-1, 4)
        for chunk in chunks:
            began = time.perf_counter_ns()
            automaton.extend(chunk)
            samples.append((time.perf_counter_ns() - began) / 1e3)
    return samples


def bench_context_array(
    documents: list[Any], dict_rate: float, repeats: int
) -> tuple[list[Row], ContextArray]:
    """Measures building and size of the context array, in both token widths."""
    rows = []
    for dtype, bar in ((np.uint16, 6.2), (np.int32, 8.2)):
        text = joined(documents, dtype)
        ContextArray.build(joined(documents[:1], dtype))
        best = min(seconds_of(lambda: ContextArray.build(text)) for _ in range(repeats))  # noqa: B023
        array = ContextArray.build(text)
        name = f"context array, {np.dtype(dtype)}, {text.size / 1e6:.1f}M tokens"
        rows.append(Row(f"{name}: build", text.size / best / 1e6, "Mtok/s"))
        rows.append(Row(f"{name}: build / dictionary automaton", text.size / best / dict_rate, "x", 25, True))
        rows.append(Row(f"{name}: size", array.num_bytes / text.size, "B/token", bar))
        allowance = 12 + 0.5e9 / text.size
        rows.append(
            Row(f"{name}: peak memory of a build", peak_build_bytes(text) / text.size, "B/token", allowance)
        )
    return rows, array


def peak_build_bytes(text: Any) -> int:
    """Returns the largest resident size of a process that loads the text and builds the array."""
    code = (
        "import sys, numpy as np\n"
        "from bench_rows import peak_bytes\n"
        "from retrieval_spec.structures.context_array import ContextArray\n"
        "ContextArray.build(np.fromfile(sys.argv[1], sys.argv[2]))\n"
        "print(peak_bytes())"
    )
    with tempfile.TemporaryDirectory() as scratch:
        text.tofile(Path(scratch) / "tokens")
        command = [sys.executable, "-c", code, f"{scratch}/tokens", str(text.dtype)]
        path = os.pathsep.join([str(ROOT), str(ROOT / "tools")])
        environment = {**os.environ, "PYTHONPATH": path}
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        return int(done.stdout)


def bench_drafts(array: ContextArray, held_out: list[Any], store: Path) -> list[Row]:
    """Measures the draft kernel alone and a draft through the engine, on text that is not indexed."""
    rows = []
    contexts = contexts_of(held_out)
    draft_times_us(array, contexts[:4_000])  # warms up
    times = draft_times_us(array, contexts)
    call = call_us(array)
    p50, p99 = (value - call for value in percentiles(times))
    rows.append(Row(f"64-node draft, kernel, p50 of {len(contexts):,}", p50, "us", 15))
    rows.append(Row("64-node draft, kernel, p99", p99, "us"))
    rows.append(Row("64-node draft, kernel, p99 / p50", p99 / p50, "x", 3))
    rows.append(Row("64-node draft, with the call from Python, p50", p50 + call, "us"))
    for label, preset, bar in (
        ("session + corpus", Preset((Source("session"), Source("corpus"))), 40),
        ("session + history + corpus", "default", 60),
        ("session alone", "session", None),
        ("corpus alone", "corpus", None),
    ):
        samples = engine_draft_times_us(store, held_out, preset)
        rows.append(
            Row(f"16-node draft through the engine, {label}, p50", percentiles(samples)[0], "us", bar)
        )
        rows.append(Row(f"16-node draft through the engine, {label}, p99", percentiles(samples)[1], "us"))
    return rows


def engine_draft_times_us(store: Path, held_out: list[Any], preset: str | Preset) -> list[float]:
    """Times drafts while sessions walk over held-out documents, two tokens a step."""
    engine = Engine(VOCAB_SIZE, preset=preset, datastores=[store])
    samples = []
    for document in [document for document in held_out if document.size > 1_200][:20]:
        session = engine.open_session(document[:1_000])
        for start in range(1_000, min(document.size, 1_600), 2):
            session.commit(document[start : start + 2])
            began = time.perf_counter_ns()
            session.draft(16)
            samples.append((time.perf_counter_ns() - began) / 1e3)
        session.close()
    return samples[200:]


def bench_session_drafter(held_out: list[Any]) -> list[Row]:
    """Measures the growing source alone."""
    text = np.concatenate(held_out)[:60_000]
    cursor = SessionDrafter.open(VOCAB_SIZE).start(text[:30_000])
    rows = []
    for nodes in (16, 64):
        samples = []
        for start in range(30_000, 50_000, 4):
            cursor.observe(text[start : start + 4])
            began = time.perf_counter_ns()
            cursor.propose(Budget(nodes))
            samples.append((time.perf_counter_ns() - began) / 1e3)
        p50, p99 = percentiles(samples)
        rows.append(Row(f"{nodes}-node draft of the session source, p50 (p99 {p99:.0f})", p50, "us"))
    return rows


def bench_phrases(held_out: list[Any]) -> list[Row]:
    """Measures pools of phrases: a draft, and what a step learns from text and from a rejected draft."""
    text = np.concatenate(held_out)[:60_000]
    following = dict(pairwise(text.tolist()))
    drafts, learning, likely = phrase_times_us(text, lambda nodes: [following[n] for n in nodes.tolist()])
    *_, agreeing = phrase_times_us(text, lambda nodes: np.append(nodes[1:], nodes[:1]))
    return [
        Row(
            f"phrases source: {what}, p50 (p99 {percentiles(samples)[1]:.0f})",
            percentiles(samples)[0],
            "us",
            bar,
        )
        for what, samples, bar in (
            ("16-node draft", drafts, 50),
            ("learn 4 tokens", learning, 50),
            ("learn 4 tokens and 17 verified nodes", likely, None),
            ("the same, a target that agrees", agreeing, None),
        )
    ]


def phrase_times_us(text: Any, argmax: Callable[[Any], Any]) -> tuple[list[float], list[float], list[float]]:
    """Times drafts, commits of 4 tokens, and such commits with feedback; `argmax` plays the target."""
    cursor = PhrasesDrafter.open(VOCAB_SIZE).start(text[:30_000])
    drafts, learning, rejecting = times = ([], [], [])
    for start in range(30_000, 50_000, 4):
        began = time.perf_counter_ns()
        tree = cursor.propose(Budget(16))
        drafts.append((time.perf_counter_ns() - began) / 1e3)
        nodes = np.concatenate([text[start - 1 : start], tree.token_ids])
        parents = np.append(np.int32(-1), tree.parents + 1)
        told = Feedback(nodes, parents, np.array(argmax(nodes), np.int32)[:, None])
        began = time.perf_counter_ns()
        cursor.observe(text[start : start + 4], told if start % 8 else None)
        (rejecting if start % 8 else learning).append((time.perf_counter_ns() - began) / 1e3)
    return times


def bench_open(store: Path, small: Path) -> list[Row]:
    """Measures opening a datastore whose pages are in memory, whatever its size."""
    rows = []
    for path in (small, store):
        open_datastore(path).prefault()
        samples = [seconds_of(lambda: open_datastore(path)) * 1e3 for _ in range(20)]  # noqa: B023
        size = open_datastore(path).num_bytes / 1e6
        rows.append(Row(f"warm open of {size:,.0f} MB", float(np.median(samples)), "ms", 5))
    return rows


def bench_service(store: Path, held_out: list[Any]) -> list[Row]:
    """Measures drafts over gRPC against empty calls of the same kind, and a fresh server's first draft."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        times = [first_draft_s(store, f"unix:{scratch}/first{index}.sock", held_out[0]) for index in range(4)]
        rows.append(
            Row("first draft of a fresh server, warm kernel cache", float(np.median(times[1:])), "s", 1.0)
        )
        address = f"unix:{scratch}/server.sock"
        process = start_server(store, address)
        try:
            for transport in ("stream", "unary"):
                rows += bench_transport(address, transport, held_out)
        finally:
            process.terminate()
            process.wait()
    return rows


def bench_transport(address: str, transport: str, held_out: list[Any]) -> list[Row]:
    """Alternates drafts and empty calls over one connection."""
    client = DraftClient(address, timeout_s=1.0, transport=transport)
    document = max(held_out, key=len)
    session = client.open_session(document[:1_000])
    drafts, empties = [], []
    for start in range(1_000, min(document.size - 2, 9_000), 2):
        session.commit(document[start : start + 2])
        began = time.perf_counter_ns()
        session.draft(16)
        drafts.append((time.perf_counter_ns() - began) / 1e3)
        began = time.perf_counter_ns()
        client.ping()
        empties.append((time.perf_counter_ns() - began) / 1e3)
    client.close()
    draft, empty = percentiles(drafts[200:])[0], percentiles(empties[200:])[0]
    return [
        Row(f"gRPC {transport}: empty call p50", empty, "us"),
        Row(f"gRPC {transport}: 16-node draft p50", draft, "us"),
        Row(f"gRPC {transport}: draft / empty call, p50", draft / empty, "x", 1.25),
    ]


def first_draft_s(store: Path, address: str, document: Any) -> float:
    """Returns the time from starting the process to its first draft, checksums included."""
    began = time.perf_counter()
    process = start_server(store, address)
    client = DraftClient(address, timeout_s=10.0)
    client.open_session(document[:500]).draft(16)
    elapsed = time.perf_counter() - began
    client.close()
    process.terminate()
    process.wait()
    return elapsed


def run(num_tokens: int, tokenizer_path: Path, repeats: int) -> list[Row]:
    """Runs all parts and prints each row as it comes."""
    documents, held_out = corpus(tokenizer_path, num_tokens)
    tokenizer = load_tokenizer(tokenizer_path)
    rows: list[Row] = []

    def show(more: list[Row]) -> None:
        rows.extend(more)
        print_rows(more)

    automaton_rows, dict_rate = bench_automaton(documents, repeats)
    show(automaton_rows)
    show(bench_session_drafter(held_out))
    show(bench_phrases(held_out))
    array_rows, array = bench_context_array(documents, dict_rate, repeats)
    show(array_rows)
    with tempfile.TemporaryDirectory() as scratch:
        facts = (
            TokenizerFacts(fingerprint=tokenizer.fingerprint),
            tokenizer.vocab_size,
            "tools/bench_structures.py",
        )
        store = write_store(Path(scratch) / "large", array, *facts)
        few = documents[: max(1, len(documents) // 20)]
        small_array = ContextArray.build(joined(few, np.int32))
        small = write_store(Path(scratch) / "small", small_array, *facts)
        show(bench_open(store, small))
        show(bench_drafts(array, held_out, store))
        show(bench_service(store, held_out))
    return rows


def main() -> int:
    """Prints the table; exit code 1 when a bar is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=20_000_000)
    parser.add_argument("--tokenizer", type=Path, default=ROOT / "retrieval_spec" / "demo_model")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the rows as JSON")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    rows = run(arguments.tokens, arguments.tokenizer, arguments.repeats)
    if arguments.json:
        write_json(arguments.json, rows)
    return 0 if all(row.holds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
