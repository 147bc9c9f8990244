"""Measures a datastore from its tokens to its drafts, at several sizes, against bars.

    python tools/bench_datastore.py [--tokens 5000000 50000000 200000000] [--dtype int32] [--json FILE]

Every size is built in a process of its own and opened in another one. The text is the Python sources of
this environment; past what there is, copies of it with 10 % of the tokens replaced at random.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench_plot import write_plot  # noqa: E402
from bench_rows import (  # noqa: E402
    Row,
    call_us,
    contexts_of,
    draft_times_us,
    peak_bytes,
    percentiles,
    print_rows,
    seconds_of,
    write_json,
    write_store,
)
from bench_text import corpus  # noqa: E402

from retrieval_spec.datastore.manifest import TokenizerFacts  # noqa: E402
from retrieval_spec.datastore.store import open_datastore, verify_datastore  # noqa: E402
from retrieval_spec.structures.context_array import ContextArray, separator_of  # noqa: E402
from retrieval_spec.structures.context_arrays import ContextArrays  # noqa: E402

SOURCE_TOKENS = 200_000_000
"""Real text is read up to here, whatever sizes are asked for: runs in parts measure the same text."""
REPLACED_SHARE = 0.1
_CHUNK_TOKENS = 1 << 22
_REPEATED_TOKENS = 100_000_000
"""Up to this many in all are built again: the best build counts, the peak is that of the first."""
_COLD_BYTES = 64 << 20
"""Read between two drafts to empty the caches: more than the processors that we know have."""
_NUM_COLD = 1_000
_NUM_MAPPINGS = 5
_NUM_COMPARED = 5
_SETTLING_S = 10.0
"""Waited once before drafts are timed: what the build and the dropped pages gave back still goes to the
system, and on a virtual machine to its host, for seconds; single drafts then take ten times as long."""
COMPARED_TOKENS = 10_000_000
"""Drafts at the largest size are compared with those at the size nearest to this."""


def write_text(path: Path, documents: list[Any], num_tokens: int, dtype: Any) -> float:
    """Writes exactly so many tokens, documents ended by the separator; returns which share is real text."""
    rng = np.random.default_rng(0)
    separator = separator_of(dtype)
    source = np.concatenate([part for document in documents for part in (document, [separator])])
    source = source.astype(dtype)
    with path.open("wb") as file:
        for start in range(0, num_tokens, _CHUNK_TOKENS):
            at = np.arange(start, min(start + _CHUNK_TOKENS, num_tokens))
            text = source[at % source.size]
            replaced = (at >= source.size) & (text != separator) & (rng.random(at.size) < REPLACED_SHARE)
            others = source[rng.integers(0, source.size, at.size)]
            text = np.where(replaced & (others != separator), others, text)
            if at[-1] == num_tokens - 1:
                text[-1] = separator
            text.tofile(file)
    return min(1.0, source.size / num_tokens)


def build_part(text: Path, dtype: str, store: Path) -> list[Row]:
    """Builds and writes the segment: the time of both, the peak of the first, bytes on disk."""
    for small in (np.uint16, np.int32):
        ContextArray.build(np.array([1, 2, separator_of(small)] * 100, small))
    tokens = np.fromfile(text, dtype)
    array, building, cpu = built(tokens)
    peak = peak_bytes()
    for _ in range(min(2, _REPEATED_TOKENS // tokens.size)):
        array, *again = built(tokens)
        building, cpu = min(building, again[0]), min(cpu, again[1])
    facts = TokenizerFacts(fingerprint="sha256:" + "0" * 64), array.num_ids, "tools/bench_datastore.py"
    writing = seconds_of(lambda: write_store(store, array, *facts))
    size = open_datastore(store).num_bytes / tokens.size
    rate_bar = 10.0 if tokens.size <= 50_000_000 else 7.0
    return [
        Row("build in memory", tokens.size / building / 1e6, "Mtok/s", rate_bar, True),
        Row("build in memory, per second of processor time", tokens.size / cpu / 1e6, "Mtok"),
        Row("build and write", tokens.size / (building + writing) / 1e6, "Mtok/s"),
        Row("peak memory of the build", peak / tokens.size, "B/token", 12 + 0.5e9 / tokens.size),
        Row("on disk", size, "B/token", 6.5 if tokens.dtype == np.uint16 else 8.5),
    ]


def built(tokens: Any) -> tuple[ContextArray, float, float]:
    """Builds once; returns the array and the seconds that it took, by the clock and of all processors."""
    began, cpu_began = time.perf_counter(), time.process_time()
    array = ContextArray.build(tokens)
    return array, time.perf_counter() - began, time.process_time() - cpu_began


def open_part(store: Path, small: Path, queries: Path) -> list[Row]:
    """Opens the datastore cold and warm, queries the fresh mapping, then the warm one, and verifies it."""
    open_datastore(small)  # imports and compiles
    warm_array = ContextArray.from_columns(open_datastore(small).columns, depth_tokens=32)
    contexts = list(np.load(queries))
    draft_times_us(warm_array, contexts[:100])
    forget(store.iterdir())
    rows = [Row("open, cold", seconds_of(lambda: open_datastore(store)) * 1e3, "ms")]
    forget([])
    open_datastore(store).prefault()
    time.sleep(_SETTLING_S)
    warm = [seconds_of(lambda: open_datastore(store)) * 1e3 for _ in range(20)]
    rows.append(Row("open, warm, checksums skipped", float(np.median(warm)), "ms", 5))
    before = resident_bytes()
    fresh = open_datastore(store)
    rows.append(Row("prefault, warm", seconds_of(fresh.prefault) * 1e3, "ms"))
    resident = (resident_bytes() - before) / fresh.manifest.num_tokens
    rows.append(Row("resident after prefault, shared by all processes", resident, "B/token"))
    return [*rows, *query_rows(store, contexts), verify_row(store)]


def query_rows(store: Path, contexts: list[Any]) -> list[Row]:
    """Measures drafts, the first ones of fresh mappings apart; the call from Python is taken off."""
    array = mapped_array(store)
    call = call_us(array)
    mappings = [draft_times_us(mapped_array(store), contexts[:1_000]) for _ in range(_NUM_MAPPINGS)]
    first = np.median([percentiles(times) for times in mappings], axis=0)
    again = percentiles(draft_times_us(array, contexts[1_000:]))
    p50, p99 = (value - call for value in again)
    few = percentiles(draft_times_us(array, contexts[1_000:], 16))
    unknown = np.array([array.num_ids], np.int32)
    cold_call = percentiles(cold_times_us(array, [unknown] * _NUM_COLD))[0]
    cold = percentiles(cold_times_us(array, contexts[:_NUM_COLD]))
    return [
        Row("first 1,000 drafts of a mapping, p50", first[0] - call, "us"),
        Row("first 1,000 drafts of a mapping, p99", first[1] - call, "us"),
        Row(f"64-node draft, p50 of {len(contexts) - 1_000:,}", p50, "us"),
        Row("64-node draft, p99", p99, "us"),
        Row("64-node draft, p99 / p50", p99 / p50, "x", 3),
        Row("first 1,000 drafts / later ones, p99", (first[1] - call) / p99, "x", 3),
        Row("16-node draft, p50", few[0] - call, "us"),
        Row("16-node draft with the call, nothing in the caches, p50", cold[0], "us"),
        Row("16-node draft with the call, nothing in the caches, p99", cold[1], "us"),
        Row("the call alone, nothing in the caches, p50", cold_call, "us"),
    ]


def segments_part(text: Path, dtype: str, counts: list[int], queries: Path) -> list[Row]:
    """Drafts from the same text in several segments in memory."""
    tokens, contexts = np.fromfile(text, dtype), list(np.load(queries))
    rows = []
    for count in counts:
        arrays = ContextArrays([ContextArray.build(part) for part in np.array_split(tokens, count)])
        draft_times_us(arrays, contexts[:1_000], 16)
        p50, p99 = percentiles(draft_times_us(arrays, contexts, 16))
        rows.append(Row(f"16-node draft with the call, {count} segments, p50", p50, "us"))
        rows.append(Row(f"16-node draft with the call, {count} segments, p99", p99, "us"))
    return rows


def cold_times_us(array: ContextArray, contexts: list[Any]) -> list[float]:
    """Times 16-node drafts, each after so much else was read that the caches hold nothing of the array."""
    other = np.ones(_COLD_BYTES // 8, np.uint64)
    samples = []
    for context in contexts:
        other.max()
        samples += draft_times_us(array, [context], 16)
    return samples


def verify_row(store: Path) -> Row:
    """Compares verifying with reading the same files once through SHA-256."""
    plain = min(seconds_of(lambda: read_and_hash(store)) for _ in range(2))
    verifying = min(seconds_of(lambda: verify_datastore(store)) for _ in range(2))
    return Row("verify / plain read with SHA-256, rate", plain / verifying, "x", 0.5, True)


def read_and_hash(store: Path) -> None:
    """Reads every file in chunks into SHA-256, on one thread."""
    for path in store.iterdir():
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(4 << 20):
                digest.update(chunk)


def forget(paths: Iterable[Path]) -> None:
    """Asks the system to drop the files from its cache; where it cannot, cold is warm."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def resident_bytes() -> int:
    """Returns the resident size of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def in_process(part: str, *arguments: object) -> list[Row]:
    """Runs one part in a fresh process."""
    command = [sys.executable, __file__, "--part", part, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return [Row(**row) for row in json.loads(done.stdout)]


PARTS = {
    "build": lambda text, dtype, store: build_part(Path(text), dtype, Path(store)),
    "segments": lambda text, dtype, queries, *counts: segments_part(
        Path(text), dtype, list(map(int, counts)), Path(queries)
    ),
    "compare": lambda base, largest, queries: compare_part(Path(base), Path(largest), Path(queries)),
    "open": lambda store, small, queries: open_part(Path(store), Path(small), Path(queries)),
}


def measure(
    num_tokens: int, dtype: str, documents: list[Any], segments: list[int], folder: Path
) -> list[Row]:
    """Builds and opens one size; its datastore is left in the folder."""
    text, store = folder / "text", store_of(num_tokens, folder)
    real = write_text(text, documents, num_tokens, np.dtype(dtype))
    os.sync()  # else the system writes the text out while drafts are timed
    if real < 1:
        print(f"{num_tokens:,} tokens: {real:.0%} real text, the rest copies, 10 % of the tokens replaced")
    rows = in_process("build", text, dtype, store)
    rows += in_process("open", store, folder / "small", folder / "queries.npy")
    if segments:
        rows += in_process("segments", text, dtype, folder / "queries.npy", *segments)
    text.unlink()
    name = f"{dtype}, {num_tokens / 1e6:g}M: "
    return [Row(name + row.what, row.value, row.unit, row.bar, row.at_least) for row in rows]


def store_of(num_tokens: int, folder: Path) -> Path:
    """Returns where the datastore of this size is built."""
    return folder / f"store-{num_tokens}"


def compared(sizes: list[int], folder: Path) -> list[Row]:
    """Returns how drafts at the largest size compare with those at about 10M tokens."""
    base, largest = min(sizes, key=lambda size: abs(np.log(size / COMPARED_TOKENS))), max(sizes)
    if base == largest:
        return []
    stores = store_of(base, folder), store_of(largest, folder)
    rows = in_process("compare", *stores, folder / "queries.npy")
    name = f", {largest / 1e6:g}M / {base / 1e6:g}M tokens"
    return [Row(row.what + name, row.value, row.unit, row.bar) for row in rows]


def compare_part(base: Path, largest: Path, queries: Path) -> list[Row]:
    """Drafts from both datastores in turn, so that a busy minute slows both down."""
    contexts = list(np.load(queries))
    arrays = [mapped_array(path) for path in (base, largest)]
    call = call_us(arrays[0])
    p50s = [
        [percentiles(draft_times_us(array, contexts))[0] - call for array in arrays]
        for _ in range(_NUM_COMPARED)
    ]
    ratio = np.median([large / small for small, large in p50s])
    return [Row("64-node draft, p50", float(ratio), "x", 1.5)]


def mapped_array(store: Path) -> ContextArray:
    """Opens a datastore and maps all of it before anything is timed."""
    opened = open_datastore(store)
    opened.prefault()
    return ContextArray.from_columns(opened.columns, depth_tokens=opened.manifest.depth_tokens)


def run(
    sizes: list[int], dtype: str, segments: list[int], tokenizer: Path
) -> tuple[dict[int, list[Row]], list[Row]]:
    """Measures all sizes, prints each row as it comes, and leaves nothing behind; then compares them."""
    documents, held_out = corpus(tokenizer, SOURCE_TOKENS)
    by_size = {}
    with tempfile.TemporaryDirectory(prefix="bench-datastore-") as name:
        folder = Path(name)
        np.save(folder / "queries.npy", np.stack(contexts_of(held_out)))
        write_text(folder / "text", documents[:100], 100_000, np.dtype(dtype))
        in_process("build", folder / "text", dtype, folder / "small")
        for size in sorted(sizes):
            by_size[size] = measure(size, dtype, documents, segments, folder)
            print_rows(by_size[size])
        more = compared(sizes, folder)
    print_rows(more)
    return by_size, more


def main() -> int:
    """Prints the table; exit code 1 when a bar is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=[5_000_000, 50_000_000, 200_000_000])
    parser.add_argument("--dtype", choices=["int32", "uint16"], default="int32")
    parser.add_argument(
        "--segments", type=int, nargs="+", default=[], help="also draft from so many segments"
    )
    parser.add_argument("--tokenizer", type=Path, default=ROOT / "retrieval_spec" / "demo_model")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the rows as JSON")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="also draw every row over size, as SVG")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        part, *values = arguments.part
        print(json.dumps([asdict(row) for row in PARTS[part](*values)]))
        return 0
    by_size, more = run(arguments.tokens, arguments.dtype, arguments.segments, arguments.tokenizer)
    rows = [row for size in by_size for row in by_size[size]] + more
    if arguments.json:
        write_json(arguments.json, rows)
    if arguments.plot:
        write_plot(arguments.plot, by_size)
    return 0 if all(row.holds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
