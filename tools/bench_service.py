"""Measures a server under many sessions against its bars; ratios are taken within one run.

    OMP_WAIT_POLICY=PASSIVE python tools/bench_service.py [--seconds 600] [--rounds 600] [--frames]

A real server process with the default preset and a datastore; the client is `DraftClient`. Messages of 64
sessions alternate with those of one and with empty calls on the same stream; calls in frames over a plain
socket alternate with those over gRPC. Then 1,000 sessions of several
namespaces stay open for `--seconds`, each replaced as it ends: `--clients` processes share them and ask
without a break, as engines beside one server do. The server's memory is watched: after the first third each
session was replaced, and what they taught fills its budget, so that old text goes as new comes. Memory rises
and falls with that; its peaks must not rise. Last, a forward pass of a small model on the CPU beside the idle
server, and beside the same server stopped.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from bench_rows import Row, percentiles, print_rows, start_server, write_json, write_store  # noqa: E402
from bench_text import corpus, joined  # noqa: E402

from retrieval_spec.client import DraftClient  # noqa: E402
from retrieval_spec.client.listening import match  # noqa: E402
from retrieval_spec.client.session import RemoteSession  # noqa: E402
from retrieval_spec.datastore.manifest import TokenizerFacts  # noqa: E402
from retrieval_spec.datastore.tokenizer import load_tokenizer  # noqa: E402
from retrieval_spec.structures.context_array import ContextArray  # noqa: E402

BATCH = 64
NODES_EACH = 4
"""Of a common budget: where 64 generations share a pass, few drafted nodes each pay."""

PROMPT_TOKENS = 500
OUTPUT_TOKENS = 300
OPEN_SESSIONS = 1_000
NAMESPACES = 4
LEARNED_MIB = 128
"""What ended sessions may teach: less than all namespaces would hold, and reached within minutes."""


class Walk:
    """A session that walks over a document, as a generation would that writes it.

    Each step commits what its last tree got right and the token after it: a host that stopped earlier would
    tell the server that the model went another way.
    """

    def __init__(self, client: DraftClient, document: Any, output_tokens: int, namespace: str) -> None:
        self._text = document[: PROMPT_TOKENS + output_tokens].tolist()
        self._at = PROMPT_TOKENS
        self.session: RemoteSession = client.open_session(document[:PROMPT_TOKENS], namespace)

    @property
    def has_ended(self) -> bool:
        """Whether nothing is left to write."""
        return self._at >= len(self._text)

    def step(self) -> None:
        """Commits the next tokens."""
        tree = self.session.last_tree
        num_accepted = match(tree, self._text[self._at : self._at + len(tree)]).num_tokens
        self.session.commit(self._text[self._at : self._at + num_accepted + 1])
        self._at += num_accepted + 1


class Walks:
    """Open sessions, each replaced by one on the next document when it ends."""

    def __init__(self, client: DraftClient, documents: Sequence[Any], count: int) -> None:
        self._client = client
        self._documents = [document for document in documents if document.size >= PROMPT_TOKENS + 100]
        self._next = 0
        # The first ones end one after the other, as those do that come later.
        lengths = np.linspace(4, OUTPUT_TOKENS, count).astype(int).tolist()
        self._walks = [self._open(length) for length in lengths]
        self.num_opened = count

    def _open(self, output_tokens: int = OUTPUT_TOKENS) -> Walk:
        document = self._documents[self._next % len(self._documents)]
        begin = self._next // len(self._documents) * 97 % (document.size - PROMPT_TOKENS - 50)
        namespace = f"namespace-{self._next % NAMESPACES}"
        self._next += 1
        return Walk(self._client, document[begin:], output_tokens, namespace)

    def batch(self, begin: int, size: int) -> list[RemoteSession]:
        """Commits to so many sessions and returns them."""
        places = [(begin + offset) % len(self._walks) for offset in range(size)]
        for place in places:
            if self._walks[place].has_ended:
                self._walks[place].session.close()
                self._walks[place] = self._open()
                self.num_opened += 1
            self._walks[place].step()
        return [self._walks[place].session for place in places]

    def close(self) -> None:
        """Ends all of them."""
        for walk in self._walks:
            walk.session.close()


@contextmanager
def serving(store: Path) -> Iterator[tuple[int, DraftClient, DraftClient]]:
    """A server that keeps little of what sessions taught: its process id, clients with and without gRPC."""
    with tempfile.TemporaryDirectory() as scratch:
        address, frames = f"unix:{scratch}/server.sock", f"unix:{scratch}/frames.sock"
        options = ("--frames", frames, "--max-learned-bytes", str(LEARNED_MIB << 20))
        process = start_server(store, address, *options)
        clients = [asking(address, transport) for transport in ("stream", frames)]
        try:
            yield process.pid, *clients
        finally:
            for client in clients:
                client.close()
            process.terminate()
            process.wait()


def asking(address: str, transport: str) -> DraftClient:
    """Returns a client that asks in every step."""
    return DraftClient(address, timeout_s=1.0, transport=transport)


def seconds_of_draft(client: DraftClient, sessions: list[RemoteSession], total_nodes: int) -> float:
    """Returns how long one message takes."""
    began = time.perf_counter()
    client.draft_batch(sessions, total_nodes)
    return time.perf_counter() - began


def bench_batches(client: DraftClient, documents: Sequence[Any], rounds: int) -> list[Row]:
    """Alternates messages of 64 sessions, of one session, and of none; then those of 64 with more nodes.

    Of a host the budget of one step is mostly that of the next.
    """
    walks = Walks(client, documents, BATCH)
    empty, one, many, wide = samples = ([], [], [], [])
    for turn in range(rounds):
        empty.append(client.ping())
        one.append(seconds_of_draft(client, walks.batch(turn, 1), 16))
        empty.append(client.ping())
        many.append(seconds_of_draft(client, walks.batch(turn, BATCH), NODES_EACH * BATCH))
    wide += [seconds_of_draft(client, walks.batch(0, BATCH), 16 * BATCH) for _ in range(rounds // 3)]
    walks.close()
    none_s, one_s, many_s, wide_s = (float(np.median(times[len(times) // 5 :])) for times in samples)
    return [
        Row("empty call on a stream, p50", none_s * 1e6, "us"),
        Row("one session in a message, 16 nodes, p50", one_s * 1e6, "us"),
        Row(f"64 sessions in a message, {NODES_EACH * BATCH} nodes, p50", many_s * 1e6, "us"),
        Row(f"64 sessions in a message, {16 * BATCH} nodes, p50", wide_s * 1e6, "us"),
        Row("64 sessions in a message / empty call, p50", many_s / none_s, "x", 4.0),
        Row(f"the same with {16 * BATCH} nodes", wide_s / none_s, "x"),
        Row("drafts a second, 64 in a message / one in a message", BATCH * one_s / many_s, "x", 20.0, True),
    ]


def bench_frames(clients: Sequence[DraftClient], documents: Sequence[Any], rounds: int) -> list[Row]:
    """Alternates calls over gRPC and in frames, empty ones and those of one session."""
    walks = [Walks(client, documents, 1) for client in clients]
    empty, one = ([[], []], [[], []])
    for _ in range(rounds):
        for at, client in enumerate(clients):
            empty[at].append(client.ping())
            one[at].append(seconds_of_draft(client, walks[at].batch(0, 1), 16))
    for walk in walks:
        walk.close()
    (none_s, framed_none_s), (one_s, framed_s) = (
        [float(np.median(times[rounds // 5 :])) for times in both] for both in (empty, one)
    )
    return [
        Row("empty call in frames, p50", framed_none_s * 1e6, "us"),
        Row("the same / over gRPC", framed_none_s / none_s, "x"),
        Row("one session in a message in frames, p50", framed_s * 1e6, "us"),
        Row("the same / over gRPC", framed_s / one_s, "x"),
    ]


class Asked(NamedTuple):
    """What one of several clients did."""

    num_drafts: int
    num_opened: int
    num_missed: int


def ask_on(
    address: str, transport: str, documents: Sequence[Any], num_sessions: int, seconds: float
) -> Asked:
    """Asks without a break about so many open sessions: what each of several processes does."""
    with asking(address, transport) as client:
        walks = Walks(client, documents, num_sessions)
        end_s = time.perf_counter() + seconds
        num_drafts, place = 0, 0
        while time.perf_counter() < end_s:
            client.draft_batch(walks.batch(place, BATCH), NODES_EACH * BATCH)
            num_drafts += BATCH
            place = (place + BATCH) % num_sessions
        walks.close()
        return Asked(num_drafts, walks.num_opened, client.counters.missed + client.counters.failures)


def bench_sustained(
    address: str, transport: str, pid: int, documents: Sequence[Any], seconds: float, num_clients: int
) -> list[Row]:
    """Asks without a break with 1,000 sessions open; watches the server's memory."""
    sizes: list[float] = []
    num_each = OPEN_SESSIONS // num_clients
    with ProcessPoolExecutor(num_clients, multiprocessing.get_context("spawn")) as pool:
        asking = [
            pool.submit(ask_on, address, transport, documents[first::num_clients], num_each, seconds)
            for first in range(num_clients)
        ]
        while not wait(asking, seconds / 240).done:
            sizes.append(resident_mib(pid))
        drafts, opened, missed = map(sum, zip(*[one.result() for one in asking], strict=True))
    third = len(sizes) // 3
    middle, last = sizes[third : 2 * third], sizes[-third:]
    many = f"{num_clients} client{'s' if num_clients > 1 else ''}"
    return [
        Row(f"drafts a second, {OPEN_SESSIONS:,} sessions open, {many}, {seconds:.0f} s",
            drafts / seconds, "drafts/s", 20_000, True),
        Row("sessions opened meanwhile", opened, "sessions"),
        Row("answers that did not come in time", missed, "answers", 0),
        Row("server memory at the end of each third: first", sizes[third - 1], "MiB"),
        Row("middle", middle[-1], "MiB"),
        Row("last", last[-1], "MiB"),
        Row("most in the last third / most in the middle third", max(last) / max(middle), "x", 1.02),
        Row("on average", float(np.mean(last) / np.mean(middle)), "x"),
    ]  # fmt: skip


def resident_mib(pid: int) -> float:
    """Returns the resident memory of a process."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def bench_beside_model(client: DraftClient, pid: int, documents: Sequence[Any], rounds: int) -> list[Row]:
    """Times forward passes beside the idle server and beside the same one stopped, in turn."""
    import torch

    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(512, 8, 2048, batch_first=True)
    model = torch.nn.TransformerEncoder(layer, 8, enable_nested_tensor=False).eval()
    inputs = torch.randn(1, 16, 512)
    walks = Walks(client, documents, OPEN_SESSIONS // 10)
    client.draft_batch(walks.batch(0, BATCH), NODES_EACH * BATCH)
    idle, stopped, again = samples = ([], [], [])
    with torch.inference_mode():
        for _ in range(rounds):
            for times, is_stopped in ((idle, False), (stopped, True), (again, True)):
                os.kill(pid, signal.SIGSTOP if is_stopped else signal.SIGCONT)
                for _ in range(4):
                    began = time.perf_counter()
                    model(inputs)
                    times.append(time.perf_counter() - began)
    os.kill(pid, signal.SIGCONT)
    walks.close()
    with_s, without_s, again_s = (percentiles(times[len(times) // 5 :])[0] for times in samples)
    return [
        Row("forward pass of a model on the CPU, server stopped, p50", without_s * 1e3, "ms"),
        Row("the same beside an idle server / stopped", with_s / without_s, "x", 1.05),
        Row("noise: stopped / stopped", again_s / without_s, "x"),
    ]


def write_corpus(path: Path, tokenizer_path: Path, documents: list[Any]) -> Path:
    """Writes the documents as a datastore."""
    tokenizer = load_tokenizer(tokenizer_path)
    facts = TokenizerFacts(fingerprint=tokenizer.fingerprint)
    array = ContextArray.build(joined(documents, np.int32))
    return write_store(path, array, facts, tokenizer.vocab_size, "tools/bench_service.py")


def run(arguments: argparse.Namespace) -> list[Row]:
    """Runs all parts and prints each row as it comes."""
    documents, held_out = corpus(arguments.tokenizer, arguments.tokens)
    rows: list[Row] = []

    def show(more: list[Row]) -> None:
        rows.extend(more)
        print_rows(more)

    with tempfile.TemporaryDirectory() as scratch:
        store = write_corpus(Path(scratch) / "store", arguments.tokenizer, documents)
        with serving(store) as (pid, client, framed):
            if arguments.rounds:
                show(bench_batches(client, held_out, arguments.rounds))
                show(bench_frames((client, framed), held_out, arguments.rounds))
            if arguments.seconds:
                transport = framed.transport if arguments.frames else client.transport
                load = (arguments.seconds, arguments.clients)
                show(bench_sustained(client.address, transport, pid, held_out, *load))
            if arguments.passes:
                show(bench_beside_model(client, pid, held_out, arguments.passes))
    return rows


def main() -> int:
    """Prints the table; exit code 1 when a bar is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=5_000_000, help="of the datastore")
    parser.add_argument("--tokenizer", type=Path, default=ROOT / "retrieval_spec" / "demo_model")
    parser.add_argument("--rounds", type=int, default=600, help="of messages of 64, 1 and 0 sessions")
    parser.add_argument("--seconds", type=float, default=600.0, help="under load")
    parser.add_argument("--clients", type=int, default=2, help="processes that ask under load")
    parser.add_argument("--frames", action="store_true", help="they ask in frames, not over gRPC")
    parser.add_argument("--passes", type=int, default=60, help="rounds of forward passes")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the rows as JSON")
    arguments = parser.parse_args()
    rows = run(arguments)
    if arguments.json:
        write_json(arguments.json, rows)
    return 0 if all(row.holds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
