"""Times drafts of a real server while its datastores change, beside the same drafts in quiet.

    python tools/measure_swap.py [--tokens 20000000] [--seconds 8]

Two clients ask step after step, with a pause of 2 ms for the target. Prints percentiles of
the time from question to answer, for quiet, for swaps one after the other, and for appends.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import grpc
import numpy as np

from retrieval_spec import DraftClient
from retrieval_spec.datastore.manifest import Facts, TokenizerFacts
from retrieval_spec.datastore.store import write_datastore
from retrieval_spec.structures.context_array import ContextArray
from retrieval_spec.v1 import datastore_pb2 as pb
from retrieval_spec.v1.datastore_pb2_grpc import DatastoreServiceStub

VOCAB_SIZE = 150_000
DOCUMENT_TOKENS = 1_000
FINGERPRINT = "sha256:" + "0" * 64
PAUSE_S = 0.002


def documents(num_tokens: int, seed: int) -> np.ndarray:
    """Returns int32[n], documents of words that repeat as in text, each ended by the separator."""
    rng = np.random.default_rng(seed)
    tokens = (rng.zipf(1.3, num_tokens) % VOCAB_SIZE).astype(np.int32)
    tokens[DOCUMENT_TOKENS - 1 :: DOCUMENT_TOKENS] = np.iinfo(np.int32).max
    tokens[-1] = np.iinfo(np.int32).max
    return tokens


def write(path: Path, num_tokens: int, seed: int) -> Path:
    """Writes a datastore of random words."""
    tokens = documents(num_tokens, seed)
    array = ContextArray.build(tokens)
    ends = np.flatnonzero(tokens == np.iinfo(np.int32).max)
    facts = Facts(
        name=path.name,
        vocab_size=VOCAB_SIZE,
        depth_tokens=array.depth_tokens,
        tokenizer=TokenizerFacts(fingerprint=FINGERPRINT),
        created_by="measure_swap",
    )
    starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)
    write_datastore(path, facts, {**array.columns(), "documents": starts})
    return path


def ask(address: str, stopping: threading.Event, times_s: list[float]) -> None:
    """Asks step after step until it is told to stop."""
    text = documents(50_000, 7)
    text = text[text < VOCAB_SIZE]
    with DraftClient(address, timeout_s=10.0) as client, closing(client.open_session(text[:500])) as session:
        at = 500
        while not stopping.is_set():
            begin = time.perf_counter()
            session.draft(16)
            times_s.append(time.perf_counter() - begin)
            session.commit(text[at : at + 2])
            at = 500 + (at - 498) % 40_000
            time.sleep(PAUSE_S)


def timed(address: str, seconds: float, work: Callable[[], int] | None = None) -> tuple[list[float], int]:
    """Returns the times of all drafts while `work` is done again and again, and how often it was."""
    stopping, times_s = threading.Event(), []
    threads = [threading.Thread(target=ask, args=(address, stopping, times_s)) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    times_s.clear()
    deadline, count = time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        if work is None:
            time.sleep(0.1)
        else:
            work()
            count += 1
    stopping.set()
    for thread in threads:
        thread.join()
    return times_s, count


def report(name: str, times_s: list[float], count: int) -> None:
    """Prints one line."""
    p50, p99, p999 = np.percentile(times_s, [50, 99, 99.9]) * 1e3
    worst = max(times_s) * 1e3
    print(
        f"{name:<10} {count:4d} changes  {len(times_s):6d} drafts  p50 {p50:6.3f}  p99 {p99:6.3f}  "
        f"p99.9 {p999:6.3f}  max {worst:7.3f} ms",
        flush=True,
    )


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=20_000_000, help="of each datastore")
    parser.add_argument("--append", type=int, default=200_000, help="tokens of one append")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each phase")
    parser.add_argument("--folder", type=Path, help="where datastores are kept between runs")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        for seed, name in enumerate(("first", "second")):
            if not (folder / name).exists():
                write(folder / name, arguments.tokens, seed)
        measure(folder, Path(scratch), arguments)
    return 0


def measure(folder: Path, scratch: Path, arguments: argparse.Namespace) -> None:
    """Serves and times."""
    command = [sys.executable, "-m", "retrieval_spec.cli", "serve", "--listen", f"unix:{scratch}/drafts.sock"]
    command += ["--datastore", str(folder / "first"), "--admin", f"unix:{scratch}/admin.sock"]
    command += ["--admin-root", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        try:
            address = process.stdout.readline().split()[-1]
            with grpc.insecure_channel(f"unix:{scratch}/admin.sock") as channel:
                phases(DatastoreServiceStub(channel), address, arguments)
        finally:
            process.terminate()


def phases(admin: DatastoreServiceStub, address: str, arguments: argparse.Namespace) -> None:
    """Times each kind of change between two times of quiet."""
    turns, seeds = iter(["second", "first"] * 10_000), iter(range(100, 10_000))

    def swap() -> int:
        return int(admin.Swap(pb.SwapRequest(name="first", folder=next(turns))).is_changed)

    def append() -> int:
        tokens = documents(arguments.append, next(seeds))
        kept = tokens[tokens < VOCAB_SIZE]
        lengths = np.diff(np.flatnonzero(tokens >= VOCAB_SIZE), prepend=-1) - 1
        request = pb.AppendRequest(
            name="first",
            token_ids=kept.astype("<i4").tobytes(),
            document_lengths=lengths.astype("<i4").tobytes(),
            tokenizer_fingerprint=FINGERPRINT,
        )
        return admin.Append(request).num_added

    for name, work in (("quiet", None), ("swap", swap), ("quiet", None), ("append", append), ("quiet", None)):
        report(name, *timed(address, arguments.seconds, work))


if __name__ == "__main__":
    sys.exit(main())
